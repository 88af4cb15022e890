"""What a head or a token costs in a block: against estimates of the pruned trace, and in a selection."""

from __future__ import annotations

import numpy as np
import pytest
from token_models import IMAGES, small_vit

import hwmodel as hw
from hwmodel.allocation.tokens_heads import head_costs, token_costs
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.pruning.gates.selection import select

DENSE = hw.trace(small_vit(num_heads=4), example=IMAGES[:1])
DEVICES = ["vita", "tpu-v3", "a100-40gb", "agx-orin-64gb"]
PE = {"vita": {"overrides": {"pe": "16x16"}}}


def priced(device: str, quantity: str, **rule: int) -> float:
    encoder = (EncoderRule(blocks="0-3", **rule),)
    pruned = hw.prune(DENSE, Recipe(model=DENSE.model, source="test", encoder=encoder))
    return float(getattr(hw.estimate(pruned, device=device, **PE.get(device, {})), quantity))


@pytest.mark.parametrize("quantity", ["latency_s", "energy_j"])
@pytest.mark.parametrize("device", DEVICES)
def test_totals_are_the_estimates_of_the_pruned_model(device: str, quantity: str) -> None:
    whole = float(getattr(hw.estimate(DENSE, device=device, **PE.get(device, {})), quantity))
    heads = head_costs(DENSE, device=device, quantity=quantity, **PE.get(device, {}))
    assert heads.counts.tolist() == [1, 2, 3, 4]
    assert heads.total([4] * 4) == pytest.approx(whole)
    assert heads.total([2] * 4) == pytest.approx(priced(device, quantity, heads=2))
    tokens = token_costs(DENSE, device=device, quantity=quantity, counts=[4, 8, 16], **PE.get(device, {}))
    assert tokens.total([16] * 4) == pytest.approx(whole)
    assert tokens.total([8] * 4) == pytest.approx(priced(device, quantity, tokens=8))
    assert (
        tokens.name == f"{quantity} on {hw.load_card(device).name}/{hw.estimate(DENSE, device=device, **PE.get(device, {})).mode}"
    )
    assert tokens.source in {"measured", "calibrated", "analytic", "assumed"}


def test_one_unit_is_worth_the_average_step() -> None:
    heads = head_costs(DENSE, device="vita", **PE["vita"])
    np.testing.assert_allclose(heads.per_unit, (heads.cost[:, 3] - heads.cost[:, 0]) / 3)
    assert (heads.per_unit > 0).all()
    tokens = token_costs(DENSE, device="vita", counts=[8, 16], **PE["vita"])
    np.testing.assert_allclose(tokens.per_unit, (tokens.cost[:, 1] - tokens.cost[:, 0]) / 8)
    assert tokens.total([16, 12, 8, 8]) == pytest.approx(
        tokens.cost[0, 1] + tokens.cost[1].mean() + tokens.cost[2:, 0].sum() + tokens.rest[0]
    )


def test_the_copy_of_the_tokens_is_no_cost_of_a_block() -> None:
    """Blocks that are alike cost alike, though the first of them is where tokens leave."""
    tokens = token_costs(DENSE, device="vita", counts=[8, 16], **PE["vita"])
    np.testing.assert_allclose(tokens.cost[0], tokens.cost[1])


def test_tokens_are_chosen_by_what_they_save_in_all_later_blocks() -> None:
    """Every token harms as little everywhere, so the cheapest seconds are those of leaving first."""
    costs = token_costs(DENSE, device="vita", **PE["vita"])
    found = select(np.full((4, 16), 0.01), costs.per_unit, 0.05, lasting=True)
    assert found.counts.tolist() == [11] * 4
    assert found.saved == pytest.approx(5 * costs.per_unit.sum())


def test_unequal_heads_are_priced_up_to_their_own() -> None:
    encoder = (EncoderRule(blocks="1", heads=2),)
    uneven = hw.prune(DENSE, Recipe(model=DENSE.model, source="test", encoder=encoder))
    costs = head_costs(uneven, device="vita", **PE["vita"])
    assert costs.cost[1, 1] == costs.cost[1, 3]
    assert costs.cost[1, 0] < costs.cost[1, 1]
    assert costs.per_unit[1] == pytest.approx(costs.cost[1, 1] - costs.cost[1, 0])


def test_one_unit_is_worth_the_same_where_not_all_units_are_priced() -> None:
    """16 tokens, of which 4 to 8 are priced: the four between are what is saved."""
    tokens = token_costs(DENSE, device="vita", counts=[4, 8], **PE["vita"])
    np.testing.assert_allclose(tokens.per_unit, (tokens.cost[:, 1] - tokens.cost[:, 0]) / 4)


def test_what_cannot_be_priced_is_told() -> None:
    with pytest.raises(hw.HwmodelError, match=r"patch tokens: expected two or more counts within 1-16, got \[8, 17\]"):
        token_costs(DENSE, device="vita", counts=[8, 17], **PE["vita"])
    with pytest.raises(hw.HwmodelError, match=r"heads: expected two or more counts within 1-4, got \[2\]"):
        head_costs(DENSE, device="vita", counts=[2], **PE["vita"])
    with pytest.raises(hw.HwmodelError, match="unknown quantity 'latency'"):
        head_costs(DENSE, device="vita", quantity="latency", **PE["vita"])  # type: ignore[arg-type]
    with pytest.raises(hw.HwmodelError, match="tokens cannot be dropped"):
        token_costs(hw.Trace.from_operators([hw.matmul(m=1, k=2, n=2)]), device="vita")
    with pytest.raises(hw.HwmodelError, match="no attention whose heads are known"):
        head_costs(hw.Trace.from_operators([hw.matmul(m=1, k=2, n=2)]), device="vita")
    costs = head_costs(DENSE, device="vita", **PE["vita"])
    with pytest.raises(hw.HwmodelError, match="expected 4 counts within 1-4, got"):
        costs.total([4, 4])
