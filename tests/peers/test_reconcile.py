"""The other counters, run for real on ViTs: what each loses or adds is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hwmodel.validation.counters import COUNTERS
from hwmodel.validation.reconcile import UNEXPLAINED, Column, Reconciliation, reconcile

pytestmark = pytest.mark.peer

BLOCKS, TOKENS, WIDTH, PATCHES = 12, 197, 192, 196
ATTENTION = BLOCKS * 2 * TOKENS**2 * WIDTH
BIASES = BLOCKS * (3 * WIDTH + WIDTH + 4 * WIDTH + WIDTH)


@pytest.fixture(scope="module")
def deit() -> Reconciliation:
    return reconcile("deit_tiny_patch16_224")


def _column(found: Reconciliation, counter: str) -> Column:
    pytest.importorskip(COUNTERS[counter][0])
    assert found.failed == {}
    return next(column for column in found.columns if column.counter == counter)


def test_fvcore_loses_fused_attention_and_counts_norms(deit: Reconciliation) -> None:
    column = _column(deit, "fvcore")
    assert column.total == deit.trace.macs - ATTENTION + (2 * BLOCKS + 1) * 5 * TOKENS * WIDTH
    assert column.unknown["scaled_dot_product_attention"] == BLOCKS
    assert [one.kind for one in column.differences] == ["scores/context", "no product"]


def test_calflops_loses_fused_attention(deit: Reconciliation) -> None:
    column = _column(deit, "calflops")
    assert column.total == deit.trace.macs - ATTENTION
    assert [one.kind for one in column.differences] == ["scores/context"]


def test_calflops_gives_torch_its_functions_back(deit: Reconciliation) -> None:
    _column(deit, "calflops")
    assert functional.linear.__module__ == "torch._C._nn"
    assert {torch.matmul.__name__, torch.einsum.__name__, torch.Tensor.matmul.__name__} == {"matmul", "einsum"}
    assert all("calflops" not in str(getattr(one, "__module__", "")) for one in (torch.matmul, torch.add, torch.Tensor.mul))


def test_torchinfo_counts_parameters_not_tokens(deit: Reconciliation) -> None:
    column = _column(deit, "torchinfo")
    weights = BLOCKS * 12 * WIDTH**2 + BIASES + WIDTH * 1000 + 1000
    assert column.macs["linear"] == weights
    assert column.macs["conv"] == PATCHES * (3 * 16**2 * WIDTH + WIDTH)
    assert column.macs["no product"] == (2 * BLOCKS + 1) * 2 * WIDTH


@pytest.mark.parametrize(
    "name",
    [
        "efficientvit_b0",
        pytest.param("swinv2_tiny_window8_256", marks=pytest.mark.slow),
        pytest.param("xcit_nano_12_p16_224", marks=pytest.mark.slow),
    ],
)
def test_every_difference_has_a_reason(name: str) -> None:
    """Attention without a softmax, cosine attention with layers used as functions, attention over channels."""
    found = reconcile(name)
    assert found.failed == {}
    for column in found.columns:
        assert sum(one.macs for one in column.differences) == column.total - found.trace.macs
        assert UNEXPLAINED not in {one.reason for one in column.differences}
