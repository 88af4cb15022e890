"""What holds for block projections and distortions of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwmodel.ir.masks import grid_shape
from hwmodel.pruning.blocks.capture import block_products
from hwmodel.pruning.blocks.distortion import FORMS, Distortion, paper_recurrence
from hwmodel.pruning.blocks.projected import LayerProjections
from hwmodel.pruning.blocks.weight_layers import WeightLayer

sides = st.integers(1, 13)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int]]:
    """A shape and a block that fits it."""
    shape = draw(st.tuples(sides, sides))
    return shape, (draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1])))


@st.composite
def distortions(draw: st.DrawFn, forms: Any = FORMS) -> tuple[Distortion, np.ndarray[Any, Any]]:
    """Projections of a layer, and an order of its blocks."""
    rng, blocks = np.random.default_rng(draw(seeds)), draw(st.integers(1, 12))
    p = rng.normal(size=(draw(st.integers(1, 70)), blocks)).astype(np.float32)
    found = Distortion(
        form=draw(st.sampled_from(forms)), p=p, squared_norms=rng.random(blocks), kappa=draw(st.sampled_from([0.0, 0.3]))
    )
    return found, rng.permutation(blocks)


@given(layers(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 10**4), seeds)
def test_block_products_are_those_of_the_definition(
    layer: tuple[tuple[int, int], tuple[int, int]], images: int, rows: int, chunk: int, seed: int
) -> None:
    (out, depth), finest = layer
    rng = np.random.default_rng(seed)
    inputs, outputs, weight = (
        rng.normal(size=(images, rows, depth)),
        rng.normal(size=(images, rows, out)),
        rng.normal(size=(out, depth)),
    )
    described = WeightLayer(name="layer", module=nn.Identity(), shape=(out, depth), finest=finest)
    found = block_products(*(torch.tensor(one).float() for one in (inputs, outputs, weight)), described, chunk)
    products = np.einsum("nto,ntj,oj->noj", outputs, inputs, weight)
    grid = np.zeros((images, *grid_shape((out, depth), finest)))
    for o, j in np.ndindex(out, depth):
        grid[:, o // finest[0], j // finest[1]] += products[:, o, j]
    np.testing.assert_allclose(found.numpy(), grid.reshape(images, -1), rtol=1e-4, atol=1e-4)


@given(distortions())
def test_distortion_is_that_of_the_definition(drawn: tuple[Distortion, np.ndarray[Any, Any]]) -> None:
    """Count by count: the sum of a sample's projections over the pruned blocks is minus its gradient times the change."""
    distortion, order = drawn
    for count, found in enumerate(distortion.along(order)):
        pruned = order[:count]
        first = -distortion.p[:, pruned].astype(np.float64).sum(1)
        curvature = distortion.kappa * distortion.squared_norms[pruned].sum() + np.mean(first**2)
        expected = {"gauss-newton": np.mean(first**2), "paper": first.mean() + curvature / 2}
        expected["squared"] = np.mean((first + curvature / 2) ** 2)
        np.testing.assert_allclose(found, expected[distortion.form], rtol=1e-9, atol=1e-9)


@given(distortions(("paper",)))
def test_the_recurrence_sums_to_the_direct_form(drawn: tuple[Distortion, np.ndarray[Any, Any]]) -> None:
    distortion, order = drawn
    recurred = paper_recurrence(distortion.p, distortion.squared_norms, order, distortion.kappa)
    np.testing.assert_allclose(recurred, distortion.along(order), rtol=1e-9, atol=1e-9)


@given(distortions(), seeds)
def test_the_order_does_not_matter_once_all_is_pruned(drawn: tuple[Distortion, np.ndarray[Any, Any]], seed: int) -> None:
    distortion, order = drawn
    other = np.random.default_rng(seed).permutation(order)
    np.testing.assert_allclose(distortion.along(order)[[0, -1]], distortion.along(other)[[0, -1]], rtol=1e-9, atol=1e-9)


@given(layers(), st.integers(1, 70), seeds, st.data())
def test_coarser_blocks_hold_what_the_finest_do(
    layer: tuple[tuple[int, int], tuple[int, int]], rows: int, seed: int, data: st.DataObject
) -> None:
    shape, finest = layer
    rng, grid = np.random.default_rng(seed), grid_shape(*layer)
    p = rng.normal(size=(rows, grid[0] * grid[1])).astype(np.float32)
    fine = LayerProjections(name="layer", shape=shape, finest=finest, p=p, squared_norms=p[0] ** 2, magnitudes=np.abs(p[0]))
    block = tuple(side * data.draw(st.integers(1, length // side)) for side, length in zip(finest, shape, strict=True))
    coarse = fine.at((block[0], block[1]))
    row, col = (np.arange(count) * side // size for count, side, size in zip(grid, finest, block, strict=True))
    expected = np.zeros((rows, *grid_shape(shape, (block[0], block[1]))))
    np.add.at(expected, (slice(None), row[:, None], col[None, :]), p.reshape(rows, *grid))
    np.testing.assert_allclose(coarse.p, expected.reshape(rows, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(coarse.magnitudes.sum(), fine.magnitudes.sum(), rtol=1e-5)
