"""Work layer by layer: what the dense model multiplies, what is left of it by count and by block, what machines execute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwmodel.reporting.breakdown import kept_weights, layers
from hwmodel.reporting.variants import Case


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """One prunable layer of the dense model and what is left of it.

    Parameters
    ----------
    name, role, block : the operator's; ``block`` is None outside the encoder
    mask_block : (out, in) of the blocks that were pruned whole, None where no mask is known
    kept_weights : weights that are not zero over all weights of the layer, in [0, 1]
    dense_macs : MACs of the unpruned layer
    nominal_macs : MACs by weights that are not zero
    effective_macs : MACs in blocks that are not empty; what a machine whose unit is one such block executes
    executed_macs : MACs executed on each machine
    reason : why nothing is gained, as found in the weights, or that the layer is gone; "" elsewhere
    """

    name: str
    role: str
    block: int | None
    mask_block: tuple[int, int] | None
    kept_weights: float
    dense_macs: float
    nominal_macs: float
    effective_macs: float
    executed_macs: tuple[float, ...]
    reason: str


def layer_work(cases: Sequence[Case], references: Sequence[Case]) -> list[LayerWork]:
    """One row per prunable layer of the dense model, in its order; ``cases`` are that variant on each machine."""
    now = {operator.name: operator for operator in cases[0].trace.operators}
    findings = {finding.operator: finding for finding in cases[0].trace.findings}
    executed = [case.frame["executed_macs"] for case in cases]
    found = []
    for before in layers(references[0].trace):
        left, finding = now.get(before.name), findings.get(before.name)
        kept_macs = float(left.kept_macs) if left else 0.0
        found.append(
            LayerWork(
                name=before.name, role=before.role, block=before.block,
                mask_block=left.mask.block if left and left.mask else None,
                kept_weights=finding.kept_weights / finding.weights if finding else kept_weights(left) if left else 0.0,
                dense_macs=float(before.macs), nominal_macs=finding.nominal_macs if finding else kept_macs,
                effective_macs=finding.effective_macs if finding else kept_macs,
                executed_macs=tuple(float(column.get(before.name, 0.0)) for column in executed),
                reason=finding.reason if finding else "" if left else "pruned out whole",
            )
        )  # fmt: skip
    return found
