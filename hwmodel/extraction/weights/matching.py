"""Whether stored weights are those of a model: what is missing, what nobody expects, and what has another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hwmodel.errors import CheckpointError
from hwmodel.extraction.weights.checkpoints import Shape, StoredTensors
from hwmodel.extraction.weights.stored_weights import StoredWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

_LISTED = 6


def known_names(model: nn.Module) -> frozenset[str]:
    """Every name that a checkpoint of a model may hold."""
    return frozenset({*model.state_dict(), *(name for name, _ in model.named_buffers())})


def differences(model: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Names that are missing, unexpected or misshaped among stored weights; empty where they are the model's.

    Parameters
    ----------
    shapes : of the stored weights, by the names of a plain model. Buffers may be missing, and stored ones that the
        model does not keep are no surprise
    """
    expected = expected_shapes(model)
    buffers = {name for name, _ in model.named_buffers()}
    found = {
        "missing": [name for name in expected if name not in shapes and name not in buffers],
        "unexpected": [name for name in shapes if name not in expected and name not in buffers],
        "misshaped": [
            f"{name} ({_text(shapes[name])}, the model has {_text(shape)})"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def check_match(model: nn.Module, shapes: Mapping[str, Shape], *, where: str, name: str) -> None:
    """Refuse weights that are not those of ``model``.

    Raises
    ------
    CheckpointError
        One line with ``where``, the ``name`` of the model, and what is missing, unexpected or misshaped.
    """
    told = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in differences(model, shapes).items()]
    if told:
        raise CheckpointError(f"{where}: is no checkpoint of {name}; {'; '.join(told)}")


def expected_shapes(model: nn.Module) -> Mapping[str, Shape]:
    """Shapes of a model's weights, by the names that a plain model gives them."""
    state: dict[str, Tensor] = {name: tensor for name, tensor in model.state_dict().items() if hasattr(tensor, "shape")}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return StoredWeights(StoredTensors(type(model).__name__, shapes, state.__getitem__)).shapes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"
