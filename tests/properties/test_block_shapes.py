"""What holds for every pattern of zeros: blocks that were put in are explained, and what is explained was put in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import block_masks, grids

from hwmodel.extraction.weights.block_shapes import block_mask, explaining_mask
from hwmodel.ir.masks import BlockMask


def elements(mask: BlockMask) -> np.ndarray:
    rows = np.repeat(mask.kept, mask.block[0], axis=0)[: mask.shape[0]]
    return np.repeat(rows, mask.block[1], axis=1)[:, : mask.shape[1]]


@given(block_masks())
def test_a_block_grid_read_back_from_its_elements_is_the_same(mask: BlockMask) -> None:
    assert block_mask(elements(mask), mask.block) == mask


@given(block_masks())
def test_what_is_found_lies_in_empty_blocks_only(mask: BlockMask) -> None:
    nonzero = elements(mask)
    found = explaining_mask(nonzero)
    if found is not None:
        assert not (nonzero & ~elements(found)).any()


@st.composite
def telling_masks(draw: st.DrawFn) -> BlockMask:
    """Blocks of sixteen elements or more, several along either side, the last ones ragged; some kept, some empty."""
    block = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    shape = tuple(draw(st.integers(2, 6)) * side + draw(st.integers(1, side)) for side in block)
    kept = draw(grids(shape, block).filter(lambda grid: 0 < grid.sum() < grid.size))
    return BlockMask(shape, block, kept)


@given(telling_masks())
def test_blocks_are_explained_exactly_and_by_none_smaller(mask: BlockMask) -> None:
    found = explaining_mask(elements(mask))
    assert found is not None
    assert (elements(found) == elements(mask)).all()
    for mine, theirs, length in zip(found.block, mask.block, mask.shape, strict=True):
        assert mine % theirs == 0 or mine == length
