"""From kernels to columns: what each kernel multiplies, moves and computes. Counts only, no hardware rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, TextArray, Workload
from hwmodel.backends.gpu.fusion import FOLDS_CONSTANTS, FUSES_STREAMS, Kernel, bias_rows
from hwmodel.backends.gpu.vector import (
    BLOCK_PER_ROW,
    CHEAP_TRANSCENDENTALS,
    GATED,
    GATES,
    OVERLAP,
    issue_rate,
    launch_share,
    overlap_of,
    reads,
    softmax_slow,
)
from hwmodel.ir.kinds import TRANSCENDENTAL

FP32_BYTES: Final = 4.0
AUTOCAST_IN_FP32: Final = frozenset({"add", "concat"})
"""Besides row-wise operators: the residual stream, which autocast leaves in fp32 (class token and position are)."""
CAST_BYTES: Final = 6.0
"""Reading fp32 and writing 16 bits: one autocast."""
CHEAP_SHARE: Final = 0.35
"""Energy of an exponential over that of GELU, sine, cosine (FlagPerf power rows: 150 of 430 pJ)."""


@dataclass(frozen=True, eq=False)
class ProductColumns:
    """One entry per product: the row that pays, its dimensions and bytes, and whether other operators ride in its kernel."""

    row: IntArray
    batch: FloatArray
    m: FloatArray
    k: FloatArray
    n: FloatArray
    element_bytes: FloatArray
    moved_bytes: FloatArray
    dtype: TextArray
    fused: BoolArray


@dataclass(frozen=True, eq=False)
class AttentionColumns:
    """One entry per fused attention."""

    row: IntArray
    batch: FloatArray
    m: FloatArray
    k: FloatArray
    n: FloatArray
    causal: BoolArray
    element_bytes: FloatArray
    moved_bytes: FloatArray
    dtype: TextArray


@dataclass(frozen=True, eq=False)
class StreamColumns:
    """One entry per kernel without products. ``operations`` and ``transcendentals`` are counted for energy."""

    row: IntArray
    issue: FloatArray
    rows: FloatArray
    moved_bytes: FloatArray
    launch: FloatArray
    slow: FloatArray
    overlap: FloatArray
    operations: FloatArray
    transcendentals: FloatArray


@dataclass(frozen=True, eq=False)
class Lowered:
    """All kernels of one forward pass as three tables; one row of the trace may pay for several entries."""

    products: ProductColumns
    attentions: AttentionColumns
    streams: StreamColumns


@dataclass(frozen=True, slots=True)
class _Stream:
    row: int
    issue: float
    rows: float
    moved_bytes: float
    launch: float
    slow: float
    overlap: float
    operations: float
    transcendentals: float


class Lowering:
    """Turns kernels into entries; one instance per forward pass."""

    def __init__(self, workload: Workload, mode: str, cache_slow: float = 1.0) -> None:
        self.workload, self.mode, self.cache_slow = workload, mode, cache_slow
        self.kind, self.family = workload.kind.tolist(), workload.family.tolist()
        self.elements, self.cols = workload.elements.tolist(), workload.cols.tolist()
        self.outputs = workload.output_elements.tolist()
        self.own_bytes = workload.activation_bytes.tolist()
        self.autocast = [dtype.startswith("amp-") for dtype in workload.dtype.tolist()]
        self.stream_bytes = [self._stream_bytes(row) for row in range(len(workload))]
        self.result_bytes = [self._result_bytes(row) for row in range(len(workload))]
        self.parameter_bytes = (workload.weight_elements * workload.weight_element_bytes).tolist()
        self.inputs = workload.input_elements.tolist()
        self.scores = ((workload.role == "scores") & workload.fused_in_source).tolist()
        folds = mode in FOLDS_CONSTANTS
        self.vector = [bias and folds for bias in bias_rows(workload)]

    def lower(self, kernels: list[Kernel]) -> Lowered:
        """Entries of all kernels."""
        products = [
            (kernel.row, self._epilogue_bytes(kernel), len(kernel.members) > 1) for kernel in kernels if kernel.sort == "product"
        ]
        attentions = [kernel for kernel in kernels if kernel.sort == "attention"]
        streams = [self._stream(kernel) for kernel in kernels if kernel.sort == "stream"]
        for kernel in kernels:
            streams += self._casts(kernel)
        streams += [self._lay_out_heads(kernel.row) for kernel in kernels if self._needs_heads_apart(kernel)]
        streams += [self._cache_write(kernel) for kernel in kernels if self._writes_cache(kernel)]
        by_hand = [kernel.row for kernel in kernels if kernel.sort == "math-attention"]
        streams += [self._softmax_by_hand(row) for row in by_hand]
        return Lowered(self._products(products, by_hand), self._attentions(attentions), _stream_columns(streams))

    def _stream_bytes(self, row: int) -> float:
        wide = self.family[row] == "rowwise" or self.kind[row] in AUTOCAST_IN_FP32
        return FP32_BYTES if self.autocast[row] and wide else self.own_bytes[row]

    def _result_bytes(self, row: int) -> float:
        """Bytes of a result: under autocast a compiled normalisation writes the 16 bits that the product behind it reads."""
        narrowed = self.mode in FUSES_STREAMS and self.family[row] == "rowwise"
        return self.own_bytes[row] if narrowed else self.stream_bytes[row]

    def _products(self, pairs: list[tuple[int, float, bool]], by_hand: list[int]) -> ProductColumns:
        """Products of the trace, then scores and context of hand-made attentions that run unfused."""
        work = self.workload
        rows = np.array([row for row, _, _ in pairs] + by_hand * 2, dtype=np.int64)
        plain, hand = len(pairs), len(by_hand)
        k, n = work.k[rows].astype(np.float64), work.n[rows].astype(np.float64)
        k[plain + hand :], n[plain + hand :] = work.n[by_hand], work.k[by_hand]
        size = work.activation_bytes[rows]
        moved = (work.input_elements + work.output_elements)[rows] * size + np.array(self.parameter_bytes)[rows]
        moved[:plain] += [extra for _, extra, _ in pairs]
        fused = np.array([more for _, _, more in pairs] + [False] * (2 * hand), dtype=np.bool_)
        batch, m = work.batch[rows].astype(np.float64), work.m[rows].astype(np.float64)
        moved[plain:] = (batch * (m * k + k * n + m * n) * size)[plain:]
        return ProductColumns(rows, batch, m, k, n, size, moved, work.dtype[rows], fused)

    def _attentions(self, kernels: list[Kernel]) -> AttentionColumns:
        """One entry per fused attention: dimensions of its scores, queries, keys, values and result moved once."""
        work = self.workload
        shapes = np.array([self._scores_row(kernel) for kernel in kernels], dtype=np.int64)
        batch, m, k, n = (column[shapes].astype(np.float64) for column in (work.batch, work.m, work.k, work.n))
        size = work.activation_bytes[shapes]
        hand_made = work.family[shapes] == "attention"
        own = (work.input_elements + work.output_elements)[shapes]
        moved = np.where(hand_made, own, batch * 2 * k * (m + n)) * size
        row = np.array([kernel.row for kernel in kernels], dtype=np.int64)
        return AttentionColumns(row, batch, m, k, n, work.causal[shapes], size, moved, work.dtype[shapes])

    def _scores_row(self, kernel: Kernel) -> int:
        """The member with queries, keys and head dimension: the first product (scores), or the hand-made attention."""
        shaped = [row for row in kernel.members if self.family[row] in {"product", "attention"}]
        return (shaped or [kernel.row])[0]

    def _external(self, members: tuple[int, ...]) -> Callable[[int], float]:
        inside = set(members)
        producers = self.workload.predecessors

        def read(row: int) -> float:
            """Bytes ``row`` reads from outside the kernel, in the formats of their producers where all are in the trace."""
            outside = [other for other in producers[row] if other not in inside]
            local = sum(self.outputs[other] for other in producers[row] if other in inside)
            if local + sum(self.outputs[other] for other in outside) == self.inputs[row]:
                activations = sum(self.outputs[other] * self.result_bytes[other] for other in outside if not self.vector[other])
            else:
                activations = max(self.inputs[row] - local, 0) * self.stream_bytes[row]
            return float(activations + self.parameter_bytes[row])

        return read

    def _written(self, members: tuple[int, ...]) -> float:
        """Bytes of results that something outside the kernel reads, or nothing at all (outputs of the model)."""
        inside = set(members)
        readers = self.workload.successors
        leaves = [row for row in members if not readers[row] or not inside.issuperset(readers[row])]
        return float(sum(self.outputs[row] * self.result_bytes[row] for row in leaves))

    def _stream(self, kernel: Kernel) -> _Stream:
        """A chain of operators: external reads, external writes, all the instructions."""
        members = kernel.members
        read = self._external(members)
        times = max(reads(self.kind[row], self.cols[row] * self.stream_bytes[row]) for row in members)
        moved = sum(map(read, members)) * times + self._written(members)
        return _Stream(
            row=kernel.row,
            issue=sum(self.elements[row] / issue_rate(self._physics(row)) for row in members),
            rows=max(self._blocks(row) for row in members),
            moved_bytes=moved,
            launch=max(launch_share(self.kind[row]) for row in members),
            slow=max(self._slow(row) for row in members),
            overlap=min(overlap_of(self._physics(row)) for row in members),
            operations=float(sum(self.elements[row] for row in members)),
            transcendentals=sum(self.elements[row] * _transcendental_share(self.kind[row]) for row in members),
        )

    def _physics(self, row: int) -> str:
        """The kind, or :data:`GATED` for an activation of two operands."""
        gated = self.kind[row] in GATES and self.inputs[row] == 2 * self.elements[row]
        return GATED if gated else self.kind[row]

    def _blocks(self, row: int) -> float:
        """Rows of a kernel that gives each to a block of threads, where rows are known; else 0."""
        apart = self._physics(row) in BLOCK_PER_ROW | {GATED}
        return self.elements[row] / self.cols[row] if apart and self.cols[row] else 0.0

    def _slow(self, row: int) -> float:
        return softmax_slow(self.cols[row], self.own_bytes[row]) if self.kind[row] == "softmax" else 1.0

    def _epilogue_bytes(self, kernel: Kernel) -> float:
        """Bytes that operators fused into a product read besides its result (a residual)."""
        read = self._external(kernel.members)
        return sum(map(read, kernel.members[1:]))

    def _casts(self, kernel: Kernel) -> list[_Stream]:
        """Autocast: a product's weight is cast whenever the model runs; in eager mode a normalised input as well."""
        row = kernel.row
        if kernel.sort != "product" or not self.autocast[row] or self.mode not in {"eager", "compiled"}:
            return []
        casts = [float(self.workload.weight_elements[row])]
        normalised = any(self.family[other] == "rowwise" for other in self.workload.predecessors[row])
        casts += [float(self.inputs[row])] if normalised and self.mode == "eager" else []
        return [self._plain(row, "cast", size, CAST_BYTES * size) for size in casts if size]

    def _needs_heads_apart(self, kernel: Kernel) -> bool:
        """Whether attention that the source fuses runs as products here: its trace holds no copies of the packed projection."""
        return kernel.sort == "product" and self.scores[kernel.row] and self.mode != "kernel"

    def _lay_out_heads(self, row: int) -> _Stream:
        """Batched products step through memory by one stride, so queries, keys and values are first laid out head by head."""
        work = self.workload
        values = float(self.inputs[row] + work.batch[row] * work.k[row] * work.n[row])
        return self._plain(row, "copy", values, 2 * values * self.own_bytes[row])

    def _writes_cache(self, kernel: Kernel) -> bool:
        return kernel.sort in {"attention", "math-attention"} and bool(self.workload.causal[kernel.row])

    def _cache_write(self, kernel: Kernel) -> _Stream:
        """Causal attention is a decoder's: it also copies keys and values into its cache, as the measured rows do."""
        row = kernel.row
        values = float(self.inputs[row] - self.outputs[row])
        return replace(self._plain(row, "copy", values, 2 * values * self.own_bytes[row]), slow=self.cache_slow)

    def _plain(self, row: int, kind: str, elements: float, moved: float) -> _Stream:
        share = elements * _transcendental_share(kind)
        return _Stream(row, elements / issue_rate(kind), 0.0, moved, launch_share(kind), 1.0, OVERLAP, elements, share)

    def _softmax_by_hand(self, row: int) -> _Stream:
        """Softmax between the scores and the context of a hand-made attention that runs unfused."""
        values = float(self.elements[row])
        softmax = self._plain(row, "softmax", values, 2 * values * self.own_bytes[row])
        return replace(softmax, slow=softmax_slow(self.cols[row], self.own_bytes[row]))


def _transcendental_share(kind: str) -> float:
    """Energy of one element over that of GELU: 0 where no special function is needed."""
    if kind in CHEAP_TRANSCENDENTALS or kind in {"softmax", "log_softmax"}:
        return CHEAP_SHARE
    return 1.0 if kind in TRANSCENDENTAL else 0.0


def _stream_columns(streams: list[_Stream]) -> StreamColumns:
    def column(name: str) -> FloatArray:
        return np.array([getattr(stream, name) for stream in streams], dtype=np.float64)

    rows = np.array([stream.row for stream in streams], dtype=np.int64)
    names = ("issue", "rows", "moved_bytes", "launch", "slow", "overlap", "operations", "transcendentals")
    return StreamColumns(rows, *(column(name) for name in names))
