"""Linears that torchao quantised, for real."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import hwmodel as hw

logging.disable(logging.WARNING)  # torchao tells at import which GPU kernels it lacks
quantization = pytest.importorskip("torchao.quantization")
logging.disable(logging.NOTSET)
pytestmark = pytest.mark.peer

N, K = 128, 64


def quantised(config: object, *, dtype: torch.dtype = torch.float32) -> hw.Trace:
    model = nn.Sequential(nn.Linear(K, N), nn.GELU(), nn.Linear(N, 10)).eval().to(dtype)
    quantization.quantize_(model, config, lambda layer, path: path == "0")
    before = {path: type(layer) for path, layer in model.named_modules()}
    trace = hw.trace(model, example=torch.zeros(4, K, dtype=dtype))
    assert {path: type(layer) for path, layer in model.named_modules()} == before
    assert type(model[0].weight).__module__.startswith("torchao")
    assert [op.name for op in trace.operators] == ["0", "1", "2"]
    assert trace.macs == 4 * K * N + 4 * N * 10
    assert trace["2"].weight_dtype is None
    return trace


GROUPED = {"granularity": quantization.PerGroup(32)}
CASES = [  # config, format of the product, format of its weights, bytes of scale and zero point (fp32 and int8) times their number
    (quantization.Int8WeightOnlyConfig(), None, "int8", N * 5),
    (quantization.Int8DynamicActivationInt8WeightConfig(), "int8", None, N * 5),
    (quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, **GROUPED), None, "int4", N * (K // 32) * 5),
    (
        quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=GROUPED["granularity"]),
        "int8",
        "int4",
        N * (K // 32) * 5,
    ),
]


@pytest.mark.parametrize(("config", "dtype", "weights", "scales"), CASES)
def test_formats_of_real_tensors(config: object, dtype: str | None, weights: str | None, scales: int) -> None:
    linear = quantised(config)["0"]
    assert (linear.dtype, linear.weight_dtype, linear.scale_bytes) == (dtype, weights, scales)


def test_a_16_bit_model_with_8_bit_weights() -> None:
    trace = quantised(quantization.Int8WeightOnlyConfig(), dtype=torch.bfloat16)
    assert (trace.dtype, trace["0"].dtype, trace["0"].weight_dtype) == ("bf16", None, "int8")


@pytest.mark.parametrize(
    ("config", "held"),
    [
        (quantization.Float8WeightOnlyConfig(), "Float8Tensor holds float8_e4m3fn"),
        (quantization.IntxWeightOnlyConfig(weight_dtype=torch.int2, **GROUPED), "IntxUnpackedToInt8Tensor holds int2"),
    ],
)
def test_formats_without_a_name_are_refused(config: object, held: str) -> None:
    with pytest.raises(hw.HwmodelError, match=rf"^Sequential: 0\.weight: {held} weights; known are int8 and int4$"):
        quantised(config)
