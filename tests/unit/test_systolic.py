"""Closed forms of the systolic array; every expected value is its derivation."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from hwmodel.backends.systolic import (
    access_counts,
    compute_cycles,
    compute_utilisation,
    cycles_per_fold,
    folds,
    mapping_efficiency,
    overall_utilisation,
)

TPU = {"rows": 128, "cols": 128}


def test_weight_stationary_qkv_of_deit_tiny() -> None:
    """ceil(192 / 128) x ceil(576 / 128) tiles of weights; load 128, stream 197, skew 127 + 127."""
    tiles = ceil(192 / 128) * ceil(576 / 128)
    per_fold = 128 + 197 + 127 + 127
    assert compute_cycles(m=197, k=192, n=576, **TPU, dataflow="ws") == tiles * per_fold - 1 == 5789


def test_output_stationary_loads_nothing() -> None:
    tiles = ceil(197 / 128) * ceil(576 / 128)
    per_fold = 192 + 127 + 127
    assert compute_cycles(m=197, k=192, n=576, **TPU, dataflow="os") == tiles * per_fold - 1 == 4459


def test_input_stationary_swaps_inputs_and_weights() -> None:
    tiles = ceil(192 / 128) * ceil(197 / 128)
    per_fold = 128 + 576 + 127 + 127
    assert compute_cycles(m=197, k=192, n=576, **TPU, dataflow="is") == tiles * per_fold - 1 == 3831
    assert compute_cycles(m=576, k=192, n=197, **TPU, dataflow="ws") == 3831


def test_array_sides_are_not_interchangeable() -> None:
    """rows hold k, cols hold n: ceil(8 / 4) * ceil(8 / 8) folds of 2 * 4 + 8 + 3 - 2."""
    assert compute_cycles(m=3, k=8, n=8, rows=4, cols=8, dataflow="ws") == 2 * (2 * 4 + 8 + 3 - 2) - 1


def test_facts_of_deit_base_fc1_with_18_of_36_tiles() -> None:
    """197 x 384 x 1536 on 128 x 128: 3 * 12 tiles of 2 * 128 + 128 + 197 - 2 cycles."""
    size = {"m": 197, "k": 384, "n": 1536, **TPU, "dataflow": "ws"}
    assert folds(**size) == 3 * 12
    assert compute_cycles(**size, occupied_tiles=36) == compute_cycles(**size) == 36 * 579 - 1
    assert compute_cycles(**size, occupied_tiles=18) == 18 * 579 - 1 == 10421
    assert compute_cycles(**size, occupied_tiles=0) == 0
    assert compute_cycles(**size, occupied_tiles=1) == 579 - 1


def test_expected_tiles_may_be_a_fraction() -> None:
    assert compute_cycles(m=197, k=384, n=1536, **TPU, dataflow="ws", occupied_tiles=17.5) == 17.5 * 579 - 1


@pytest.mark.parametrize("dataflow", ["os", "is"])
def test_tiles_cannot_be_skipped_where_weights_stream(dataflow: str) -> None:
    with pytest.raises(ValueError, match=f"dataflow 'ws': under '{dataflow}'"):
        compute_cycles(m=4, k=4, n=4, rows=2, cols=2, dataflow=dataflow, occupied_tiles=1)


@pytest.mark.parametrize("tiles", [-1, 5])
def test_impossible_tile_counts_are_refused(tiles: int) -> None:
    with pytest.raises(ValueError, match="between 0 and all tiles"):
        compute_cycles(m=4, k=4, n=4, rows=2, cols=2, dataflow="ws", occupied_tiles=tiles)


def test_bad_array_or_dataflow_is_refused() -> None:
    with pytest.raises(ValueError, match="'ws', 'os' or 'is', got 'WS'"):
        compute_cycles(m=4, k=4, n=4, rows=2, cols=2, dataflow="WS")
    with pytest.raises(ValueError, match="at least one row"):
        compute_cycles(m=4, k=4, n=4, rows=0, cols=2, dataflow="ws")


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
@pytest.mark.parametrize("empty", ["m", "k", "n"])
def test_nothing_costs_nothing(dataflow: str, empty: str) -> None:
    sizes = {"m": 3, "k": 4, "n": 5} | {empty: 0}
    assert compute_cycles(**sizes, rows=2, cols=2, dataflow=dataflow) == 0
    assert all(count == 0 for count in access_counts(**sizes, rows=2, cols=2, dataflow=dataflow))


def test_arrays_broadcast_and_stay_integers() -> None:
    cycles = compute_cycles(m=np.array([1, 197]), k=192, n=np.array([[192], [0]]), **TPU, dataflow="ws")
    assert cycles.dtype == np.int64
    assert cycles.tolist() == [[4 * (2 * 128 + 128 + 1 - 2) - 1, 4 * (2 * 128 + 128 + 197 - 2) - 1], [0, 0]]
    designs = compute_cycles(m=197, k=np.array([192, 384]), n=192, rows=np.array([[128], [64]]), cols=128, dataflow="ws")
    assert designs.tolist() == [[2 * 2 * 579 - 1, 3 * 2 * 579 - 1], [3 * 2 * (128 + 128 + 195) - 1, 6 * 2 * (128 + 128 + 195) - 1]]


def test_large_products_do_not_overflow() -> None:
    cycles = compute_cycles(m=1 << 20, k=1 << 20, n=1 << 20, rows=1, cols=1, dataflow="ws")
    assert int(cycles) == (1 << 40) * (2 + 1 + (1 << 20) - 2) - 1


def test_utilisations_of_a_ragged_product() -> None:
    """20 x 40 x 30 on 8 x 8: 5 * 4 folds of 2 * 8 + 8 + 20 - 2."""
    size = {"m": 20, "k": 40, "n": 30, "rows": 8, "cols": 8, "dataflow": "ws"}
    cycles = 5 * 4 * (2 * 8 + 8 + 20 - 2) - 1
    assert overall_utilisation(**size) == pytest.approx(20 * 40 * 30 / (cycles * 64))
    assert mapping_efficiency(**size) == pytest.approx(40 * 30 / (5 * 4 * 64))
    assert compute_utilisation(**size) == pytest.approx(40 * 30 / (5 * 4 * 64) * 20 / (2 * 8 + 2 * 8 + 20 - 3))
    assert compute_utilisation(**size | {"dataflow": "os"}) == pytest.approx(20 * 30 / (3 * 4 * 64) * 40 / (8 + 8 + 40 - 2))


def test_utilisation_quirks_of_the_tool() -> None:
    """One cycle short, so two MACs in 2 * (1 + 1 + 1 - 2) - 1 cycles; and nothing to divide by for one MAC."""
    assert overall_utilisation(m=2, k=1, n=1, rows=1, cols=1, dataflow="os") == 2.0
    assert np.isnan(overall_utilisation(m=1, k=1, n=1, rows=1, cols=1, dataflow="os"))


def test_access_counts_by_dataflow() -> None:
    size = {"m": 20, "k": 40, "n": 30, "rows": 8, "cols": 8}
    partial = 20 * 30 * 5  # each of ceil(40 / 8) folds of k writes its partial sums
    assert access_counts(**size, dataflow="ws") == (20 * 40 * 4, 40 * 30, partial, 20 * 40, 40 * 30, partial)
    assert access_counts(**size, dataflow="is") == (20 * 40, 40 * 30 * 3, partial, 20 * 40, 40 * 30, partial)
    extra = 3 * 4 * (8 + 8)  # rows + cols too many per fold
    assert access_counts(**size, dataflow="os") == (20 * 40 * 4, 40 * 30 * 3, 20 * 30 + extra, 20 * 40, 40 * 30, 20 * 30)


def test_corrected_counts_are_asked_for_by_name() -> None:
    """Only results leave for DRAM, and no rows + cols words per fold are made up; everything else is the tool's."""
    size = {"m": 20, "k": 40, "n": 30, "rows": 8, "cols": 8}
    for dataflow in ("ws", "is", "os"):
        tool, ours = (access_counts(**size, dataflow=dataflow, counting=name) for name in ("scale-sim", "corrected"))
        assert ours[:2] == tool[:2]
        assert ours[3:5] == tool[3:5]
        assert ours.ofmap_dram_writes == 20 * 30
        assert ours.ofmap_sram_writes == 20 * 30 * (1 if dataflow == "os" else 5)
    with pytest.raises(ValueError, match="'scale-sim' or 'corrected', got 'mine'"):
        access_counts(**size, dataflow="ws", counting="mine")


def test_published_totals_of_dense_deit_on_one_array() -> None:
    """Facts of real runs: DeiT-T 360 342, DeiT-S 936 538, DeiT-B 3 373 894 cycles (ws, batch 1), classifier included."""
    totals = {192: 360_342, 384: 936_538, 768: 3_373_894}
    for width, total in totals.items():
        layers = [(196, 768, width, 1), (1, width, 1000, 1)]
        block = [(197, width, 3 * width, 1), (197, width, width, 1), (197, width, 4 * width, 1), (197, 4 * width, width, 1)]
        block += [(197, 64, 197, width // 64), (197, 197, 64, width // 64)]
        layers += [(m, k, n, 12 * count) for m, k, n, count in block]
        m, k, n, count = np.array(layers).T
        assert (count * compute_cycles(m=m, k=k, n=n, **TPU, dataflow="ws")).sum() == total


def test_cycles_per_fold_is_exported_for_explanations() -> None:
    assert cycles_per_fold(m=197, k=192, n=576, **TPU, dataflow="ws") == 579
