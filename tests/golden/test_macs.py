"""MACs of published models, by hand from their published configuration (depth, width, heads, patch, image)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import pytest

import hwmodel as hw


@dataclass(frozen=True)
class Vit:
    """Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1; Zhai et al. 2022, table 2."""

    depth: int
    width: int
    hidden: int
    patch: int = 16
    image: int = 224
    extra_tokens: int = 1
    heads_at_end: int = 1
    classes: int = 1000

    def linear(self, batch: int = 1) -> int:
        patches = (self.image // self.patch) ** 2
        tokens = patches + self.extra_tokens
        embed = patches * 3 * self.patch**2 * self.width
        block = tokens * (3 * self.width**2 + self.width**2 + 2 * self.width * self.hidden)
        return batch * (embed + self.depth * block + self.heads_at_end * self.width * self.classes)

    def attention(self, batch: int = 1) -> int:
        tokens = (self.image // self.patch) ** 2 + self.extra_tokens
        return batch * self.depth * 2 * tokens**2 * self.width


TINY, SMALL, BASE = (12, 192, 768), (12, 384, 1536), (12, 768, 3072)
LARGE, HUGE = (24, 1024, 4096), (32, 1280, 5120)

VITS = {
    "deit_tiny_patch16_224": Vit(*TINY),
    "deit_small_patch16_224": Vit(*SMALL),
    "deit_base_patch16_224": Vit(*BASE),
    "deit_base_patch16_384": Vit(*BASE, image=384),
    "deit_tiny_distilled_patch16_224": Vit(*TINY, extra_tokens=2, heads_at_end=2),
    "deit_small_distilled_patch16_224": Vit(*SMALL, extra_tokens=2, heads_at_end=2),
    "deit_base_distilled_patch16_224": Vit(*BASE, extra_tokens=2, heads_at_end=2),
    "deit_base_distilled_patch16_384": Vit(*BASE, image=384, extra_tokens=2, heads_at_end=2),
    "deit3_small_patch16_224": Vit(*SMALL),
    "deit3_medium_patch16_224": Vit(12, 512, 2048),
    "deit3_base_patch16_224": Vit(*BASE),
    "deit3_large_patch16_224": Vit(*LARGE),
    "deit3_huge_patch14_224": Vit(*HUGE, patch=14),
    "vit_tiny_patch16_224": Vit(*TINY),
    "vit_small_patch32_224": Vit(*SMALL, patch=32),
    "vit_small_patch16_224": Vit(*SMALL),
    "vit_base_patch32_224": Vit(*BASE, patch=32),
    "vit_base_patch16_224": Vit(*BASE),
    "vit_base_patch8_224": Vit(*BASE, patch=8),
    "vit_large_patch32_224": Vit(*LARGE, patch=32, heads_at_end=0),  # timm's default weights have no head
    "vit_large_patch16_224": Vit(*LARGE),
    "vit_large_patch16_384": Vit(*LARGE, image=384),
    "vit_large_patch14_224": Vit(*LARGE, patch=14),
    "vit_huge_patch14_224": Vit(*HUGE, patch=14, heads_at_end=0),
    "vit_giant_patch14_224": Vit(40, 1408, 6144, patch=14),
    "vit_gigantic_patch14_224": Vit(48, 1664, 8192, patch=14),
    "vit_medium_patch16_reg4_gap_256": Vit(12, 512, 2048, image=256, extra_tokens=4),
    "vit_large_patch14_reg4_dinov2": Vit(*LARGE, patch=14, image=518, extra_tokens=5, heads_at_end=0),
}


@pytest.mark.parametrize("name", VITS)
def test_vit(name: str) -> None:
    trace, config = hw.trace(name), VITS[name]
    assert sum(row.macs for row in trace.operators if row.parameter) == config.linear()
    assert sum(row.macs for row in trace.operators if not row.parameter) == config.attention()
    assert {row.block for row in trace.operators} == {None, *range(config.depth)}


def test_deit_tiny_is_the_number_everybody_knows() -> None:
    trace = hw.trace("deit_tiny_patch16_224")
    assert trace.macs == 1_253_683_200 == 1_074_851_328 + 178_831_872


def test_batch_scales_macs() -> None:
    assert hw.trace("deit_tiny_patch16_224", batch=8).macs == 8 * 1_253_683_200


@dataclass(frozen=True)
class Swin:
    """Liu et al. 2021, section 3.3: width C, depths, window M; stage s has width C 2^s on a map of image / 4 / 2^s.

    A map that windows do not tile is padded before attention; a map smaller than a window is one window.
    """

    width: int
    depths: tuple[int, ...]
    window: int = 7
    image: int = 224
    heads: tuple[int, ...] = (3, 6, 12, 24)
    version: int = 1

    def macs(self) -> int:
        total = (self.image // 4) ** 2 * 3 * 4**2 * self.width
        for stage in range(len(self.depths)):
            total += self._merge(stage) + self.depths[stage] * self._block(stage)
        return total + self.width * 2 ** (len(self.depths) - 1) * 1000

    def _merge(self, stage: int) -> int:
        """2x2 neighbours (4 C) to twice the width (2 C), C being the width before."""
        before = self.width * 2 ** (stage - 1)
        return (self.image // 4 // 2**stage) ** 2 * 4 * before * 2 * before if stage else 0

    def _block(self, stage: int) -> int:
        side, width = self.image // 4 // 2**stage, self.width * 2**stage
        window = min(self.window, side)
        padded = (ceil(side / window) * window) ** 2
        attention = padded * (3 * width**2 + width**2) + 2 * padded * window**2 * width
        return attention + side**2 * 2 * width * 4 * width + self._position_bias(window, self.heads[stage])

    def _position_bias(self, window: int, heads: int) -> int:
        """Version 2 computes it from 2 coordinates through 512 hidden features; version 1 looks it up."""
        return (2 * window - 1) ** 2 * (2 * 512 + 512 * heads) if self.version == 2 else 0


T, S = (2, 2, 6, 2), (2, 2, 18, 2)
B_HEADS, L_HEADS = (4, 8, 16, 32), (6, 12, 24, 48)
SWINS = {
    "swin_tiny_patch4_window7_224": (Swin(96, T), None),
    "swin_small_patch4_window7_224": (Swin(96, S), None),
    "swin_base_patch4_window7_224": (Swin(128, S), None),
    "swin_base_patch4_window12_384": (Swin(128, S, window=12, image=384), None),
    "swin_large_patch4_window7_224": (Swin(192, S), None),
    "swin_large_patch4_window12_384": (Swin(192, S, window=12, image=384), None),
    "swin_tiny_patch4_window7_224 at 256": (Swin(96, T, image=256), 256),
    "swinv2_tiny_window8_256": (Swin(96, T, window=8, image=256, version=2), None),
    "swinv2_tiny_window16_256": (Swin(96, T, window=16, image=256, version=2), None),
    "swinv2_small_window8_256": (Swin(96, S, window=8, image=256, version=2), None),
    "swinv2_base_window16_256": (Swin(128, S, window=16, image=256, heads=B_HEADS, version=2), None),
}


@pytest.mark.parametrize("name", SWINS)
def test_swin(name: str) -> None:
    config, image_size = SWINS[name]
    trace = hw.trace(name.partition(" ")[0], image_size=image_size)
    assert trace.macs == config.macs()
    assert {row.block for row in trace.operators} == {None, *range(sum(config.depths))}
