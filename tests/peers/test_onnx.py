"""A ViT exported by torch.onnx gives the rows of the torch path: same products, bytes, roles, blocks and names."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import hwmodel as hw
from hwmodel.extraction import zoo
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.peer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def export(model: nn.Module, path: Path, exporter: str, image: torch.Tensor, *, free_batch: bool = False) -> Path:
    """The module as PyTorch's own exporters write it; no two weights equal, or exporters would share them."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    with quiet():
        if exporter == "dynamo":
            sizes = ({0: torch.export.Dim("images")},) if free_batch else None
            program = torch.onnx.export(model, (image,), dynamo=True, verbose=False, dynamic_shapes=sizes)
            assert program is not None
            program.save(str(path))
        else:
            axes = {"image": {0: "images"}} if free_batch else None
            torch.onnx.export(
                model, (image,), str(path), dynamo=False, opset_version=int(exporter), input_names=["image"], dynamic_axes=axes
            )
    return path


def small_timm(**options: int) -> nn.Module:
    import_torchvision()
    from timm.models import VisionTransformer

    return VisionTransformer(patch_size=16, num_classes=7, **options).eval()


class SmallViT(nn.Module):
    """A ViT of PyTorch's own layers, with a gate in place of the usual activation."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, norm_first=True, batch_first=True) for _ in range(2))
        self.gate = nn.Linear(32, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.nn.functional.silu(self.gate(x.mean(dim=1))))


def rows(trace: hw.Trace) -> list[tuple[object, ...]]:
    """What a row multiplies and moves. Parameters and inputs together: what an exporter folds becomes a parameter."""
    return sorted(map(_row, (op for op in trace.operators if not op.constant)), key=str)


def _row(op: Operator) -> tuple[object, ...]:
    shape = (op.kind, op.role, op.block, op.batch, op.m, op.k, op.n, op.elements, op.cols)
    return (*shape, op.input_elements + op.weight_elements, op.output_elements, op.attention_group, op.fused_in_source)


def products(trace: hw.Trace) -> list[tuple[object, ...]]:
    return [
        (op.name, *_row(op), op.weight_bytes, op.input_bytes)
        for op in trace.operators
        if op.family == "product" and not op.constant
    ]


def moved_bytes(trace: hw.Trace) -> float:
    return sum(op.weight_bytes + op.input_bytes + op.output_bytes for op in trace.operators if not op.constant)


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("test_vit", "17"),
        pytest.param("deit_tiny_patch16_224", "17", marks=pytest.mark.slow),
        pytest.param("deit_tiny_patch16_224", "dynamo", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "17", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "dynamo", marks=pytest.mark.slow),
    ],
)
def test_timm_models_give_the_rows_of_the_torch_path(name: str, exporter: str, tmp_path: Path) -> None:
    file = export(zoo.build(name, device="cpu"), tmp_path / "model.onnx", exporter, torch.zeros(1, *hw.trace(name).input_shape[1:]))
    found, expected = hw.trace(file), hw.trace(name)
    assert found.macs == expected.macs
    assert moved_bytes(found) == moved_bytes(expected)
    assert rows(found) == rows(expected)
    assert products(found) == products(expected)


@pytest.mark.parametrize("exporter", ["dynamo", "14"])
def test_a_vit_of_torch_layers_gives_the_rows_of_the_torch_path(exporter: str, tmp_path: Path) -> None:
    """Operator set 14 has neither LayerNormalization nor Gelu: both come as the nodes they are made of."""
    model, image = SmallViT().eval(), torch.zeros(1, 3, 32, 32)
    file = export(model, tmp_path / "small.onnx", exporter, image)
    found, expected = hw.trace(str(file)), hw.trace(model, example=image)
    assert found.macs == expected.macs
    assert products(found) == products(expected)
    packed = 3 * 16 * 32  # queries, keys and values, which PyTorch's layer makes contiguous; ONNX has no word for that
    missing = [row for row in rows(expected) if row not in rows(found)]
    assert [(row[0], row[7]) for row in missing] == [("copy", packed)] * 2
    assert [row for row in rows(found) if row not in rows(expected)] == []


@pytest.mark.parametrize("exporter", ["dynamo", "17"])
def test_a_free_batch_is_asked_for(exporter: str, tmp_path: Path) -> None:
    model = small_timm(img_size=64, embed_dim=96, depth=2, num_heads=3)
    file = export(model, tmp_path / "model.onnx", exporter, torch.zeros(2, 3, 64, 64), free_batch=True)
    for batch in (1, 3):
        expected = hw.trace(model, example=torch.zeros(batch, 3, 64, 64))
        found = hw.trace(file, batch=batch)
        assert (found.batch, found.macs, rows(found)) == (batch, expected.macs, rows(expected))


def test_zeros_in_the_weights_are_the_masks_that_the_module_has(tmp_path: Path) -> None:
    model = small_timm(img_size=32, embed_dim=64, depth=1, num_heads=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[32:96, 16:48] = 0
    torch.onnx.export(model, (torch.zeros(1, 3, 32, 32),), str(tmp_path / "model.onnx"), dynamo=False)
    found = hw.trace(tmp_path / "model.onnx")["blocks.0.mlp.fc1"].mask
    assert isinstance(found, BlockMask)
    assert found == hw.trace(model, example=torch.zeros(1, 3, 32, 32))["blocks.0.mlp.fc1"].mask
    assert found.kept_weights == 256 * 64 - 64 * 32
