"""Which operators share a kernel: a stated set of rules per execution mode, applied to the trace and its edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hwmodel.backends.base import AttentionChoice, Workload

Sort = Literal["product", "attention", "math-attention", "stream", "folded"]

MODES: Final = ("compiled", "eager", "engine", "kernel")

FUSES_STREAMS: Final = frozenset({"compiled", "engine"})
"""Modes that chain elementwise and row-wise operators over the same elements into one kernel, as inductor does."""
FUSES_EPILOGUES: Final = frozenset({"engine"})
"""Modes that run elementwise operators on a product's result in that product's kernel, as TensorRT does."""
FOLDS_CONSTANTS: Final = frozenset({"compiled", "engine"})
"""Modes that compute input-independent operators once, before the first image."""

_CHAINED_MOVEMENT: Final = frozenset({"copy", "cast", "concat", "roll", "pad", "fill"})


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: the operators it runs, first row first, and the physics that prices it."""

    sort: Sort
    members: tuple[int, ...]

    @property
    def row(self) -> int:
        """Row that carries the cost."""
        return self.members[0]


def bias_rows(workload: Workload) -> list[bool]:
    """Rows whose result is one vector for every token and image: layers with no weight left, and elementwise functions of such.

    Modes that fold constants compute them before the first image and read the vector instead of a tensor.
    """
    found = [mask is not None and mask.kept_blocks == 0 for mask in workload.masks]
    for row, producers in enumerate(workload.predecessors):
        follows = bool(producers) and all(found[other] for other in producers)
        found[row] = found[row] or (follows and workload.family[row] == "elementwise")
    return found


def plan(workload: Workload, mode: str, attention: AttentionChoice) -> list[Kernel]:
    """Kernels of one forward pass; every operator is a member of exactly one.

    An operator joins the kernel of its latest producer if the mode and the kinds allow it, and every other producer is in
    that kernel or ran before it (so no kernel waits for itself). Attention is one kernel where the source calls
    scaled-dot-product attention, or as ``attention`` forces.
    """
    planner = _Planner(workload, mode, attention)
    for row in range(len(workload)):
        planner.place(row)
    return [Kernel(sort, tuple(members)) for sort, members in zip(planner.sorts, planner.members, strict=True)]


class _Planner:
    """Kernels so far: their sorts and members, and the kernel of every row placed."""

    def __init__(self, workload: Workload, mode: str, attention: AttentionChoice) -> None:
        self.mode, self.attention = mode, attention
        self.kind, self.family = workload.kind.tolist(), workload.family.tolist()
        self.elements, self.cols = workload.elements.tolist(), workload.cols.tolist()
        self.group, self.in_source = workload.attention_group.tolist(), workload.fused_in_source.tolist()
        self.outputs, self.constant = workload.output_elements.tolist(), workload.constant.tolist()
        self.producers = workload.predecessors
        self.bias = bias_rows(workload)
        self.sorts: list[Sort] = []
        self.members: list[list[int]] = []
        self.kernel_of: list[int] = []
        self.attention_kernel: dict[str, int] = {}

    def place(self, row: int) -> None:
        """Give ``row`` its kernel."""
        kernel = self._existing(row)
        if kernel is None:
            kernel = len(self.sorts)
            self.sorts.append(self._sort(row))
            self.members.append([])
            if self.sorts[kernel] == "attention" and self.group[row]:
                self.attention_kernel[self.group[row]] = kernel
        self.members[kernel].append(row)
        self.kernel_of.append(kernel)

    def _sort(self, row: int) -> Sort:
        known = self.constant[row] or (self.bias[row] and self.family[row] == "elementwise")
        if known and self.mode in FOLDS_CONSTANTS:
            return "folded"
        if self._attention_fused(row):
            return "attention"
        if self.family[row] == "attention":
            return "math-attention"
        return "product" if self.family[row] == "product" else "stream"

    def _attention_fused(self, row: int) -> bool:
        belongs = bool(self.group[row]) or self.family[row] == "attention"
        return belongs and (self.attention == "fused" or (self.attention == "source" and self.in_source[row]))

    def _existing(self, row: int) -> int | None:
        """The kernel that ``row`` joins, or None for one of its own."""
        sort = self._sort(row)
        if sort == "attention":
            return self.attention_kernel.get(self.group[row])
        if sort != "stream" or self.mode not in FUSES_STREAMS or not self.producers[row]:
            return None
        kernel = self.kernel_of[max(self.producers[row])]
        return kernel if self._joins(row, kernel) else None

    def _joins(self, row: int, kernel: int) -> bool:
        first = self.members[kernel][0]
        if not all(self.kernel_of[other] == kernel or other < first for other in self.producers[row]):
            return False
        if self.sorts[kernel] == "product":
            return self.mode in FUSES_EPILOGUES and self._is_epilogue(row, first)
        return (
            self.sorts[kernel] == "stream"
            and self._chains(row)
            and all(self._chains(other) and self._same_space(row, other) for other in self.members[kernel])
        )

    def _is_epilogue(self, row: int, product: int) -> bool:
        return bool(self.family[row] == "elementwise" and self.elements[row] == self.outputs[product])

    def _chains(self, row: int) -> bool:
        return self.family[row] in {"elementwise", "rowwise"} or self.kind[row] in _CHAINED_MOVEMENT

    def _same_space(self, row: int, other: int) -> bool:
        """Same elements, and the same rows where both reduce along one."""
        rowwise = self.family[row] == self.family[other] == "rowwise"
        return self.elements[row] == self.elements[other] and (not rowwise or self.cols[row] == self.cols[other])
