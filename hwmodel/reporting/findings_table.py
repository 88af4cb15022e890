"""What was seen in the weights of a model, for the terminal: dense, nominal and effective work side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwmodel.reporting.tables import new_table, plain_row
from hwmodel.reporting.units import percent, si

if TYPE_CHECKING:
    from rich.table import Table

    from hwmodel.ir.findings import WeightFinding
    from hwmodel.ir.trace import Trace

_FORMS = {
    "zeros": "plain zeros", "masked": "masked", "bsr": "block-sparse (BSR)", "sparse": "sparse layout", "2:4": "2:4",
    "computed": "computed", "dense": "dense",
}  # fmt: skip


def findings_table(trace: Trace) -> Table:
    """One row per layer whose weight is not simply dense, then one for all the others and one for the sum.

    MACs: of the dense layer, by weights that are not zero, and in blocks that are not empty.
    """
    columns = [
        "weights",
        "stored as",
        "block",
        "not zero",
        "in kept blocks",
        "MACs",
        "nominal",
        "effective",
        "why nothing is gained",
    ]
    table = new_table(f"{trace.model}: what the weights say", columns, left=3)
    table.columns[-1].justify = "left"
    dense = [finding for finding in trace.findings if finding.form == "dense"]
    for finding in trace.findings:
        if finding.form != "dense":
            block = "-" if finding.block is None else f"{finding.block[0]}x{finding.block[1]}"
            _row(table, finding.operator, _FORMS[finding.form], block, [finding], reason=finding.reason)
    if dense:
        _row(table, f"{len(dense)} other layers", "dense", "-", dense, reason=dense[0].reason)
    table.add_section()
    _row(table, "all", "", "", trace.findings)
    return table


def _row(table: Table, name: str, form: str, block: str, findings: Sequence[WeightFinding], *, reason: str = "") -> None:
    weights, kept, left = (sum(getattr(one, field) for one in findings) for field in ("weights", "kept_weights", "block_weights"))
    macs = (sum(getattr(one, field) for one in findings) for field in ("macs", "nominal_macs", "effective_macs"))
    plain_row(table, name, form, block, percent(kept / weights, 1), percent(left / weights, 1), *map(si, macs), reason)
