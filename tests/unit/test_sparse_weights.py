"""Every way a weight can be pruned, read from live modules and from their state dicts, with what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import hwmodel as hw
from hwmodel.errors import CheckpointError, HwmodelError
from hwmodel.extraction import zoo
from hwmodel.ir.findings import WeightFinding

MODEL = "test_vit"
QKV = "blocks.0.attn.qkv"


def kept_blocks(weight: torch.Tensor, block: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """A mask of the weight's shape that keeps about half of its blocks, the last one of all never."""
    rows, cols = weight.shape[0], weight[0].numel()
    grid = torch.rand(-(-rows // block[0]), -(-cols // block[1]), generator=torch.Generator().manual_seed(seed)) < 0.5
    grid[-1, -1] = False
    return grid.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :cols].reshape(weight.shape)


class Mask(nn.Module):
    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("chosen", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.chosen


def with_hooks(layer: nn.Module) -> None:
    prune.custom_from_mask(layer, "weight", kept_blocks(layer.weight, (16, 16)))


def with_parametrization(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Mask(kept_blocks(layer.weight, (16, 16)).float()))


def with_buffer(layer: nn.Module) -> None:
    layer.register_buffer("weight_mask", kept_blocks(layer.weight, (16, 16)))


@torch.no_grad()
def with_zeros(layer: nn.Module) -> None:
    layer.weight *= kept_blocks(layer.weight, (16, 16))


def with_bsr(layer: nn.Module) -> None:
    values = layer.weight.detach() * kept_blocks(layer.weight, (16, 16))
    layer.weight = nn.Parameter(values.to_sparse_bsr((16, 16)))


def with_weight_norm(layer: nn.Module) -> None:
    with_zeros(layer)
    parametrizations.weight_norm(layer)


@torch.no_grad()
def with_two_of_four(layer: nn.Module) -> None:
    fours = layer.weight.view(-1, 4)
    fours.scatter_(1, fours.abs().argsort(dim=1)[:, :2], 0)


@torch.no_grad()
def with_scattered_zeros(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.25)


def live() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build(MODEL, device="cpu")


def finding(trace: hw.Trace, name: str = QKV) -> WeightFinding:
    return next(found for found in trace.findings if found.operator == name)


def both(model: nn.Module, folder: Path, block: tuple[int, int] | None = None) -> hw.Trace:
    """The trace of a live model; that of its state dict says the same."""
    trace = hw.trace(model, block=block)
    torch.save(model.state_dict(), folder / "weights.pt")
    stored = hw.trace(MODEL, checkpoint=folder / "weights.pt", block=block)
    assert (stored.operators, stored.edges, stored.findings) == (trace.operators, trace.edges, trace.findings)
    return trace


FORMS: dict[Callable[[nn.Module], None], str] = {
    with_hooks: "masked", with_parametrization: "masked", with_buffer: "masked", with_zeros: "zeros", with_bsr: "bsr",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse BSR")
@pytest.mark.parametrize("pruning", FORMS)
def test_blocks_are_found_however_they_are_stored(tmp_path: Path, pruning: Callable[[nn.Module], None]) -> None:
    model = live()
    layer = model.get_submodule(QKV)
    expected = kept_blocks(layer.weight, (16, 16))
    pruning(layer)
    found = both(model, tmp_path)
    share = expected.sum().item() / expected.numel()
    seen = finding(found)
    assert (seen.form, seen.block, seen.unexplained_zeros, seen.reason) == (FORMS[pruning], (16, 16), 0, "")
    assert seen.kept_weights == seen.block_weights == expected.sum()
    assert seen.nominal_macs == seen.effective_macs == found[QKV].kept_macs == seen.macs * share
    assert found[QKV].mask.kept.sum() == expected.sum() / 256


def test_zeros_survive_a_weight_norm(tmp_path: Path) -> None:
    """Magnitude times direction: a live module computes it on every call, a checkpoint of the plain model does not."""
    model = live()
    layer = model.get_submodule(QKV)
    expected = kept_blocks(layer.weight, (16, 16))
    with_weight_norm(layer)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for found in (hw.trace(model), hw.trace(MODEL, checkpoint=tmp_path / "weights.pt")):
        assert found[QKV].mask.block == (16, 16)
        assert found[QKV].mask.kept_weights == expected.sum()


@pytest.mark.parametrize("pruning", [with_hooks, with_parametrization])
def test_masks_add_no_operators_and_change_no_module(pruning: Callable[[nn.Module], None]) -> None:
    model = live()
    pruning(model.get_submodule(QKV))
    kind, names = type(model.get_submodule(QKV)), list(model.state_dict())
    values = model.get_submodule(QKV).weight.detach().clone()
    dense, found = hw.trace(MODEL), hw.trace(model)
    assert [one.replace(mask=None) for one in found.operators] == list(dense.operators)
    assert found.edges == dense.edges
    assert (type(model.get_submodule(QKV)), list(model.state_dict())) == (kind, names)
    assert torch.equal(model.get_submodule(QKV).weight, values)


def test_two_of_four(tmp_path: Path) -> None:
    model = live()
    with_two_of_four(model.get_submodule(QKV))
    found = both(model, tmp_path)
    assert (found[QKV].sparsity, found[QKV].mask) == ("2:4", None)
    assert finding(found).form == "2:4"
    assert found[QKV].kept_macs == found[QKV].macs / 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
def test_a_semi_structured_tensor_is_known_by_its_class() -> None:
    """The class packs two of four values and where they are; only CUDA can make or read one, any machine can hold one."""
    model = live()
    layer = model.get_submodule(QKV)
    rows, cols = layer.weight.shape
    packed = torch.ones(rows, cols // 2, dtype=torch.float16)
    kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    weight = kind(layer.weight.shape, packed, torch.zeros(rows, cols // 16, dtype=torch.int16), packed, None, None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    found = hw.trace(model)
    assert found[QKV].sparsity == "2:4"
    assert finding(found).kept_weights == rows * cols // 2


def test_scattered_zeros_gain_nothing_and_the_trace_says_so(tmp_path: Path) -> None:
    model = live()
    with_scattered_zeros(model.get_submodule(QKV))
    found = both(model, tmp_path)
    seen = finding(found)
    assert found[QKV] == hw.trace(MODEL)[QKV]
    assert seen.nominal_macs == seen.macs * 0.75
    assert seen.effective_macs == seen.macs
    assert seen.unexplained_zeros == seen.weights // 4
    assert "weights are zero (25.0%), but scattered" in seen.reason


def test_a_given_block_counts_the_zeros_it_does_not_explain(tmp_path: Path) -> None:
    model = live()
    with_zeros(model.get_submodule(QKV))
    found = both(model, tmp_path, block=(32, 32))
    pattern = kept_blocks(model.get_submodule(QKV).weight, (16, 16)).reshape(6, 32, 2, 32)
    empty = (~pattern.any(dim=3).any(dim=1)).sum().item()
    seen = finding(found)
    assert empty > 0
    assert seen.block == (32, 32)
    assert seen.block_weights == seen.weights - empty * 1024
    assert seen.unexplained_zeros == (~pattern).sum().item() - empty * 1024


def test_a_given_block_that_is_nowhere_empty() -> None:
    model = live()
    with_scattered_zeros(model.get_submodule(QKV))
    assert "no 8x8 block is empty" in finding(hw.trace(model, block=(8, 8))).reason


def test_dense_layers_are_told_and_keep_their_operators() -> None:
    found = hw.trace(live())
    assert {seen.form for seen in found.findings} == {"dense"}
    assert found.operators == hw.trace(MODEL).operators
    assert "patch_embed.proj" in {seen.operator for seen in found.findings}


def test_a_patch_embedding_is_a_matrix_of_outputs_by_window() -> None:
    model = live()
    weight = model.get_submodule("patch_embed.proj").weight
    with torch.no_grad():
        weight *= kept_blocks(weight, (16, 64))
    mask = hw.trace(model)["patch_embed.proj"].mask
    assert (mask.shape, mask.block) == ((weight.shape[0], weight[0].numel()), (16, 64))


class Attending(nn.Module):
    """Self-attention, then attention over other keys: torch's one weight is used whole, and in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(64, 4, batch_first=True)
        self.outer = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        x = self.inner(x, x, x, need_weights=False)[0]
        return self.outer(x, other, other, need_weights=False)[0]


def test_in_proj_of_torch_attention_whole_and_in_parts() -> None:
    model = Attending()
    expected = kept_blocks(torch.ones(192, 64), (16, 16))
    with torch.no_grad():
        model.inner.in_proj_weight *= expected
        model.outer.in_proj_weight *= expected
    found = hw.trace(model, example=(torch.ones(1, 9, 64), torch.ones(1, 5, 64)))
    parts = [operator for operator in found.operators if operator.name.startswith("outer.in_proj")]
    assert found["inner.in_proj"].mask.kept_weights == expected.sum()
    assert [part.n for part in parts] == [64, 128]
    assert [part.mask.kept_weights for part in parts] == [expected[:64].sum(), expected[64:].sum()]


class Standardised(nn.Module):
    """Zeros of a weight do not survive the subtraction of its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(dim=1, keepdim=True))


def test_zeros_of_a_weight_that_is_computed_anew_are_not_followed() -> None:
    model = Standardised()
    with torch.no_grad():
        model.weight[:16] = 0
    found = hw.trace(model, example=torch.ones(4, 32))
    (seen,) = found.findings
    assert seen.form == "computed"
    assert "need not survive" in seen.reason
    assert all(operator.mask is None for operator in found.operators)


def test_findings_are_saved_with_the_trace(tmp_path: Path) -> None:
    model = live()
    with_zeros(model.get_submodule(QKV))
    found = hw.trace(model).replace(notes=("a note",))
    for name in ("t.json", "t.parquet"):
        hw.save_trace(found, tmp_path / name)
        loaded = hw.load_trace(tmp_path / name)
        assert (loaded, loaded.findings, loaded.notes) == (found, found.findings, ("a note",))


def test_nan_in_a_live_module_is_refused() -> None:
    model = live()
    with torch.no_grad():
        model.get_submodule(QKV).weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=f"VisionTransformer: {QKV}.weight holds NaN"):
        hw.trace(model)


def test_a_block_without_weights_is_refused() -> None:
    with pytest.raises(HwmodelError, match="none to read"):
        hw.trace(MODEL, block=(32, 32))
