"""A small ViT, images and a made-up device that the tests of the closed loop share."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from hwmodel.backends import registry
from hwmodel.backends.base import Costs, Options, Parameters, Workload
from hwmodel.extraction.torchvision_repair import import_torchvision

import_torchvision()
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

FOUR = ("vita", "tpu-v3", "a100-40gb-sxm", "agx-orin-64gb")
EXAMPLE = torch.zeros(1, 3, 32, 32)
WIDTH, TOKENS = 192, 4 * 4 + 1


def small_vit(depth: int = 2, seed: int = 0) -> nn.Module:
    """17 tokens, six heads of 32, random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=depth, num_heads=6, num_classes=10).eval()


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    """Noise."""
    return torch.randn((count, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


class ProportionalParameters(Parameters):
    """What its card says."""

    mac_j: Annotated[float, Field(gt=0)]


class Proportional:
    """A device whose energy is its kept MACs in linear layers times a constant; everything else is free."""

    name: ClassVar[str] = "proportional"
    modes: ClassVar[tuple[str, ...]] = ("peak",)
    parameters: ClassVar[type[ProportionalParameters]] = ProportionalParameters

    def kinds(self, mode: str) -> frozenset[str]:
        return frozenset({"matmul", "conv", "softmax", "layernorm", "gelu", "add", "mul", "concat", "copy"})

    def free(self, mode: str) -> Mapping[str, str]:
        return {}

    def cost(self, workload: Workload, parameters: ProportionalParameters, options: Options) -> Costs:
        linear = np.array([operator.parameter for operator in workload.trace.operators])
        macs = np.where(linear, workload.kept_macs, 0)
        nothing = np.zeros(len(workload))
        return Costs(
            cycles=macs, latency_s=macs / 1e12, compute_j=macs * parameters.mac_j, onchip_j=nothing, offchip_j=nothing,
            static_j=nothing, dram_bytes=nothing, executed_macs=macs, bound=np.where(macs > 0, "compute", "none"),
            kernel=np.full(len(workload), "array"), fused_into=np.arange(len(workload)),
        )  # fmt: skip


CARD = """schema_version = 1
name = "proportional-1"
title = "Energy proportional to FLOPs"
backend = "proportional"
dtypes = ["int8"]
default_dtype = "int8"
default_mode = "peak"

[parameters]
mac_j = { value = 0.3e-12, fidelity = "assumed", source = "made up" }

[fidelity.peak]
latency = "assumed"
energy = "assumed"
reason = "made up"
"""


@pytest.fixture
def proportional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of :class:`Proportional`, its backend installed for one test."""
    known = {**registry._found(), "proportional": EntryPoint("proportional", f"{__name__}:Proportional", registry.GROUP)}
    monkeypatch.setattr(registry, "_found", lambda: known)
    card = tmp_path / "proportional.toml"
    card.write_text(CARD, encoding="utf-8")
    return card
