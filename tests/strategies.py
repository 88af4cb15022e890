"""Hypothesis strategies that several tests share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.ir.masks import BlockMask, ExpectedMask, Shape, grid_shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

OWN = st.none()
"""Operators without a number format of their own."""

DTYPES = ["fp32", "tf32", "fp16", "bf16", "amp-fp16", "amp-bf16", "int8", "int4"]


@st.composite
def weights_and_blocks(draw: st.DrawFn, largest: int = 24) -> tuple[Shape, Shape]:
    """A weight's shape and a block that fits it; edges are ragged more often than not."""
    shape = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    return shape, (draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1])))


@st.composite
def grids(draw: st.DrawFn, shape: Shape, block: Shape) -> np.ndarray:
    """Which blocks of a weight are kept."""
    rows, cols = grid_shape(shape, block)
    kept = draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))
    return np.array(kept, dtype=np.bool_).reshape(rows, cols)


@st.composite
def block_masks(draw: st.DrawFn, largest: int = 24) -> BlockMask:
    """A stored mask on a small weight."""
    shape, block = draw(weights_and_blocks(largest))
    return BlockMask(shape, block, draw(grids(shape, block)))


@st.composite
def expected_masks(draw: st.DrawFn, largest: int = 24) -> ExpectedMask:
    """A mask of which only the number of kept blocks is known."""
    shape, block = draw(weights_and_blocks(largest))
    rows, cols = grid_shape(shape, block)
    return ExpectedMask(shape, block, draw(st.integers(0, rows * cols)))


@st.composite
def pruned_products(draw: st.DrawFn, block: Shape | None = None) -> Operator:
    """A layer of up to 8 x 8 blocks with a stored mask, ragged at its edges."""
    out, in_ = block or draw(st.sampled_from([(16, 16), (32, 32), (64, 32), (32, 64), (64, 64), (128, 128)]))
    n, k = draw(st.integers(out, 8 * out)), draw(st.integers(in_, 8 * in_))
    mask = BlockMask((n, k), (out, in_), draw(grids((n, k), (out, in_))))
    return hw.matmul(m=draw(st.integers(1, 400)), k=k, n=n, mask=mask)


def operators(dtype: st.SearchStrategy[str | None] = OWN) -> st.SearchStrategy[Operator]:
    """One operator of any family, at sizes a small ViT has."""
    sizes, many = st.integers(1, 800), st.integers(1, 10**6)
    return st.one_of(
        pruned_products(),
        st.builds(hw.matmul, m=sizes, k=sizes, n=sizes, batch=st.integers(1, 12), dtype=dtype),
        st.builds(hw.softmax, rows=sizes, cols=sizes, dtype=dtype),
        st.builds(hw.layernorm, rows=sizes, cols=sizes, dtype=dtype),
        st.builds(hw.gelu, elements=many, dtype=dtype),
        st.builds(hw.elementwise, st.just("add"), elements=many, inputs=st.just(2), dtype=dtype),
        st.builds(hw.movement, st.sampled_from(["copy", "gather", "concat"]), elements=many, dtype=dtype),
        st.builds(hw.reduction, st.just("mean"), inputs=many, outputs=st.just(1), dtype=dtype),
        st.builds(
            hw.attention, batch=st.integers(1, 2), heads=st.integers(1, 12), queries=sizes, keys=sizes,
            head_dim=st.sampled_from([32, 64]), causal=st.booleans(), dtype=dtype,
        ),
    )  # fmt: skip


@st.composite
def traces(draw: st.DrawFn, most: int = 6, dtype: st.SearchStrategy[str | None] = OWN) -> Trace:
    """A trace of a few operators of any family, with some edges."""
    rows = draw(st.lists(operators(dtype), min_size=1, max_size=most))
    pairs = [(first, second) for second in range(len(rows)) for first in range(second)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=most)) if pairs else []
    return Trace.from_operators(rows).replace(edges=tuple(edges))
