"""Selection under a loss budget, by hand on small tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from token_models import small_vit

import hwmodel as hw
from hwmodel.pruning.gates.heads import remove_heads
from hwmodel.pruning.gates.selection import select

NAN = np.nan
HARM = [[0.4, 0.1, -0.3], [0.2, 0.6, NAN]]


def test_units_go_in_the_order_of_harm_per_saved_cost() -> None:
    """Prices: block 0 saves 2 each: 0.2, 0.05 and 0; block 1 saves 1 each: 0.2 and 0.6."""
    found = select(HARM, [2.0, 1.0], 0.35)
    assert found.kept.tolist() == [
        [True, False, False],
        [False, True, False],
    ]  # 0 + 0.1 + 0.2; the 0.4 at price 0.2 comes first ...
    assert found.loss == pytest.approx(0.3)  # ... but is the last of its block
    assert found.saved == pytest.approx(2 + 2 + 1)
    assert found.counts.tolist() == [1, 1]
    assert found.by_block == {0: (0,), 1: (1,)}


def test_the_order_stops_at_the_first_that_does_not_fit() -> None:
    found = select([[0.1, 0.5, 0.2, 9.0]], [[1.0, 5.0, 0.5, 1.0]], 0.4)  # prices 0.1, 0.1, 0.4: after 0.1 comes 0.5, too much
    assert found.kept.tolist() == [[False, True, True, True]]


def test_what_saves_nothing_stays() -> None:
    assert select([[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0], 1.0).counts.tolist() == [2, 1]


def test_a_share_goes_where_nothing_is_saved_too() -> None:
    assert select([[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0], 1.0, scope="symmetric").counts.tolist() == [1, 1]


def test_a_block_that_loses_all_its_heads_is_not_left_whole() -> None:
    """Blocks without units, as those without attention, are left out; one that has lost all of them is not."""
    found = select([[0.0, 0.0], [NAN, NAN], [5.0, 5.0]], [1.0, 1.0, 1.0], 1.0, least=0)
    assert found.by_block == {0: (), 2: (0, 1)}
    with pytest.raises(hw.HwmodelError, match="block 0: at least one head must stay"):
        remove_heads(small_vit(), found.by_block)


@pytest.mark.parametrize("scope", ["global", "block", "symmetric"])
def test_at_least_one_unit_stays_and_those_that_always_do(scope: Any) -> None:
    free = np.zeros((2, 4))
    assert select(free, [1.0, 1.0], np.inf, scope=scope).counts.tolist() == [1, 1]
    kept = select(free, [1.0, 1.0], np.inf, scope=scope, always=1, least=2).kept
    assert kept.sum(1).tolist() == [3, 3]
    assert kept[:, 0].all()
    assert select(free, [1.0, 1.0], np.inf, scope=scope, blocks=[1]).counts.tolist() == [4, 1]


def test_a_budget_per_block() -> None:
    found = select(HARM, [2.0, 1.0], 0.3, scope="block")
    assert found.kept.tolist() == [[True, False, False], [False, True, False]]  # 0 + 0.1 of 0.3, and 0.2 of 0.3
    assert found.loss == pytest.approx(0.1 + 0.2)


def test_one_share_for_all_blocks() -> None:
    """Shares of 2 and 4 units that can go: 0, 1/4, 1/2, 3/4. Half: 0.1 + (0 + 0.2) = 0.3; three quarters: 0.1 + 0.5 more."""
    harm = [[0.1, 0.4, NAN, NAN], [0.2, -1.0, 0.3, 5.0]]
    assert select(harm, [1.0, 1.0], 0.29, scope="symmetric").counts.tolist() == [2, 3]
    assert select(harm, [1.0, 1.0], 0.30, scope="symmetric").counts.tolist() == [1, 2]
    assert select(harm, [1.0, 1.0], 0.60, scope="symmetric").counts.tolist() == [1, 1]
    assert select(harm, [1.0, 1.0], 0.60, scope="symmetric").loss == pytest.approx(0.6)


def test_a_token_that_leaves_is_gone_in_later_blocks() -> None:
    """Costs 1, 1, 1 per block: leaving at block 0 saves 3. Token 1: harms 0.9, 0.2, 0.1, so prices 0.1 and 0.1 on its hull."""
    harm = [[9.0, 0.9, 9.0], [9.0, 0.2, 9.0], [9.0, 0.1, 0.4]]
    small = select(harm, [1.0, 1.0, 1.0], 0.25, lasting=True)
    assert small.kept.tolist() == [[True] * 3, [True, False, True], [True, False, True]]
    assert (small.loss, small.saved) == (pytest.approx(0.2), pytest.approx(2.0))
    more = select(
        harm, [1.0, 1.0, 1.0], 0.6, lasting=True
    )  # next 0.4 for 1 (token 2), ahead of 0.7 for 1 (token 1 a block earlier)
    assert more.kept.tolist() == [[True] * 3, [True, False, True], [True, False, False]]
    most = select(harm, [1.0, 1.0, 1.0], 1.3, lasting=True)
    assert most.counts.tolist() == [2, 2, 1]
    assert (most.loss, most.saved) == (pytest.approx(0.9 + 0.4), pytest.approx(3 + 1))


def test_lasting_shares_fall_all_at_once_and_block_budgets_one_by_one() -> None:
    harm = [[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]]
    assert select(harm, [1.0, 1.0], 0.3, scope="symmetric", lasting=True).kept.tolist() == [[False, False, True, True]] * 2
    by_block = select(harm, [1.0, 1.0], 0.1, scope="block", lasting=True)
    assert by_block.kept.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert by_block.saved == pytest.approx(2 + 1 + 1)


@pytest.mark.parametrize("scope", ["global", "block", "symmetric"])
@pytest.mark.parametrize("absent", [[2, 3], [0, 1]], ids=["last", "first"])
def test_units_missing_from_later_blocks_are_not_counted_there(scope: Any, absent: list[int]) -> None:
    """Block 1 has two of the four units: one of them may leave, and the two that are absent there leave block 0 freely."""
    harm = np.zeros((2, 4))
    harm[1, absent] = NAN
    found = select(harm, [1.0, 1.0], np.inf, scope=scope, lasting=True)
    assert found.counts.tolist() == [1, 1]
    assert not found.kept[1, absent].any()


def test_rounding_does_not_bring_a_token_back() -> None:
    """Leaving at blocks 2, 1 and 0 saves 0.3, 1.4 and 3.3, all at a price of 0.49 but for rounding; 0.147 + 0.539 is too much."""
    harm = [[1.6169999999999998], [0.6859999999999999], [0.14699999999999996]]
    found = select(harm, [1.9, 1.1, 0.3], 0.5389999999999999, lasting=True, least=0)
    assert (found.kept[1:] <= found.kept[:-1]).all()
    assert found.loss == pytest.approx(0.147)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((HARM, [1.0], 1.0), {}, r"got \(2, 3\) and \(1,\)"),
        (([1.0], [1.0], 1.0), {}, r"scores must be \(blocks, units\)"),
        ((HARM, [1.0, 1.0], -0.1), {}, "the budget must be a loss of at least 0, got -0.1"),
        ((HARM, [1.0, 1.0], NAN), {}, "the budget must be a loss of at least 0, got nan"),
        ((HARM, [1.0, NAN], 1.0), {}, "saved costs must be finite"),
        ((HARM, [1.0, 1.0], 1.0), {"scope": "layer"}, "unknown scope 'layer'"),
        ((HARM, [1.0, 1.0], 1.0), {"blocks": [2]}, "block 2 is not one of 0-1"),
        ((HARM, [1.0, 1.0], 1.0), {"least": -1}, "always and least must be at least 0, got 0 and -1"),
        ((HARM, [1.0, 1.0], 1.0), {"always": -1}, "always and least must be at least 0, got -1 and 1"),
    ],
    ids=["costs", "scores", "negative", "nan", "nan-cost", "scope", "block", "least", "always"],
)
def test_what_cannot_be_selected_is_told(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(hw.HwmodelError, match=message) as refusal:
        select(*arguments, **options)
    assert "\n" not in str(refusal.value)
