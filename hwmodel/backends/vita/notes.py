"""What the shape of the processing element (PE) costs a model beyond its kept weights, in lines for the user."""

from __future__ import annotations

from hwmodel.backends.base import Workload
from hwmodel.backends.vita.parameters import ProcessingElement
from hwmodel.ir.masks import Mask


def notes(workload: Workload, pe: ProcessingElement, timed: frozenset[str]) -> list[str]:
    """One line for each shape of block that the PE does not fit, and one for layers smaller than the PE.

    ``timed``: families that this mode prices; attention products count only where they are timed.
    """
    return [*_folded(workload, pe), *_small(workload, pe, attention="attention" in timed)]


def _folded(workload: Workload, pe: ProcessingElement) -> list[str]:
    """Blocks that PE-sized tiles cut across: how many tiles the kept ones occupy beyond what they would fill."""
    by_block: dict[tuple[int, int], list[Mask]] = {}
    for mask in workload.masks:
        if mask is not None and 0 < mask.kept_blocks < mask.total_blocks:
            by_block.setdefault(mask.block, []).append(mask)
    lines = []
    for (out, in_), masks in by_block.items():
        if out % pe.out == 0 and in_ % pe.in_ == 0:
            continue
        occupied = sum(mask.occupied_tiles(pe.out, pe.in_) * pe.macs for mask in masks)
        kept = sum(mask.kept_weights for mask in masks)
        lines.append(
            f"a PE of {pe} does not divide blocks of {out}x{in_}: it multiplies {occupied / kept:.2f} times the kept weights of "
            f"{len(masks)} layer{'s' * (len(masks) > 1)}, for tiles that hold part of a kept block are worked on whole"
        )
    return lines


def _small(workload: Workload, pe: ProcessingElement, *, attention: bool) -> list[str]:
    """Products with fewer outputs or inputs than the PE has rows or columns."""
    product = (workload.family == "product") & ~workload.constant & (workload.parameter | attention)
    small = product & ((workload.n < pe.out) | (workload.k < pe.in_))
    if not small.any():
        return []
    rows = small.nonzero()[0].tolist()
    used = min(min(int(workload.n[row]), pe.out) * min(int(workload.k[row]), pe.in_) / pe.macs for row in rows)
    first = workload.trace.operators[rows[0]]
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return [
        f"a PE of {pe} is larger than {first.name} ({first.n}x{first.k}){more}: such a layer costs whole PEs, "
        f"of which down to {used:.0%} do useful work"
    ]
