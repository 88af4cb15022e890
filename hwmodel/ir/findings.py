"""What was seen in the weights of a model, layer by layer: how sparse they are, and how much of that blocks can use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hwmodel.ir.masks import Shape

WeightForm = Literal["dense", "zeros", "masked", "bsr", "sparse", "2:4", "computed"]
"""How a weight is stored: without a zero, with plain zeros, beside a mask, as blocks or in another sparse layout, with two of
four neighbours kept, or not at all but computed from other parameters on every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFinding:
    """Sparsity of the weight of one operator, as it was found in a checkpoint or a live module.

    Parameters
    ----------
    operator : name of the operator in the trace
    form : how the weight is stored
    block : (out, in) elements of the blocks that are pruned whole, None where none is
    weights : elements of the weight
    kept_weights : elements that are not zero: the nominal count
    block_weights : elements that are left when every empty block (or two of four) is skipped: the effective count
    macs : MACs of the dense layer
    reason : why blocks gain nothing, "" where they do

    Raises
    ------
    ValueError
        An unknown form, or counts that contradict each other.
    """

    operator: str
    form: WeightForm
    block: Shape | None = None
    weights: int
    kept_weights: int
    block_weights: int
    macs: int
    reason: str = ""

    def __post_init__(self) -> None:
        if self.form not in get_args(WeightForm):
            raise ValueError(f"{self.operator}: unknown form {self.form!r}: expected one of {', '.join(get_args(WeightForm))}")
        if not 0 <= self.kept_weights <= self.block_weights <= self.weights:
            raise ValueError(
                f"{self.operator}: {self.kept_weights} kept weights, {self.block_weights} in kept blocks, {self.weights} in all: "
                "expected them to rise"
            )

    @property
    def unexplained_zeros(self) -> int:
        """Zeros that no empty block holds, so that nothing is gained by them."""
        return self.block_weights - self.kept_weights

    @property
    def nominal_macs(self) -> float:
        """MACs by weights that are not zero."""
        return self.macs * self.kept_weights / self.weights

    @property
    def effective_macs(self) -> float:
        """MACs that are left when every empty block is skipped."""
        return self.macs * self.block_weights / self.weights
