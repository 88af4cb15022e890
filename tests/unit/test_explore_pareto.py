"""Knee points of fronts drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel.exploration.pareto import knee_distances, knee_points, pareto_front


def test_the_knee_is_farthest_below_the_line_through_the_ends() -> None:
    front = np.array([[0.0, 10.0], [2.0, 2.0], [6.0, 1.0], [10.0, 0.0]])
    # normalised sums are 1, 0.2 + 0.2, 0.6 + 0.1, 1; the distance from x + y = 1 is (1 - sum) / sqrt(2)
    assert knee_distances(front) == pytest.approx(np.array([0.0, 0.6, 0.3, 0.0]) / np.sqrt(2))
    assert knee_points(front).tolist() == [1, 2, 0]
    assert knee_points(front, count=1).tolist() == [1]


def test_knees_that_lie_together_count_once() -> None:
    front = np.array([[0.0, 10.0], [2.0, 2.0], [2.05, 1.99], [10.0, 0.0]])
    assert knee_points(front, count=2, apart=0.1).tolist() == [1, 0]


def test_fronts_without_extent() -> None:
    assert knee_points(np.zeros((0, 2))).tolist() == []
    assert knee_points(np.array([[3.0, 4.0]])).tolist() == [0]
    assert pareto_front(np.zeros((0, 2))).tolist() == []
    assert pareto_front([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]).tolist() == [0, 1]
    assert pareto_front([[np.nan, 0.0], [1.0, 1.0]]).tolist() == [1]
