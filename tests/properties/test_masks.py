"""Block masks against counting element by element, and against drawing masks at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import block_masks, expected_masks, weights_and_blocks

import hwmodel as hw
from hwmodel.ir.masks import RULES, BlockMask, ExpectedMask, Mask, Shape
from hwmodel.ir.storage import mask_from_document, mask_to_document

tiles = st.tuples(st.integers(1, 30), st.integers(1, 30))


def elements(mask: BlockMask) -> np.ndarray:
    """The weight's elements, True where their block is kept."""
    rows = np.arange(mask.shape[0]) // mask.block[0]
    cols = np.arange(mask.shape[1]) // mask.block[1]
    return mask.kept[np.ix_(rows, cols)]


def counted(mask: BlockMask, tile: Shape) -> list[list[bool]]:
    """Which tiles hold a kept element, one tile after the other."""
    whole = elements(mask)
    return [
        [bool(whole[row : row + tile[0], col : col + tile[1]].any()) for col in range(0, mask.shape[1], tile[1])]
        for row in range(0, mask.shape[0], tile[0])
    ]


@given(block_masks(), tiles)
def test_occupied_tiles_equal_a_count_of_elements(mask: BlockMask, tile: Shape) -> None:
    assert mask.tile_occupancy(*tile).tolist() == counted(mask, tile)
    assert mask.occupied_tiles(*tile) == sum(map(sum, counted(mask, tile)))


@given(block_masks())
def test_kept_weights_equal_a_count_of_elements(mask: BlockMask) -> None:
    assert mask.kept_weights == elements(mask).sum()
    assert mask.occupied_tiles(1, 1) == elements(mask).sum()


@given(block_masks(), tiles)
def test_one_kept_block_more_never_frees_a_tile(mask: BlockMask, tile: Shape) -> None:
    missing = np.argwhere(~mask.kept)
    assume(len(missing))
    kept = mask.kept.copy()
    kept[tuple(missing[len(missing) // 2])] = True
    more = BlockMask(mask.shape, mask.block, kept)
    assert (mask.tile_occupancy(*tile) <= more.tile_occupancy(*tile)).all()
    assert mask.kept_weights < more.kept_weights


@given(weights_and_blocks(), tiles)
def test_a_full_mask_occupies_every_tile(sizes: tuple[Shape, Shape], tile: Shape) -> None:
    (n, k), block = sizes
    everything = -(-n // tile[0]) * -(-k // tile[1])
    full = BlockMask.full((n, k), block)
    assert full.occupied_tiles(*tile) == everything
    assert ExpectedMask((n, k), block, full.total_blocks).occupied_tiles(*tile) == everything
    assert full.kept_weights == n * k


@given(block_masks() | expected_masks())
def test_documents_load_back_equal(mask: Mask) -> None:
    assert mask_from_document(mask_to_document(mask)) == mask


@given(expected_masks(), tiles)
def test_expected_tiles_grow_with_the_kept_blocks(mask: ExpectedMask, tile: Shape) -> None:
    assume(mask.kept_blocks < mask.total_blocks)
    more = ExpectedMask(mask.shape, mask.block, mask.kept_blocks + 1)
    assert mask.occupied_tiles(*tile) <= more.occupied_tiles(*tile)


@given(expected_masks(), tiles)
def test_expected_tiles_lie_between_one_and_all(mask: ExpectedMask, tile: Shape) -> None:
    everything = -(-mask.shape[0] // tile[0]) * -(-mask.shape[1] // tile[1])
    expected = mask.occupied_tiles(*tile)
    assert min(mask.kept_blocks, 1) <= expected <= everything
    assert 0 <= mask.occupied_tiles_std(*tile) <= everything / 2


@given(expected_masks(10), tiles)
def test_certain_rules_and_the_expectation_agree_where_nothing_is_left_to_chance(mask: ExpectedMask, tile: Shape) -> None:
    """Tiles of one block are occupied by exactly the kept blocks, wherever these lie."""
    density = mask.kept_blocks / mask.total_blocks
    by_rule = [hw.expected_mask(mask.shape, mask.block, density, rule).occupied_tiles(*mask.block) for rule in RULES]
    assert by_rule == [mask.kept_blocks] * len(RULES)


SAMPLES = 4000


@pytest.mark.parametrize(
    ("shape", "block", "tile", "kept"),
    [
        ((96, 128), (16, 16), (32, 32), 7),  # whole tiles of 2 x 2 blocks
        ((100, 90), (16, 8), (48, 32), 9),  # ragged blocks and tiles
        ((64, 64), (16, 16), (24, 40), 5),  # tiles that straddle blocks: neighbours share some
        ((60, 60), (20, 20), (5, 5), 4),  # blocks larger than tiles
    ],
)
def test_expectation_and_spread_match_masks_drawn_at_random(shape: Shape, block: Shape, tile: Shape, kept: int) -> None:
    expected = ExpectedMask(shape, block, kept)
    random = np.random.default_rng(20260101)
    grid = np.arange(expected.total_blocks) < kept
    rows, cols = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    drawn = np.array(
        [BlockMask(shape, block, random.permutation(grid).reshape(rows, cols)).occupied_tiles(*tile) for _ in range(SAMPLES)]
    )
    std = expected.occupied_tiles_std(*tile)
    assert drawn.mean() == pytest.approx(expected.occupied_tiles(*tile), abs=4 * std / SAMPLES**0.5)
    assert drawn.std() == pytest.approx(std, rel=0.08)


def test_expected_weights_match_masks_drawn_at_random() -> None:
    shape, block, kept = (50, 70), (16, 16), 6
    random = np.random.default_rng(7)
    grid = np.arange(4 * 5) < kept
    drawn = [BlockMask(shape, block, random.permutation(grid).reshape(4, 5)).kept_weights for _ in range(SAMPLES)]
    assert np.mean(drawn) == pytest.approx(ExpectedMask(shape, block, kept).kept_weights, rel=0.01)
