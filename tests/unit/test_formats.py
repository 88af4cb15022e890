"""Quantised layers are traced as what they stand for, with their formats, and priced by them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwmodel as hw
from hwmodel.extraction.whatif.recipes import LayerRule, Recipe

EXAMPLE = torch.zeros(4, 64)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


def quantised(dtype: torch.dtype = torch.qint8) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Layers().eval(), {nn.Linear}, dtype=dtype)


def test_dynamic_int8_multiplies_int8() -> None:
    model = quantised()
    trace, plain = hw.trace(model, example=EXAMPLE), hw.trace(Layers(), example=EXAMPLE)
    assert [(op.name, op.macs) for op in trace.operators] == [(op.name, op.macs) for op in plain.operators]
    assert (trace["fc1"].dtype, trace["fc1"].weight_dtype, trace["act"].dtype) == ("int8", None, None)
    assert trace["fc1"].weight_bytes == 64 * 128 + 128 + 8  # weights, bias, one scale and zero point
    assert type(model.fc1).__module__.startswith("torch.ao.nn.quantized")


def test_dynamic_fp16_stores_fp16_and_multiplies_what_comes() -> None:
    trace = hw.trace(quantised(torch.float16), example=EXAMPLE)
    assert (trace["fc1"].dtype, trace["fc1"].weight_dtype, trace["fc1"].scale_bytes) == (None, "fp16", 0)


class Widened(nn.Module):
    """A double of weight-only layers that people write themselves: integers and scales as buffers, widened on use."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(128, 1))
        self.register_buffer("qweight", torch.zeros(128, 64 * bits // 8, dtype=torch.int8))
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.qweight if self.bits == 8 else torch.cat([self.qweight >> 4, self.qweight & 15], dim=1)
        return functional.linear(x, self.scale * whole.to(x.dtype))


@pytest.mark.parametrize(("bits", "dtype"), [(8, "int8"), (4, "int4")])
def test_weights_that_a_module_widens_itself_are_read_as_stored(bits: int, dtype: str) -> None:
    model = nn.ModuleDict({"inner": Widened(bits)})
    model.forward = model["inner"].forward
    (product,) = [op for op in hw.trace(model, example=EXAMPLE).operators if op.kind == "matmul"]
    assert (product.weight_dtype, product.weight_bytes) == (dtype, 128 * 64 * bits / 8)


def test_half_of_a_model_in_16_bits() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(32, 32).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.half()).float()

    trace = hw.trace(nn.Sequential(Layers(), Half()), example=EXAMPLE)
    assert {op.name: op.dtype for op in trace.operators if op.kind == "matmul"} == {"0.fc1": None, "0.fc2": None, "1.inner": "fp16"}


class OddTensor(torch.Tensor):
    """A double of a quantised tensor of another library."""

    __module__ = "optimum.quanto.tensor"


def test_an_unknown_quantised_weight_is_refused_by_name() -> None:
    model = Layers()
    model.fc2.weight = nn.Parameter(model.fc2.weight.detach().as_subclass(OddTensor), requires_grad=False)
    with pytest.raises(hw.HwmodelError, match=r"^Layers: fc2\.weight: quantised as OddTensor, which hwmodel does not know"):
        hw.trace(model, example=EXAMPLE)


SIDE = 16384
"""More weights than any cache holds, in 4 bits too."""


def priced(rule: dict | None, device: str = "a100-40gb") -> hw.Estimate:
    """One product of few rows, which the weights' traffic decides."""
    trace = hw.Trace.from_operators([hw.matmul(m=16, k=SIDE, n=SIDE, name="fc", dtype="bf16")], model="m")
    recipe = Recipe(model="m", source="a test", layers=[LayerRule(match=["fc"], **rule)]) if rule else None
    return hw.estimate(hw.prune(trace, recipe) if recipe else trace, device=device)


@pytest.mark.parametrize("device", ["a100-40gb", "agx-orin-64gb", "tpu-v3", "host-cpu"])
def test_every_machine_reads_narrow_weights_with_their_scales(device: str) -> None:
    """4 bits a weight and 32 bits of scale for 64 of them, in place of 16 bits a weight; the multiplication stays bf16."""
    wide, narrow = priced(None, device), priced({"weight_dtype": "int4", "group": 64, "scale_bits": 32}, device)
    saved = 2 * SIDE**2 - (SIDE**2 // 2 + SIDE * (SIDE // 64) * 4)
    assert wide.dram_bytes - narrow.dram_bytes == pytest.approx(saved)
    assert narrow.latency_s < wide.latency_s


def test_rules_of_formats_win_one_by_one() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=16, k=100, n=8, name="fc")], model="m")
    rules = [{"weight_dtype": "int4", "group": 32}, {"block": (4, 4), "density": 0.5}]
    made = hw.prune(trace, Recipe(model="m", source="s", layers=[LayerRule(match=["fc"], **rule) for rule in rules]))["fc"]
    assert (made.dtype, made.weight_dtype, made.scale_bytes) == (None, "int4", 8 * 4 * 2)  # 100 / 32 is four groups a row
    later = hw.prune(
        trace, Recipe(model="m", source="s", layers=[LayerRule(match=["fc"], **rules[0]), LayerRule(match=["fc"], dtype="int8")])
    )
    assert (later["fc"].dtype, later["fc"].weight_dtype, later["fc"].scale_bytes) == ("int8", None, 0)


def test_formats_are_saved_with_recipe_and_trace(tmp_path) -> None:
    rule = LayerRule(match=["fc"], weight_dtype="int4", group=32, scale_bits=24)
    recipe = Recipe(model="m", source="s", layers=[rule])
    hw.save_recipe(recipe, tmp_path / "r.toml")
    assert hw.load_recipe(tmp_path / "r.toml") == recipe
    trace = hw.prune(hw.Trace.from_operators([hw.matmul(m=16, k=64, n=8, name="fc")], model="m"), recipe)
    for ending in ("json", "parquet"):
        hw.save_trace(trace, tmp_path / f"t.{ending}")
        assert hw.load_trace(tmp_path / f"t.{ending}") == trace


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"weight_dtype": "int3"}, "unknown dtype 'int3'"),
        ({"block": (1, 1), "density": 1.0, "group": 4}, "there is no dtype or weight_dtype"),
        ({"weight_dtype": "int4", "scale_bits": 4}, "there is no group"),
    ],
)
def test_formats_that_say_nothing_are_refused(rule: dict, reason: str) -> None:
    with pytest.raises(hw.HwmodelError, match=reason):
        Recipe.from_mapping({"fc": rule}, model="m")


def test_formats_of_weights_need_weights() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=2, k=2, n=2, batch=2, name="scores")], model="m")
    with pytest.raises(hw.HwmodelError, match="scores has none"):
        hw.prune(trace, {"scores": {"weight_dtype": "int8"}})
