"""Which blocks explain zeros: written down by hand, and hidden among stray zeros."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel.extraction.weights.block_shapes import block_mask, explaining_mask, follows_two_of_four


def expanded(grid: list[list[int]], block: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A weight whose blocks are kept where ``grid`` is 1, cut to ``shape``."""
    return np.kron(np.array(grid, dtype=bool), np.ones(block, dtype=bool))[: shape[0], : shape[1]]


def random_grid(seed: int, rows: int, cols: int, kept: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, cols)) < kept


def test_ragged_blocks_are_found() -> None:
    nonzero = expanded([[1, 0, 1], [0, 1, 0], [1, 1, 0]], (4, 6), (10, 15))
    mask = explaining_mask(nonzero)
    assert mask is not None
    assert mask.block == (4, 6)
    assert mask.kept.tolist() == [[True, False, True], [False, True, False], [True, True, False]]


def test_the_largest_block_wins_where_smaller_ones_explain_as_much() -> None:
    nonzero = np.kron(random_grid(1, 3, 4), np.ones((32, 64), dtype=bool))
    assert explaining_mask(nonzero).block == (32, 64)  # 16x16 and 32x32 explain the same zeros


@pytest.mark.parametrize(("axis", "block"), [(0, (1, 60)), (1, (40, 1))])
def test_whole_rows_and_columns(axis: int, block: tuple[int, int]) -> None:
    nonzero = np.ones((40, 60), dtype=bool)
    np.moveaxis(nonzero, axis, 0)[[3, 17, 18]] = False
    mask = explaining_mask(nonzero)
    assert mask is not None
    assert mask.block == block
    assert mask.total_blocks - mask.kept_blocks == 3


def test_a_weight_without_any_value_is_one_empty_block() -> None:
    mask = explaining_mask(np.zeros((5, 7), dtype=bool))
    assert mask is not None
    assert (mask.block, mask.kept_blocks) == ((5, 7), 0)


@pytest.mark.parametrize("where", [(0, 0), (63, 95), (63, 40), (20, 95), (31, 17)])
def test_one_stray_zero_is_no_block(where: tuple[int, int]) -> None:
    nonzero = np.ones((64, 96), dtype=bool)
    nonzero[where] = False
    assert explaining_mask(nonzero) is None


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", range(4))
def test_independent_zeros_are_no_blocks_at_any_density(seed: int, density: float) -> None:
    assert explaining_mask(random_grid(seed, 256, 192, density)) is None


@pytest.mark.parametrize("stray", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize("block", [(16, 16), (32, 8), (48, 32), (4, 4)])
def test_stray_zeros_do_not_hide_blocks(block: tuple[int, int], stray: float) -> None:
    kept = np.kron(random_grid(2, 384 // block[0], 384 // block[1]), np.ones(block, dtype=bool))
    nonzero = kept & ~random_grid(3, *kept.shape, stray)
    mask = explaining_mask(nonzero)
    assert mask is not None
    assert mask.block == block
    assert (np.kron(mask.kept, np.ones(block, dtype=bool)) == kept).all()


def test_two_of_four() -> None:
    nonzero = np.tile(np.array([[1, 1, 0, 0], [0, 1, 0, 1]], dtype=bool), (3, 5))
    assert follows_two_of_four(nonzero)
    nonzero[0, 2] = True
    assert not follows_two_of_four(nonzero)
    assert not follows_two_of_four(np.zeros((4, 6), dtype=bool))  # six inputs are no whole fours


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a block of 8x4 does not fit a weight of 6x4"):
        block_mask(np.ones((6, 4), dtype=bool), (8, 4))
