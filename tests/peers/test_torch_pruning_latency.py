"""Torch-Pruning for real, with our latency as the weight of its importance."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hwmodel as hw
from hwmodel.allocation.exports.tables import product_seconds
from hwmodel.allocation.exports.torch_pruning import LEAST, latency_importance
from hwmodel.errors import HwmodelError

tp = pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.peer

ROWS, WIDTH, DEVICE = 64, 32, {"device": "tpu-v3", "mode": "systolic", "overrides": {"array_rows": 8, "array_cols": 8}}
EXAMPLE = torch.zeros(1, ROWS, WIDTH)


class TwoBranches(torch.nn.Module):
    """Two hidden layers of one width; the second is applied to few rows only, so its channels save little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide_in, self.wide_out = torch.nn.Linear(WIDTH, 64), torch.nn.Linear(64, WIDTH)
        self.few_in, self.few_out = torch.nn.Linear(WIDTH, 64), torch.nn.Linear(64, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide_out(torch.relu(self.wide_in(x)))
        return self.few_out(torch.relu(self.few_in(x[:, :2])))


def equal_importance(group: Any) -> torch.Tensor:
    """Every channel alike, to a hair: what is left is the latency."""
    return 1.0 + 1e-3 * torch.arange(len(group[0].idxs)) / len(group[0].idxs)


def pruner(model: torch.nn.Module, importance: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"global_pruning": True, "pruning_ratio": 0.25, "ignored_layers": [model.few_out, model.wide_out]}
        return tp.pruner.BasePruner(model, EXAMPLE, importance=importance, **options)


def test_channels_that_save_time_go_first() -> None:
    plain, weighed = TwoBranches(), TwoBranches()
    pruner(plain, equal_importance).step()
    importance = latency_importance(equal_importance, weighed, hw.trace(weighed, example=EXAMPLE), **DEVICE)
    pruner(weighed, importance).step()
    assert plain.few_in.out_features < 64  # without latency both are pruned alike
    assert weighed.few_in.out_features == 64
    assert weighed.wide_in.out_features == 32  # a quarter of all 128 channels, all of them where they save most
    before, after = (hw.estimate(hw.trace(model, example=EXAMPLE), **DEVICE).latency_s for model in (plain, weighed))
    assert after < before


def test_a_channel_saves_in_every_layer_that_it_feeds() -> None:
    """Halving a hidden width of 64: 32 channels fewer out of the first layer and into the second."""
    model = TwoBranches()
    importance = latency_importance(equal_importance, model, hw.trace(model, example=EXAMPLE), **DEVICE)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=EXAMPLE)
    group = graph.get_pruning_group(model.wide_in, tp.prune_linear_out_channels, idxs=list(range(64)))
    shapes = [(ROWS, WIDTH, 64), (ROWS, WIDTH, 32), (ROWS, 64, WIDTH), (ROWS, 32, WIDTH)]
    seconds = product_seconds(shapes, **DEVICE)
    first, first_half, second, second_half = (seconds[shape] for shape in shapes)
    assert importance.seconds(group) == pytest.approx((first - first_half + second - second_half) / 32)
    assert importance.weight(group) >= LEAST
    assert torch.equal(importance(group), equal_importance(group) / importance.weight(group))


def test_a_channel_that_is_several_features_of_a_layer_saves_several_times() -> None:
    """After a flatten of nine positions one channel is nine input features: its group lists nine indices per channel."""
    model = TwoBranches()
    importance = latency_importance(equal_importance, model, hw.trace(model, example=EXAMPLE), **DEVICE)

    def item(module: torch.nn.Module, handler: str, count: int) -> SimpleNamespace:
        named = SimpleNamespace(__name__=handler)
        return SimpleNamespace(dep=SimpleNamespace(target=SimpleNamespace(module=module), handler=named), idxs=list(range(count)))

    first, second = importance.saved_s[id(model.wide_in)], importance.saved_s[id(model.wide_out)]
    group = [item(model.wide_in, "prune_out_channels", 4), item(model.wide_out, "prune_in_channels", 36)]
    assert importance.seconds(group) == pytest.approx(first[0] + 9 * second[1])


def test_models_and_traces_must_belong_together() -> None:
    model = TwoBranches()
    with pytest.raises(HwmodelError, match="has no layer of this model"):
        latency_importance(equal_importance, torch.nn.Linear(4, 4), hw.trace(model, example=EXAMPLE), **DEVICE)
    with pytest.raises(HwmodelError, match="must lie between 0 and 1"):
        latency_importance(equal_importance, model, hw.trace(model, example=EXAMPLE), keep=1.0, **DEVICE)
