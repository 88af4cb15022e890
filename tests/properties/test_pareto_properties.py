"""Fronts against the definition, point by point."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.exploration.pareto import knee_distances, knee_points, pareto_front

VALUES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([float("inf"), float("-inf"), float("nan"), 1e-300, 1e300]))


@st.composite
def losses(draw: st.DrawFn) -> np.ndarray:
    objectives = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(VALUES, min_size=objectives, max_size=objectives), min_size=0, max_size=25))
    return np.array(rows, dtype=np.float64).reshape(-1, objectives)


def by_definition(values: np.ndarray) -> list[int]:
    """Rows without NaN that no row without NaN dominates."""
    known = [row for row in range(len(values)) if not np.isnan(values[row]).any()]
    return [
        row for row in known
        if not any((values[other] <= values[row]).all() and (values[other] < values[row]).any() for other in known)
    ]  # fmt: skip


@given(losses())
def test_the_front_is_what_no_point_beats(values: np.ndarray) -> None:
    assert pareto_front(values).tolist() == by_definition(values)


@given(losses(), st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(values: np.ndarray, random: object) -> None:
    order = np.array(random.sample(range(len(values)), len(values)), dtype=np.int64)  # type: ignore[attr-defined]
    assert sorted(order[pareto_front(values[order])].tolist()) == pareto_front(values).tolist()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30), st.floats(0.1, 10), st.floats(-5, 5))
def test_knees_do_not_depend_on_units(rows: list[tuple[int, int]], factor: float, shift: float) -> None:
    values = np.array(rows, dtype=np.float64)
    front = values[pareto_front(values)]
    np.testing.assert_allclose(knee_distances(front * [factor, 1.0] + shift), knee_distances(front), atol=1e-9)
    chosen = knee_points(front)
    assert 1 <= len(chosen) <= 3
    assert knee_distances(front)[chosen[0]] == knee_distances(front).max()
