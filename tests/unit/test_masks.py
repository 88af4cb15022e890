"""Block masks: what they hold, how they count hardware tiles, and what they refuse."""

from __future__ import annotations

import dataclasses
import pickle
from math import comb

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.ir.masks import RULES, BlockMask, ExpectedMask, Mask, grid_shape


def test_grid_counts_ragged_edges() -> None:
    assert grid_shape((768, 768), (32, 32)) == (24, 24)
    assert grid_shape((1000, 768), (32, 48)) == (31 + 1, 16)


def test_ragged_blocks_count_what_they_hold() -> None:
    """A 1000 x 768 classifier in 32 x 32 blocks: the last block row has 1000 - 31 * 32 = 8 rows."""
    kept = np.zeros((32, 24), dtype=np.bool_)
    kept[0, 0] = kept[31, 1] = True
    mask = BlockMask((1000, 768), (32, 32), kept)
    assert mask.kept_blocks == 2
    assert mask.total_blocks == 32 * 24
    assert mask.kept_fraction == 2 / (32 * 24)
    assert mask.kept_weights == 32 * 32 + 8 * 32
    assert BlockMask.full((1000, 768), (32, 32)).kept_weights == 1000 * 768


def test_tiles_larger_than_blocks_need_one_kept_block() -> None:
    """2 x 2 blocks of 32 in one tile of 64: four tiles, two of them with a kept block."""
    kept = np.zeros((4, 4), dtype=np.bool_)
    kept[0, 1] = kept[1, 0] = kept[3, 3] = True
    mask = BlockMask((128, 128), (32, 32), kept)
    assert mask.occupied_tiles(64, 64) == 2
    assert mask.tile_occupancy(64, 64).tolist() == [[True, False], [False, True]]
    assert mask.occupied_tiles(128, 128) == 1
    assert mask.occupied_tiles(32, 32) == 3
    assert mask.occupied_tiles(32, 128) == 3
    assert mask.occupied_tiles(64, 32) == 3


