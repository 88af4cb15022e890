"""The cycle rule of SCALE-Sim's first version (Samajdar et al., ISPASS 2020), which differs from 2.x and 3.x.

Edge folds are clipped to the rows and columns they use. ``os`` folds follow each other without a gap: operands of the
next fold enter while outputs of the last one leave. Where a reduction is shorter than the array, ``ws`` and ``is`` put
several column tiles above each other (``rows // k`` of them), and each of them is loaded in turn.

Derived by reading the loops of github.com/ARM-software/SCALE-Sim (``sram_traffic_{ws,is,os}.py``, commit 33850c9); equal
to the nine numbers of that tool in ``tests/unit/test_systolic_ispass2020.py``. Numbers here are durations: that version
prints the first cycle after the last one, where 3.0.0 prints the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cycles(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> Array:
    """Cycles of one dense (m, k) x (k, n) on an array of ``rows`` x ``cols``; zero without work. Arrays broadcast."""
    m, k, n, rows, cols = np.broadcast_arrays(m, k, n, rows, cols)
    work = (m > 0) & (k > 0) & (n > 0)
    m, k, n = (np.where(work, size, 1) for size in (m, k, n))
    if dataflow == "ws":
        total, _ = _stationary(streamed=m, k=k, kept=n, rows=rows, cols=cols)
    elif dataflow == "is":
        total, folds = _stationary(streamed=n, k=k, kept=m, rows=rows, cols=cols)
        total = total - folds
    else:
        total = np.maximum(_os_reads(m, k, n, rows, cols), _os_writes(m, k, n, rows, cols))
    cycles_with_work: Array = np.where(work, total, 0)
    return cycles_with_work


def _ceil_divide(count: Array, unit: Array) -> Array:
    divided: Array = -(-count // unit)
    return divided


def _stationary(*, streamed: Array, k: Array, kept: Array, rows: Array, cols: Array) -> tuple[Array, Array]:
    """Cycles and folds where one operand, ``k`` x ``kept``, stays: load, stream, and wait for used rows and columns."""
    row_folds = _ceil_divide(k, rows)
    stacked = np.maximum(rows // k, 1)
    col_folds = _ceil_divide(kept, cols * stacked)
    folded = 2 * k * col_folds + kept * row_folds + streamed * row_folds * col_folds
    last = kept - (col_folds - 1) * cols * stacked
    loads = k * ((col_folds - 1) * stacked + _ceil_divide(last, cols))
    single = loads + (k + streamed) * col_folds + cols * (col_folds - 1) + np.minimum(last, cols)
    total: Array = np.where(row_folds > 1, folded, single)
    return total, row_folds * col_folds


def _os_reads(m: Array, k: Array, n: Array, rows: Array, cols: Array) -> Array:
    """Cycle after the last operand entered: ``k`` for every fold, and the skew of the last row or column in use."""
    row_folds, col_folds = _ceil_divide(m, rows), _ceil_divide(n, cols)
    whole = k * row_folds * col_folds
    last_rows, last_cols = m - (row_folds - 1) * rows, n - (col_folds - 1) * cols
    weights = np.maximum(whole + last_cols - 1, np.where(col_folds > 1, whole - k * row_folds + cols - 1, 0))
    inputs = np.maximum(whole + last_rows - 1, np.where(row_folds > 1, whole - k + rows - 1, 0))
    reads: Array = np.where(k > 1, np.maximum(weights, inputs), weights)
    return reads


def _os_writes(m: Array, k: Array, n: Array, rows: Array, cols: Array) -> Array:
    """Cycle after the last output left: a row of outputs a cycle, and no fold before the one above has left."""
    row_folds, col_folds = _ceil_divide(m, rows), _ceil_divide(n, cols)
    last_rows, last_cols = m - (row_folds - 1) * rows, n - (col_folds - 1) * cols
    within = col_folds * (row_folds - 1) * np.maximum(k, rows)
    between = k - last_rows + 1
    inner = np.maximum(col_folds - 2, 0) * np.maximum(between, last_rows)
    outer = np.where(col_folds > 1, np.maximum(between + last_cols - cols, last_rows), 0)
    first = k + np.minimum(n, cols) - 1
    writes: Array = first + within + inner + outer + last_rows
    return writes
