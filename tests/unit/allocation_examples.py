"""Layers with made-up distortion that the allocation tests share."""

from __future__ import annotations

import numpy as np

import hwmodel as hw
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.problem import Cost, Limit, Problem
from hwmodel.ir.masks import Shape
from hwmodel.ir.trace import Trace

SHAPES: tuple[Shape, ...] = ((192, 64), (64, 64), (256, 64), (64, 256))
BLOCK = (16, 16)
ROWS = 17


def scores(shape: Shape, block: Shape, seed: int) -> np.ndarray:
    """A score per block: many small ones, a few large."""
    rng = np.random.default_rng(seed)
    blocks = -(-shape[0] // block[0]) * -(-shape[1] // block[1])
    return rng.gamma(0.5, size=blocks) * rng.lognormal(0.0, 1.0)


def layer(name: str, shape: Shape, block: Shape = BLOCK, *, rows: int = ROWS, seed: int = 0) -> Layer:
    """Blocks in ascending order of score; distortion is their sum."""
    found = scores(shape, block, seed)
    order = np.argsort(found, kind="stable")
    delta = np.concatenate([[0.0], np.cumsum(found[order])])
    return Layer.of(name, shape=shape, block=block, rows=rows, order=order, delta=delta)


def layers(count: int = 8, block: Shape = BLOCK, rows: int = ROWS) -> tuple[Layer, ...]:
    """Layers of four shapes in turn."""
    return tuple(layer(f"layer{index}", SHAPES[index % 4], block, rows=rows, seed=index) for index in range(count))


def trace_of(chosen: tuple[Layer, ...]) -> Trace:
    """A trace of those products and nothing else."""
    rows = [hw.matmul(m=one.rows, k=one.shape[1], n=one.shape[0], name=one.name) for one in chosen]
    return Trace.from_operators(rows, model="layers by hand")


def made_up(name: str, curves: list[list[float]], rest: float = 0.0) -> Cost:
    """A cost with given curves, the first point of each dense."""
    arrays = tuple(np.array(curve, dtype=np.float64) for curve in curves)
    return Cost(name=name, curves=arrays, rest=rest, dense=rest + sum(curve[0] for curve in arrays), source="made up")


def within(chosen: tuple[Layer, ...], cost: Cost, share: float, **bounds: object) -> Problem:
    """Least distortion at a share of one cost."""
    limit = Limit(cost=cost, most=share * cost.dense, asked=f"{share:.0%}")
    return Problem(layers=chosen, limits=(limit,), **bounds)  # type: ignore[arg-type]