def test_tiles_smaller_than_blocks_multiply() -> None:
    kept = np.array([[True, False], [False, False]])
    mask = BlockMask((64, 64), (32, 32), kept)
    assert mask.occupied_tiles(16, 16) == (32 // 16) * (32 // 16)
    assert mask.occupied_tiles(1, 1) == 32 * 32


def test_a_tile_that_straddles_two_blocks_is_occupied_by_either() -> None:
    """Tiles of 48 over blocks of 32: elements 0-47 touch blocks 0 and 1, 48-95 touch 1 and 2, 96-127 block 3."""
    mask = BlockMask((128, 32), (32, 32), np.array([[False], [True], [False], [False]]))
    assert mask.tile_occupancy(48, 32).tolist() == [[True], [True], [False]]


def test_an_empty_mask_occupies_nothing() -> None:
    mask = BlockMask((64, 64), (32, 32), np.zeros((2, 2)))
    assert (mask.kept_blocks, mask.kept_weights, mask.occupied_tiles(128, 128)) == (0, 0, 0)


def test_a_stored_mask_is_certain() -> None:
    assert BlockMask.full((64, 64), (32, 32)).occupied_tiles_std(64, 64) == 0


def test_equal_masks_have_equal_digests_whatever_the_types_of_their_numbers() -> None:
    kept = np.eye(2, dtype=np.bool_)
    mask = BlockMask((64, 64), (32, 32), kept)
    sizes = np.array([64, 32])
    assert BlockMask((sizes[0], sizes[0]), (sizes[1], sizes[1]), kept) == mask  # type: ignore[arg-type]
    assert BlockMask([64, 64], [32, 32], kept.astype(int)) == mask  # type: ignore[arg-type]
    assert hash(BlockMask((64, 64), (32, 32), kept)) == hash(mask)
    assert mask.shape == (64, 64)


@pytest.mark.parametrize(
    "other",
    [
        BlockMask((64, 64), (32, 32), np.ones((2, 2))),
        BlockMask((64, 64), (32, 33), np.eye(2)),
        BlockMask((64, 63), (32, 32), np.eye(2)),
        ExpectedMask((64, 64), (32, 32), 2),
    ],
)
def test_masks_that_differ_anywhere_are_not_equal(other: Mask) -> None:
    mask = BlockMask((64, 64), (32, 32), np.eye(2))
    assert mask != other
    assert mask.digest != other.digest


def test_an_expected_and_a_full_mask_have_digests_of_their_own() -> None:
    shape, block = (64, 64), (32, 32)
    digests = {mask.digest for mask in (BlockMask.full(shape, block), *(ExpectedMask(shape, block, kept) for kept in range(5)))}
    assert len(digests) == 1 + 5


def test_a_mask_owns_its_grid() -> None:
    kept = np.ones((2, 2), dtype=np.bool_)
    mask = BlockMask((64, 64), (32, 32), kept)
    kept[0, 0] = False
    assert mask.kept_blocks == 4
    with pytest.raises(ValueError, match="read-only"):
        mask.kept[0, 0] = False


def test_a_changed_copy_counts_anew() -> None:
    """Tile counts are cached on the mask; a copy with other blocks must not inherit them."""
    mask = BlockMask.full((64, 64), (32, 32))
    assert mask.occupied_tiles(32, 32) == 4
    emptied = dataclasses.replace(mask, kept=np.zeros((2, 2)))
    assert emptied.occupied_tiles(32, 32) == 0


@pytest.mark.parametrize("mask", [BlockMask((64, 64), (32, 32), np.eye(2)), ExpectedMask((64, 64), (32, 32), 3)])
def test_masks_survive_pickling(mask: Mask) -> None:
    copy = pickle.loads(pickle.dumps(mask))
    assert copy == mask
    assert copy.digest == mask.digest
    assert isinstance(copy, Mask)


@pytest.mark.parametrize(
    ("shape", "block", "kept", "message"),
    [
        ((64, 64), (32, 32), np.ones((2, 3)), r"\(2, 3\), expected \(2, 2\)"),
        ((64, 64), (32, 32), np.ones(4), r"expected \(2, 2\)"),
        ((64, 64), (128, 32), np.ones((1, 2)), "128x32 does not fit a weight of 64x64"),
        ((64, 64), (0, 32), np.ones((1, 2)), "must be positive"),
        ((0, 64), (1, 1), np.ones((1, 64)), "must be positive"),
        ((64.5, 64), (32, 32), np.ones((3, 2)), "two whole numbers"),
        ((64, 64), (32,), np.ones((2, 2)), "two whole numbers"),
    ],
)
def test_grids_that_do_not_fit_are_refused(shape, block, kept, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMask(shape, block, kept)


@pytest.mark.parametrize("kept_blocks", [-1, 5, 1.5])
def test_expected_counts_outside_the_grid_are_refused(kept_blocks) -> None:
    with pytest.raises(ValueError, match="kept_blocks must be"):
        ExpectedMask((64, 64), (32, 32), kept_blocks)


@pytest.mark.parametrize("mask", [BlockMask.full((64, 64), (32, 32)), ExpectedMask((64, 64), (32, 32), 2)])
@pytest.mark.parametrize("tile", [(0, 32), (32, 0), (-1, 1)])
def test_tiles_without_elements_are_refused(mask: Mask, tile: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1x1"):
        mask.occupied_tiles(*tile)


# --- masks of which only the density is known ---------------------------------------------------------------------


def test_expected_tiles_are_hypergeometric() -> None:
    """16 blocks, 3 kept, tiles of 2 x 2 blocks: a tile is empty with probability C(12, 3) / C(16, 3)."""
    mask = ExpectedMask((128, 128), (32, 32), 3)
    assert mask.occupied_tiles(64, 64) == pytest.approx(4 * (1 - comb(12, 3) / comb(16, 3)), abs=1e-9)


def test_the_spread_of_expected_tiles_counts_pairs() -> None:
    """Variance of the number of empty tiles: 4 p + 12 q - (4 p)^2, with q for two tiles empty at once."""
    one, two = comb(12, 3) / comb(16, 3), comb(8, 3) / comb(16, 3)
    variance = 4 * one + 4 * 3 * two - (4 * one) ** 2
    assert ExpectedMask((128, 128), (32, 32), 3).occupied_tiles_std(64, 64) == pytest.approx(variance**0.5)


def test_tiles_of_one_block_are_exactly_the_kept_ones() -> None:
    """No rounding may creep in, at any size: a tile the size of a block is occupied where the block is kept."""
    for shape, block, kept in [((3072, 768), (32, 32), 594), ((3072, 768), (8, 8), 5941), ((3072, 768), (1, 1), 1_234_567)]:
        assert ExpectedMask(shape, block, kept).occupied_tiles(*block) == kept


@pytest.mark.parametrize("tile", [(1, 1), (7, 13), (32, 32), (128, 128), (1024, 1024)])
def test_expected_masks_at_both_ends_are_certain(tile: tuple[int, int]) -> None:
    shape, block = (100, 90), (32, 16)
    full = BlockMask.full(shape, block)
    assert ExpectedMask(shape, block, full.total_blocks).occupied_tiles(*tile) == full.occupied_tiles(*tile)
    assert ExpectedMask(shape, block, 0).occupied_tiles(*tile) == 0
    assert ExpectedMask(shape, block, 0).occupied_tiles_std(*tile) == 0
    assert ExpectedMask(shape, block, full.total_blocks).occupied_tiles_std(*tile) == 0


def test_expected_weights_are_the_kept_share() -> None:
    assert ExpectedMask((1000, 768), (32, 32), 192).kept_weights == 1000 * 768 * 192 / (32 * 24)


# --- from a density to a mask -------------------------------------------------------------------------------------


def test_density_keeps_a_rounded_count() -> None:
    assert hw.expected_mask((768, 768), (32, 32), 0.258).kept_blocks == round(0.258 * 24 * 24)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_every_rule_keeps_the_same_count(rule, density: float) -> None:
    mask = hw.expected_mask((200, 300), (32, 16), density, rule)
    assert mask.kept_blocks == round(density * 7 * 19)
    assert isinstance(mask, Mask)


def test_row_clusters_keep_whole_rows_first() -> None:
    mask = hw.expected_mask((128, 128), (32, 32), 6 / 16, "row-clustered")
    assert mask.kept.tolist() == [[True] * 4, [True, True, False, False], [False] * 4, [False] * 4]


def test_tile_clusters_fill_one_128_tile_after_the_other() -> None:
    """256 x 256 in 64 x 64 blocks: four clusters of 2 x 2 blocks; five kept blocks fill the first and start the second."""
    mask = hw.expected_mask((256, 256), (64, 64), 5 / 16, "tile-clustered")
    assert mask.kept.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask.occupied_tiles(128, 128) == 2


def test_clusters_occupy_fewer_tiles_than_scattered_blocks() -> None:
    shape, block = (768, 768), (32, 32)
    scattered, rows, tiles = (hw.expected_mask(shape, block, 0.25, rule).occupied_tiles(128, 128) for rule in RULES)
    assert tiles == 6 * 6 / 4
    assert rows == 2 * 6
    assert scattered > 0.98 * 36


@pytest.mark.parametrize("density", [-0.01, 1.01, float("nan"), float("inf")])
def test_densities_outside_their_range_are_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \[0, 1\]"):
        hw.expected_mask((64, 64), (32, 32), density)


def test_unknown_rules_and_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'clustered'.*uniform, row-clustered, tile-clustered"):
        hw.expected_mask((64, 64), (32, 32), 0.5, "clustered")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="128x128 does not fit a weight of 64x64"):
        hw.expected_mask((64, 64), (128, 128), 0.5)
