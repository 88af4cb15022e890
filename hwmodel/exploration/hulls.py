"""Lower convex hulls of cost curves: what an allocator that trades by slopes can reach, and the slope at each point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.backends.base import FloatArray


class Hull(NamedTuple):
    """The lower convex hull of one curve, at the curve's own points. Both arrays have shape (points,).

    ``slope`` is that of the hull's segment that ends at the point (the first segment's at the first point); NaN where there
    is one point only.
    """

    value: FloatArray
    slope: FloatArray


def lower_hull(x: FloatArray, y: FloatArray) -> Hull:
    """Lower convex hull of the points (``x``, ``y``), ``x`` strictly ascending.

    Notes
    -----
    scipy's ``ConvexHull`` (Qhull) on coordinates scaled to the unit square, with two points above it, so that a straight
    curve has a hull too; corners between which the hull is straight to 1e-9 of its height may be left out.
    """
    if len(x) == 1:
        return Hull(y.copy(), np.full(1, np.nan))
    corners = _corners(x, y)
    value = np.interp(x, x[corners], y[corners])
    value[corners] = y[corners]
    slopes = np.diff(y[corners]) / np.diff(x[corners])
    segment = np.clip(np.searchsorted(corners, np.arange(len(x)), side="left") - 1, 0, len(slopes) - 1)
    return Hull(np.minimum(value, y), slopes[segment])


def _corners(x: FloatArray, y: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    from scipy.spatial import ConvexHull

    height = float(np.ptp(y))
    scaled = np.stack([(x - x[0]) / (x[-1] - x[0]), (y - y.min()) / (height or 1.0)], axis=1)
    roof = np.array([[0.0, 2.0], [1.0, 2.0]])
    found = ConvexHull(np.concatenate([scaled, roof])).vertices
    corners: np.ndarray[tuple[int], np.dtype[np.int64]] = np.sort(found[found < len(x)]).astype(np.int64)
    return corners


class Hulls:
    """Hulls of many curves over the same points, each distinct curve once: identical layers have identical curves."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Hull] = {}

    def of(self, x: FloatArray, curves: FloatArray) -> Hull:
        """Hulls of ``curves`` of shape (curves, points), both fields of that shape."""
        found = [self._one(x, curve) for curve in curves]
        return Hull(np.stack([hull.value for hull in found]), np.stack([hull.slope for hull in found]))

    def _one(self, x: FloatArray, curve: FloatArray) -> Hull:
        key = (x.tobytes(), curve.tobytes())
        if key not in self._known:
            self._known[key] = lower_hull(x, curve)
        return self._known[key]
