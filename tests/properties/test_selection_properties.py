"""Selections keep their budget, grow with it, and are the best there are at their own loss."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwmodel.pruning.gates.selection import Selection, select

BLOCKS, UNITS = 3, 4
harms = arrays(np.float64, (BLOCKS, UNITS), elements=st.floats(-1, 1, width=16))
costs = arrays(np.float64, (BLOCKS,), elements=st.floats(0.125, 2, width=16))
budgets = st.floats(0, 5)
scopes = st.sampled_from(["global", "block", "symmetric"])


def harm_of(harm: Any, found: Selection, *, lasting: bool) -> float:
    """Sum of clamped harms of what went, at the block where it left."""
    gone = ~found.kept
    left = gone & ~np.vstack([np.zeros((1, UNITS), bool), gone[:-1]]) if lasting else gone
    return float(np.maximum(harm, 0)[left].sum())


@given(harms, costs, budgets, scopes, st.booleans())
def test_the_budget_is_kept_and_the_figures_are_of_what_went(
    harm: Any, cost: Any, budget: float, scope: Any, lasting: bool
) -> None:
    found = select(harm, cost, budget, scope=scope, lasting=lasting)
    assert found.loss <= budget * (BLOCKS if scope == "block" else 1) + 1e-9
    assert np.isclose(found.loss, harm_of(harm, found, lasting=lasting))
    assert np.isclose(found.saved, ((~found.kept) * cost[:, None]).sum())
    assert (found.counts >= 1).all()
    if lasting:
        assert (found.kept[1:] <= found.kept[:-1]).all()


@given(st.integers(0, 2**32 - 1))
def test_rounding_of_equal_prices_brings_no_token_back(seed: int) -> None:
    """Harm in proportion to what leaving saves: every exit is on one line, and only rounding tells their prices apart."""
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0.1, 2, (12, 3))
    harm = rng.uniform(0.1, 1) * cost[::-1].cumsum(axis=0)[::-1]
    for budget in np.linspace(0, harm.max(), 10):
        found = select(harm, cost, budget, lasting=True, least=0)
        assert (found.kept[1:] <= found.kept[:-1]).all()
        assert np.isclose(found.saved, (~found.kept * cost).sum())


@given(harms, costs, budgets, arrays(np.bool_, (BLOCKS, UNITS)), st.tuples(scopes, st.integers(0, 2)))
def test_blocks_that_miss_units_keep_the_least_of_theirs(harm: Any, cost: Any, budget: float, absent: Any, how: Any) -> None:
    scope, least = how
    found = select(np.where(absent, np.nan, harm), cost, budget, scope=scope, lasting=True, least=least)
    assert (found.counts >= np.minimum(least, (~absent).sum(axis=1))).all()
    assert found.loss <= budget * (BLOCKS if scope == "block" else 1) + 1e-9
    assert np.isclose(found.saved, ((~found.kept & ~absent) * cost[:, None]).sum())


@given(harms, costs, st.tuples(budgets, budgets), scopes, st.booleans())
def test_a_larger_budget_keeps_no_more(harm: Any, cost: Any, both: Any, scope: Any, lasting: bool) -> None:
    small, large = (select(harm, cost, budget, scope=scope, lasting=lasting) for budget in sorted(both))
    if lasting and scope == "block":
        assert small.kept[0].sum() >= large.kept[0].sum()
    else:
        assert (large.kept <= small.kept).all()


@given(harms, costs, budgets)
def test_no_other_choice_of_tokens_saves_more_at_the_same_loss(harm: Any, cost: Any, budget: float) -> None:
    """Along the lower hull every selection is optimal for its own loss (Everett 1963), by comparison with all choices."""
    found = select(harm, cost, budget, lasting=True, least=0)
    total, clamped = cost[::-1].cumsum()[::-1], np.maximum(harm, 0)
    for exits in product(range(BLOCKS + 1), repeat=UNITS):
        leaving = [(block, unit) for unit, block in enumerate(exits) if block < BLOCKS]
        loss = sum(clamped[place] for place in leaving)
        if loss <= found.loss - 1e-9:
            assert sum(total[block] for block, _ in leaving) <= found.saved + 1e-9


@given(harms, costs, budgets)
def test_no_other_choice_of_heads_saves_more_at_the_same_loss(harm: Any, cost: Any, budget: float) -> None:
    found = select(harm, cost, budget, least=0)
    choices = (np.arange(2 ** (BLOCKS * UNITS))[:, None] >> np.arange(BLOCKS * UNITS)) & 1
    loss, saved = choices @ np.maximum(harm, 0).ravel(), choices @ np.repeat(cost, UNITS)
    assert (saved[loss <= found.loss - 1e-9] <= found.saved + 1e-9).all()
