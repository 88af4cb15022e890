"""Strides of results: a view's, and those of new memory."""

from __future__ import annotations

from math import prod

from hwmodel.extraction.recording.aten import is_viewable, runs
from hwmodel.extraction.recording.lowering import Shape


def viewed(shape: Shape, stride: Shape, new_shape: Shape) -> Shape | None:
    """Strides of the same memory under ``new_shape``; None where it has to be copied.

    >>> viewed((2, 6), (6, 1), (2, 3, 2)), viewed((6, 2), (1, 6), (12,))
    ((6, 2, 1), None)
    """
    if not is_viewable(shape, stride, new_shape):
        return None
    left = [size for size in new_shape if size != 1]
    steps: list[int] = []
    for count, step in runs(shape, stride):
        inside: list[int] = []
        while prod(inside) < count and left:
            inside.append(left.pop(0))
        steps += [step * rest for rest in _steps(tuple(inside))]
    found = iter(steps)
    return tuple(1 if size == 1 else next(found, 1) for size in new_shape)


def memory_order(shape: Shape, like: Shape | None) -> Shape:
    """Strides of new memory: in the order of ``shape``, or in that of a tensor with strides ``like``."""
    order = range(len(shape)) if like is None else sorted(range(len(shape)), key=lambda axis: -like[axis])
    steps = dict(zip(order, _steps(tuple(shape[axis] for axis in order)), strict=True))
    return tuple(steps[axis] for axis in range(len(shape)))


def _steps(sizes: Shape) -> Shape:
    """Contiguous strides."""
    found = [1]
    for size in reversed(sizes[1:]):
        found.insert(0, found[0] * size)
    return tuple(found[: len(sizes)])
