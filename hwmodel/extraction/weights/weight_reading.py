"""From a recorded forward pass and stored weights to a trace with their sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.errors import CheckpointError
from hwmodel.extraction.recording.graph import Recording
from hwmodel.extraction.weights.checkpoints import open_checkpoint
from hwmodel.extraction.weights.formats import with_formats
from hwmodel.extraction.weights.matching import check_match, differences, expected_shapes, known_names
from hwmodel.extraction.weights.narrowing import fit
from hwmodel.extraction.weights.quantised_weights import refuse_packed
from hwmodel.extraction.weights.sparse_weights import WeightUse, with_sparsity
from hwmodel.extraction.weights.stored_weights import StoredWeights, module_weights
from hwmodel.ir.masks import Shape
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    from torch import nn

_KEEP_ZEROS = frozenset({"cast", "mul", "l2norm"})
"""What may stand between a stored weight and the product that uses it, so that zeros stay where they are."""


@dataclass(frozen=True, eq=False)
class WeightReader:
    """Stored weights of the model that is traced, and the blocks to look for in them (None detects them).

    ``narrowed`` says that they are of a structurally pruned version of it, ``notes`` what had to be assumed about that.
    """

    stored: StoredWeights
    block: Shape | None = None
    narrowed: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of_module(cls, model: nn.Module, block: Shape | None) -> WeightReader:
        """The weights of a live module."""
        return cls(module_weights(model), block)

    @classmethod
    def of_checkpoint(cls, path: str | Path, model: nn.Module, name: str, block: Shape | None) -> WeightReader:
        """The weights in a file, once they match a module.

        Raises
        ------
        CheckpointError
            A file that cannot be read, or that is no checkpoint of the model: what does not fit is listed.
        """
        stored = StoredWeights(open_checkpoint(path).unwrapped(known_names(model)))
        refuse_packed(stored.quantised, dict(expected_shapes(model)), stored.where)
        check_match(model, stored.shapes, where=stored.where, name=name)
        return cls(stored, block)

    def read_into(self, trace: Trace, recording: Recording, names: Sequence[str]) -> Trace:
        """The trace of ``recording``, whose rows have ``names``, with the sparsity of the weights.

        Raises
        ------
        CheckpointError
            NaN among the weights, a mask that is none, or a block larger than a weight that has zeros.
        """
        uses = {
            name: WeightUse(weight=self.stored.weight_of(record.weight), computed=_is_computed(recording, row))
            for row, (name, record) in enumerate(zip(names, recording.records, strict=True))
            if record.weight
        }
        formats = {name: told for name, use in uses.items() if (told := self.stored.format_of(use.weight)) is not None}
        return with_formats(with_sparsity(trace, uses, self.stored, self.block).replace(notes=self.notes), formats)


def fitted(path: str | Path, model: nn.Module, name: str, block: Shape | None) -> tuple[nn.Module, WeightReader]:
    """A timm model on the meta device, narrowed where a checkpoint is structurally pruned, and the weights in the file.

    Raises
    ------
    CheckpointError
        A file that cannot be read, or that no structural pruning of the model explains: what does not fit is listed.
    """
    stored = StoredWeights(open_checkpoint(path).unwrapped(known_names(model)))
    refuse_packed(stored.quantised, dict(expected_shapes(model)), stored.where)
    if not differences(model, stored.shapes):
        return model, WeightReader(stored, block)
    kept = {*model.state_dict()}
    passing = {buffer for buffer, _ in model.named_buffers()} - kept
    try:
        found = fit(model, {weight: shape for weight, shape in stored.shapes.items() if weight not in passing})
    except CheckpointError as error:
        raise CheckpointError(f"{stored.where}: is no checkpoint of {name}: {error}") from error
    return found.module, WeightReader(stored, block, narrowed=True, notes=found.notes)


def _is_computed(recording: Recording, row: int) -> bool:
    """Whether rows that need not keep zeros stand between the stored weight and the product of ``row``."""
    operands = recording.records[row].operands
    queue = sorted(operands[1]) if len(operands) > 1 else []
    for before in queue:
        record = recording.records[before]
        if record.operator.kind not in _KEEP_ZEROS:
            return True
        queue.extend(sorted(record.producers - set(queue)))
    return False
