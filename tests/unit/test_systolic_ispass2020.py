"""SCALE-Sim's first version (ISPASS 2020): numbers of that tool, and derivations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel.backends.systolic import compute_cycles

Shape = tuple[int, int, int]
Array = tuple[int, int]
TOOL: list[tuple[Array, Shape, dict[str, int]]] = [  # (rows, cols), (m, k, n), cycles: runs of the Arm repository's version
    ((128, 128), (256, 768, 256), {"ws": 7680, "os": 3200, "is": 7668}),
    ((128, 128), (197, 192, 192), {"ws": 1940, "os": 841, "is": 1926}),
    ((16, 16), (197, 64, 48), {"ws": 2940, "os": 2511, "is": 4896}),
]


def first(shape: Shape, array: Array, dataflow: str) -> int:
    sizes = dict(zip(("m", "k", "n", "rows", "cols"), (*shape, *array), strict=True))
    return int(compute_cycles(**sizes, dataflow=dataflow, rule="ispass-2020"))


@pytest.mark.parametrize(("array", "shape", "cycles"), TOOL)
def test_equals_the_tool(array: Array, shape: Shape, cycles: dict[str, int]) -> None:
    assert {dataflow: first(shape, array, dataflow) for dataflow in cycles} == cycles


def test_edge_folds_are_clipped() -> None:
    """20 x 6 x 5 on 4 x 4: folds of 4 and 2 rows by 4 and 1 columns; load r, then r rows, c columns and 20 to stream."""
    expected = sum(2 * r + c + 20 for r in (4, 2) for c in (4, 1))
    assert first((20, 6, 5), (4, 4), "ws") == expected
    assert first((5, 6, 20), (4, 4), "is") == expected - 4, "input stationary counts one cycle less for each of 4 folds"
    assert compute_cycles(m=20, k=6, n=5, rows=4, cols=4, dataflow="ws") > expected


def test_short_reductions_are_stacked() -> None:
    """k = 3 on 8 rows: two column tiles above each other, loaded in turn; 10 columns of 4 are 2 + 1 tiles."""
    two, one = 2 * 3 + 4 + 3 + 20, 1 * 3 + 2 + 3 + 20
    assert first((20, 3, 10), (8, 4), "ws") == two + one


def test_output_stationary_folds_overlap() -> None:
    """2 x 2 whole folds of 100 cycles; first outputs after 100 + 3, then a fold every 100, the last takes 4 rows and 1."""
    assert first((8, 100, 8), (4, 4), "os") == (100 + 3) + 3 * 100 + 1 - 4 + 4
    assert compute_cycles(m=8, k=100, n=8, rows=4, cols=4, dataflow="os") == 4 * (4 + 4 + 100 - 2) - 1


def test_arrays_broadcast_and_nothing_costs_nothing() -> None:
    shape = {"m": np.array([197, 0]), "k": 64, "n": 48, "rows": 16, "cols": 16, "rule": "ispass-2020"}
    assert compute_cycles(**shape, dataflow="ws").tolist() == [2940, 0]
    assert compute_cycles(**shape, dataflow="os").tolist() == [2511, 0]
    assert compute_cycles(**shape, dataflow="ws").dtype == np.int64


def test_masks_and_unknown_rules_are_refused() -> None:
    shape = {"m": 4, "k": 4, "n": 4, "rows": 2, "cols": 2, "dataflow": "ws"}
    with pytest.raises(ValueError, match="needs rule 'scale-sim'"):
        compute_cycles(**shape, occupied_tiles=1, rule="ispass-2020")
    with pytest.raises(ValueError, match="'scale-sim' or 'ispass-2020', got 'v1'"):
        compute_cycles(**shape, rule="v1")
