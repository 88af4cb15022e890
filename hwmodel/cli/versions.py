"""The versions of a model that a command compares: as it is first, then one per recipe, then a checkpoint's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.cli.dead_work import living
from hwmodel.cli.inputs import checkpoint_model, pruned_by, unpruned_model

if TYPE_CHECKING:
    from hwmodel.ir.trace import Trace


def versions_of(
    model: str,
    batch: int | None,
    image_size: int | None,
    dtype: str | None,
    recipes: Sequence[str],
    *,
    checkpoint: str | None = None,
    block: str | None = None,
    drop_dead: bool = False,
) -> list[tuple[str, Trace]]:
    """(label, trace) of every version, without its dead work where asked for. A saved trace may be pruned already."""
    from hwmodel.reporting.variants import is_dense

    first = unpruned_model(model, batch, image_size, dtype, recipes)
    found = [("dense" if is_dense(first) else "as saved", first)]
    found += [(Path(name).stem, pruned_by(first, name)) for name in recipes]
    if checkpoint is not None or block is not None:
        read = checkpoint_model(model, batch, image_size, dtype, checkpoint=checkpoint, block=block)
        found.append((Path(checkpoint or "checkpoint").stem, read))
    return [(label, living(trace, drop_dead, label)) for label, trace in found]
