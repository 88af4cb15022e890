"""Reasons for differences between counters: each must reproduce the other figure, or say that nothing does."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import hwmodel as hw
from hwmodel.cli import main
from hwmodel.validation import counters
from hwmodel.validation import reconcile as module
from hwmodel.validation.counters import Count, Counted
from hwmodel.validation.reconcile import KINDS, UNEXPLAINED, Reconciliation, reconcile

TOKENS, WIDTH, HEADS = 10, 16, 4
LINEAR = TOKENS * 4 * WIDTH * WIDTH
ATTENTION = 2 * TOKENS * TOKENS * WIDTH


class Block(nn.Module):
    """One attention and nothing else: q, k, v and the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(1, TOKENS, WIDTH))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x)


def _with(monkeypatch: pytest.MonkeyPatch, **said: Counted | Exception) -> Reconciliation:
    """Reconcile the model with counters that say what they are told to."""

    def adapter(found: Counted | Exception) -> object:
        def run(model: nn.Module, inputs: object) -> Counted:
            if isinstance(found, Exception):
                raise found
            return found

        return run

    monkeypatch.setattr(counters, "COUNTERS", {name: ("torch", adapter(found)) for name, found in said.items()})
    return reconcile(Model(), example=torch.zeros(1, TOKENS, WIDTH))


def _reasons(found: Reconciliation) -> dict[str, str]:
    (column,) = found.columns
    assert sum(one.macs for one in column.differences) == column.total - found.trace.macs
    return {one.kind: one.reason for one in column.differences}


PROJECTIONS = (Count("attn.qkv", "linear", 3 * LINEAR // 4), Count("attn.proj", "linear", LINEAR // 4))


def test_torch_alone_is_exact_in_its_math_form_and_loses_fused_attention() -> None:
    found = reconcile(Model(), example=torch.zeros(1, TOKENS, WIDTH))
    assert found.macs == {"linear": LINEAR, "conv": 0, "scores/context": ATTENTION, "rest": 0, "no product": 0}
    columns = {column.counter: column for column in found.columns}
    assert columns["torch, math attention"].differences == ()
    (lost,) = columns["torch"].differences
    assert (lost.kind, lost.macs, lost.cells) == ("scores/context", -ATTENTION, 1)
    assert "scaled_dot_product_attention" in lost.reason


def test_a_counter_that_agrees_has_no_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reasons(_with(monkeypatch, mine=Counted((*PROJECTIONS, Count("attn", "bmm", ATTENTION))))) == {}


def test_fused_attention_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _reasons(_with(monkeypatch, mine=Counted(PROJECTIONS, {"scaled_dot_product_attention": 1})))
    assert list(found) == ["scores/context"]
    assert "it says so: scaled_dot_product_attention x1" in found["scores/context"]


def test_norms_counted_as_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (*PROJECTIONS, Count("attn", "bmm", ATTENTION), Count("norm", "layer_norm", 7))
    assert _reasons(_with(monkeypatch, mine=Counted(counts))) == {
        "no product": "counts layer_norm as MACs, where we see no product"
    }


def test_weights_counted_once_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (Count("attn.qkv", "Linear", 3 * WIDTH**2), PROJECTIONS[1], Count("attn", "bmm", ATTENTION))
    assert "not for each token" in _reasons(_with(monkeypatch, mine=Counted(counts)))["linear"]


def test_the_same_products_under_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (Count("attn.qkv", "bmm", 3 * LINEAR // 4), PROJECTIONS[1], Count("attn", "bmm", ATTENTION))
    found = _reasons(_with(monkeypatch, mine=Counted(counts)))
    assert found == dict.fromkeys(("linear", "rest"), "the same products, counted under another kind")


def test_a_figure_that_nothing_gives_is_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (Count("attn.qkv", "linear", 3 * LINEAR // 4 + 1), PROJECTIONS[1], Count("attn", "bmm", ATTENTION))
    assert _reasons(_with(monkeypatch, mine=Counted(counts))) == {"linear": UNEXPLAINED}


def test_a_layer_that_is_left_out_is_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (PROJECTIONS[1], Count("attn", "bmm", ATTENTION))
    assert _reasons(_with(monkeypatch, mine=Counted(counts))) == {"linear": UNEXPLAINED}


def test_a_counter_that_fails_is_listed_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _with(monkeypatch, mine=TypeError("cond must\nbe a bool"))
    assert (found.columns, found.failed) == ((), {"mine": "TypeError: cond must be a bool"})


def test_the_module_is_left_as_it_was() -> None:
    model = Model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reconcile(model, example=torch.zeros(1, TOKENS, WIDTH))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


def test_large_models_stay_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PARAMETERS", 0)
    devices = []
    found = Counted((Count("", "linear", 1),))
    monkeypatch.setattr(
        counters, "COUNTERS", {"mine": ("torch", lambda model, inputs: devices.append(inputs[0].device.type) or found)}
    )
    reconcile("vit_tiny_patch16_224")
    assert devices == ["meta"]


def test_the_command_prints_both_tables_or_a_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "COUNTERS", {name: one for name, one in counters.COUNTERS.items() if name.startswith("torch,")})
    main(["trace", "vit_tiny_patch16_224", "--reconcile", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] == sum(found["kinds"].values()) == hw.trace("vit_tiny_patch16_224").macs
    assert list(found["kinds"]) == list(KINDS)
    for counter in found["counters"]:
        assert counter["macs"] - found["macs"] == sum(one["macs"] for one in counter["differences"])
    main(["trace", "vit_tiny_patch16_224", "--reconcile"])
    assert "1,253,683,200" in capsys.readouterr().out
