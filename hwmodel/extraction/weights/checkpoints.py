"""Checkpoint files, opened without trusting them: the names and shapes of their tensors, each read when it is asked for."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "net", "network", "weights", "params")
"""Keys under which training scripts keep the state dict, averaged weights (those that are evaluated) first."""
_MASK_TABLES = ("masks", "mask")
"""Keys of a table from parameter names to masks, beside the state dict."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers of a model put before every name: DataParallel, torch.compile, training frameworks."""
_CODE = ("GLOBAL", "unrecognized function", "unsupported class", "Can only build")
"""How torch's restricted unpickler tells that a file wants to import or call something, rather than that it is damaged."""
_LISTED = 8


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Tensors by name, each loaded when it is asked for.

    Parameters
    ----------
    where : what they come from, for messages
    shapes : shape by name, in the order of the file
    load : gives the tensor of one name
    """

    where: str
    shapes: Mapping[str, Shape]
    load: Callable[[str], Tensor]

    def unwrapped(self, known: frozenset[str]) -> StoredTensors:
        """The same under the names that a model knows: what wrappers of it put in front, or in between, is gone."""
        original = {_inner_name(name): name for name in self.shapes}
        if len(original) < len(self.shapes):
            raise CheckpointError(f"{self.where}: holds the weights of a compiled model and of a plain one; keep one of the two")
        while (prefix := _common_wrapper(original)) and not any(name.startswith(prefix) for name in known):
            original = {name.removeprefix(prefix): stored for name, stored in original.items()}
        shapes = {name: self.shapes[stored] for name, stored in original.items()}
        return StoredTensors(self.where, shapes, lambda name: self.load(original[name]))


def _inner_name(name: str) -> str:
    """A name without the wrapper of ``torch.compile``, which may stand around any module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _common_wrapper(names: Mapping[str, str]) -> str:
    return next((wrapper for wrapper in _WRAPPERS if names and all(name.startswith(wrapper) for name in names)), "")


def open_checkpoint(path: str | Path) -> StoredTensors:
    """Open a ``.safetensors`` file, or any other as ``torch.save`` writes it; no code in it is run.

    Raises
    ------
    CheckpointError
        A file that is missing, truncated, no checkpoint, that wants to run code, or that holds no table of tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint (.safetensors, or .pt as torch.save writes it)")
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


def _open_safetensors(file: Path) -> StoredTensors:
    """Opened anew for every tensor: a mapping that stays open would hold every page that was read."""
    from safetensors import SafetensorError, safe_open

    def load(name: str) -> Tensor:
        with safe_open(str(file), framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    try:
        with safe_open(str(file), framework="pt") as opened:
            header: Any = opened
            shapes = {name: tuple(header.get_slice(name).get_shape()) for name in header.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file, or a truncated one ({error})") from error
    return StoredTensors(str(file), shapes, load)


def _open_pickle(file: Path) -> StoredTensors:
    """Tensors stay on disk, mapped into memory, where the file is of torch's present format."""
    import torch

    with _told(file):
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    tensors = _state_dict(content, file)
    return StoredTensors(str(file), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """What torch.load refuses, as one line; that block-sparse tensors are a beta feature of torch is not the user's concern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _CODE):
            raise CheckpointError(
                f"{file}: refused, it wants to run code ({_wanted(error)}); save weights alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{file}: not a checkpoint as torch.save writes it, or a truncated one") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: not a checkpoint as torch.save writes it, or a truncated one") from error


def _wanted(error: Exception) -> str:
    """What a pickle wanted to import, as torch's long message names it."""
    lines = [line.strip() for line in str(error).splitlines() if any(sign in line for sign in _CODE)]
    return lines[0].removeprefix("WeightsUnpickler error: ")[:120] if lines else "an object that is no tensor"


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The table of tensors in a checkpoint; a table of masks beside it is merged in as ``NAME.mask``."""
    masks: dict[str, Tensor] = {}
    while isinstance(content, dict) and not _tensors(content):
        tables = {key: value for key, value in content.items() if isinstance(value, dict) and value}
        masks |= {f"{name}.mask": tensor for key in _MASK_TABLES for name, tensor in _tensors(tables.get(key, {})).items()}
        weights = {key: value for key, value in tables.items() if key not in _MASK_TABLES}
        key = next((key for key in _CONTAINERS if key in weights), next(iter(weights)) if len(weights) == 1 else None)
        if key is None:
            raise CheckpointError(f"{file}: holds no table of tensors {_keys(content)}; save model.state_dict()")
        content = weights[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, expected a table of tensors; save model.state_dict()")
    return _tensors(content) | masks


def _tensors(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    import torch

    return {name: value for name, value in table.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _keys(content: Mapping[Any, Any]) -> str:
    listed = ", ".join(str(key) for key in list(content)[:_LISTED])
    return f"(keys: {listed}{', ...' if len(content) > _LISTED else ''})" if content else "(it is empty)"
