"""Narrower models from shapes, and parts that are gone: expected shapes and rows are written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwmodel as hw
from hwmodel.errors import CheckpointError
from hwmodel.extraction.weights.narrowing import fit, fit_to_shapes
from hwmodel.extraction.whatif.comparison import found_structure
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.extraction.zoo import build

NAME = "deit_tiny_patch16_224"  # 12 blocks, 3 heads of 64
EXAMPLE = torch.empty(1, 3, 224, 224, device="meta")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(NAME)


@pytest.fixture(scope="module")
def dense() -> hw.Trace:
    return hw.trace(NAME)


def shapes(model: nn.Module, **changed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict; ``changed`` names tensors with ``__`` for dots."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return own | {name.replace("__", "."): shape for name, shape in changed.items()}


def attention(queries: int, values: int) -> dict[str, tuple[int, ...]]:
    fused = 2 * queries + values
    names = {"qkv__weight": (fused, 192), "qkv__bias": (fused,), "proj__weight": (192, values)}
    return {f"blocks__0__attn__{name}": shape for name, shape in names.items()}


@pytest.mark.parametrize(
    ("queries", "values", "notes"),
    [
        (128, 128, ()),  # two heads of 64
        (96, 96, ("blocks.0.attn: read as 3 heads of 32, of 3 heads of 64; 2 heads of 48 or 1 head of 96",)),
        (96, 192, ("blocks.0.attn: read as 3 heads of 32 (queries, keys) and 64 (values), of 3 heads of 64",)),
    ],
)
def test_heads_are_read_off_the_widths(model: nn.Module, queries: int, values: int, notes: tuple[str, ...]) -> None:
    wanted = shapes(model, **attention(queries, values))
    fitted = fit(model, wanted)
    assert shapes(fitted.module) == wanted
    assert len(fitted.notes) >= len(notes)
    assert all(found.startswith(note[:60]) for found, note in zip(fitted.notes, notes, strict=False))
    block = [op for op in hw.trace(fitted.module, example=EXAMPLE).operators if op.block == 0]
    assert next(op.k for op in block if op.role == "proj") == values
    assert model.blocks[0].attn.qkv.weight.shape == (576, 192)  # the dense model stays as it is


def test_other_numbers_of_classes_are_taken_and_told(model: nn.Module) -> None:
    fitted = fit(model, shapes(model, head__weight=(10, 192), head__bias=(10,)))
    assert fitted.notes == ("head: 10 classes, the dense model has 1000",)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"spare": (1,)}, "1 unexpected: spare"),
        ({"pos_embed": (1, 3, 3)}, "1 misshaped: pos_embed (1x3x3, expected 1x197x192)"),
        ({"blocks__0__attn__qkv__weight": (101, 192)}, "blocks.0.attn: qkv is 101 wide and proj reads 192"),
        (attention(193, 192), "blocks.0.attn: 193 values for queries and 192 for values do not divide into heads"),
        ({"blocks__0__mlp__fc1__weight": (70, 192)}, "1 misshaped: blocks.0.mlp.fc1.weight (70x192, expected 768x192)"),
    ],
)
def test_what_no_pruning_explains_is_listed(model: nn.Module, changed: dict, reason: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        fit_to_shapes(model, shapes(model, **changed))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_another_model_is_refused_with_counts(model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"152 missing: .* and 147 more; 122 unexpected: bn1\.bias.* and 117 more$"):
        fit(model, shapes(build("resnet18")))


class OnlyMlp(nn.Module):
    """What a user leaves of a block without attention."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm2(x))


def changed(edit: str) -> nn.Module:
    model = build(NAME)
    if edit == "fewer blocks":
        model.blocks = model.blocks[:9]
    elif edit == "block 3 is the identity":
        model.blocks[3] = nn.Identity()
    elif edit == "identities":
        model.blocks[5].mlp = nn.Identity()
    else:
        model.blocks[11] = OnlyMlp(model.blocks[11])
    return model


EDITS = {
    "fewer blocks": (EncoderRule(blocks="9-11", remove=["attention", "mlp"]), set(range(9))),
    "block 3 is the identity": (EncoderRule(blocks="3", remove=["attention", "mlp"]), set(range(12)) - {3}),
    "identities": (EncoderRule(blocks="5", identity=["mlp"]), set(range(12))),
    "no attention": (EncoderRule(blocks="11", remove=["attention"]), set(range(12))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_gone_from_a_live_model(edit: str, dense: hw.Trace) -> None:
    rule, blocks = EDITS[edit]
    live = hw.trace(changed(edit), example=EXAMPLE)
    assert {op.block for op in live.operators if op.block is not None} == blocks
    assert found_structure(dense, live) == (rule,)
    pruned = hw.prune(dense, Recipe(model=NAME, source="a test", encoder=[rule]))
    assert (pruned.macs, pruned.kept_macs, pruned.edges) == (dense.macs, live.macs, live.edges)


def test_removed_macs_are_saved_with_the_trace(dense: hw.Trace, tmp_path) -> None:
    pruned = hw.prune(dense, Recipe(model=NAME, source="a test", encoder=[EncoderRule(blocks="0", remove=["mlp"])]))
    assert pruned.removed_macs == 2 * 197 * 192 * 768
    for ending in ("json", "parquet"):
        hw.save_trace(pruned, tmp_path / f"t.{ending}")
        assert hw.load_trace(tmp_path / f"t.{ending}") == pruned


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"qk": 65}, "encoder.0.qk: block 0: found 65, but a head of the block is 64 wide"),
        ({"remove": ["head"]}, "expected 'attention' or 'mlp'"),
        ({"remove": ["mlp"], "mlp": 100}, "encoder.0.mlp: block 0: expected one operator with role 'fc2', found none"),
    ],
)
def test_structure_that_is_not_there_is_refused(dense: hw.Trace, rule: dict, reason: str) -> None:
    document = {"schema_version": 1, "model": NAME, "source": "s", "encoder": [{"blocks": "0", **rule}]}
    with pytest.raises(hw.HwmodelError) as refusal:
        hw.prune(dense, Recipe.from_document(document, "mine.toml"))
    assert reason in str(refusal.value)


def test_a_trace_without_edges_cannot_lose_parts(dense: hw.Trace) -> None:
    recipe = Recipe(model=NAME, source="s", encoder=[EncoderRule(blocks="0", remove=["mlp"])])
    with pytest.raises(hw.HwmodelError, match="the trace has no edges"):
        hw.prune(dense.replace(edges=()), recipe)
