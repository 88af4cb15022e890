"""How commands read what they were given: models, saved traces, recipes, settings, output names."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from hwmodel.ir.trace import Trace


def setting(text: str) -> tuple[str, Any]:
    """``FIELD=VALUE`` with the value as TOML reads it, or as text where TOML cannot ("64x64")."""
    field, equals, value = text.partition("=")
    if not equals or not field or not value:
        raise HwmodelError(f"--set {text}: expected FIELD=VALUE, for example clock_hz=1.2e9")
    try:
        return field, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return field, value


def block_shape(text: str | None) -> tuple[int, int] | None:
    """``OUTxIN`` as two numbers."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise HwmodelError(f"--block {text}: expected OUTxIN, for example 32x32")
    return int(found[1]), int(found[2])


def traced_model(
    model: str,
    batch: int | None,
    image_size: int | None,
    dtype: str | None,
    recipe: str | None,
    *,
    checkpoint: str | None = None,
    block: str | None = None,
) -> Trace:
    """Extract a model, or load a saved trace; pruned where a recipe is given, or as its checkpoint is."""
    if checkpoint is not None and recipe is not None:
        raise HwmodelError("--checkpoint and --recipe both say how the model is pruned; give one of them")
    if checkpoint is not None or block is not None:
        return checkpoint_model(model, batch, image_size, dtype, checkpoint=checkpoint, block=block)
    dense = unpruned_model(model, batch, image_size, dtype, [] if recipe is None else [recipe])
    return dense if recipe is None else pruned_by(dense, recipe)


def checkpoint_model(
    model: str, batch: int | None, image_size: int | None, dtype: str | None, *, checkpoint: str | None, block: str | None
) -> Trace:
    """Extract a model by name, as sparse as its checkpoint is; what had to be assumed is told on standard error."""
    from hwmodel.ir.storage import is_trace_file

    shape = block_shape(block)
    if is_trace_file(model):
        raise HwmodelError(f"{model}: a saved trace has no weights to read; name the model that the checkpoint belongs to")
    from hwmodel.extraction.models import trace as extract

    traced = extract(model, batch=batch or 1, image_size=image_size, dtype=dtype, checkpoint=checkpoint, block=shape)
    for note in traced.notes:
        sys.stderr.write(f"hwmodel: {note}\n")
    return traced


def unpruned_model(model: str, batch: int | None, image_size: int | None, dtype: str | None, recipes: Sequence[str]) -> Trace:
    """Extract a model, at the image size its recipes ask for where none is given, or load a saved trace as it is."""
    from hwmodel.ir.storage import is_trace_file, load_trace

    if not is_trace_file(model):
        from hwmodel.extraction.models import trace as extract

        return extract(model, batch=batch or 1, image_size=image_size or _image_size(recipes), dtype=dtype)
    traced = load_trace(model)
    if batch not in (None, traced.batch):
        raise HwmodelError(f"{model}: traced at batch {traced.batch}, not {batch}; trace the model again with --batch {batch}")
    if image_size is not None:
        raise HwmodelError(f"{model}: a saved trace has its own image size; trace the model again with --image-size {image_size}")
    return traced if dtype is None else traced.replace(dtype=dtype)


def _image_size(recipes: Sequence[str]) -> int | None:
    """The image size that the recipes ask for, None where none does."""
    from hwmodel.extraction.whatif.recipe_files import load_recipe

    asked = {size for recipe in recipes if (size := load_recipe(recipe).image_size) is not None}
    if len(asked) > 1:
        listed = ", ".join(str(size) for size in sorted(asked))
        raise HwmodelError(f"--recipe: the recipes are for different image sizes ({listed}); report them apart")
    return asked.pop() if asked else None


def pruned_by(traced: Trace, recipe: str) -> Trace:
    """Apply a shipped recipe or a recipe file."""
    from hwmodel.extraction.whatif.pruning import prune

    return prune(traced, recipe)


def check_output(path: str, endings: tuple[str, ...]) -> None:
    """Refuse, before any long work, an output that has another ending or cannot be written."""
    from hwmodel.files import check_writable

    if Path(path).suffix not in endings:
        raise HwmodelError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    check_writable(path)
