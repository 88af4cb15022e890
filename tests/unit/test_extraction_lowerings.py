"""Single operators: kinds, shapes, and what a reshape costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import hwmodel as hw
from hwmodel.extraction.recording.aten import is_viewable
from hwmodel.extraction.recording.naming import owner_of
from hwmodel.ir.operators import Operator


class Wrapped(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.function(*values)


def rows(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> tuple[Operator, ...]:
    return hw.trace(Wrapped(function), example=tuple(torch.zeros(shape) for shape in shapes)).operators


def product(row: Operator) -> tuple[str, int, int, int, int]:
    return row.kind, row.batch, row.m, row.k, row.n


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bhid,bhjd->bhij", ((2, 3, 5, 8), (2, 3, 7, 8)), ("matmul", 2 * 3, 5, 8, 7)),
        ("...id,...jd->...ij", ((2, 3, 5, 8), (2, 3, 7, 8)), ("matmul", 2 * 3, 5, 8, 7)),
        ("bnc,cd->bnd", ((2, 5, 8), (8, 4)), ("matmul", 1, 2 * 5, 8, 4)),
        ("ij,jk", ((2, 3), (3, 4)), ("matmul", 1, 2, 3, 4)),
    ],
)
def test_einsum_of_two(equation: str, shapes: tuple[tuple[int, ...], ...], expected: tuple[object, ...]) -> None:
    (row,) = rows(lambda a, b: torch.einsum(equation, a, b), *shapes)
    assert product(row) == expected


def test_einsum_without_contraction_multiplies() -> None:
    (row,) = rows(lambda a, b: torch.einsum("i,j->ij", a, b), (3,), (4,))
    assert (row.kind, row.elements, row.input_elements) == ("mul", 12, 7)


def test_einsum_of_one_is_a_view_or_a_sum() -> None:
    assert rows(lambda a: torch.einsum("ij->ji", a), (3, 4)) == ()
    assert [row.kind for row in rows(lambda a: torch.einsum("ij->i", a), (3, 4))] == ["sum"]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((5, 8), (8, 4)), (1, 5, 8, 4)),
        (((2, 5, 8), (8, 4)), (1, 2 * 5, 8, 4)),
        (((2, 3, 5, 8), (2, 3, 8, 4)), (2 * 3, 5, 8, 4)),
        (((2, 3, 5, 8), (1, 3, 8, 4)), (2 * 3, 5, 8, 4)),
        (((8,), (8, 4)), (1, 1, 8, 4)),
        (((5, 8), (8,)), (1, 5, 8, 1)),
    ],
)
def test_matmul_of_activations(shapes: tuple[tuple[int, ...], ...], expected: tuple[int, ...]) -> None:
    (row,) = rows(torch.matmul, *shapes)
    assert product(row)[1:] == expected
    assert not row.parameter


class Mixing(nn.Module):
    """A weight on the left mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix @ x


def test_a_weight_on_the_left_is_the_weight() -> None:
    (row,) = hw.trace(Mixing(), example=torch.zeros(2, 5, 7)).operators
    assert product(row) == ("matmul", 1, 2 * 7, 5, 6)
    assert (row.name, row.parameter, row.weight_elements) == ("mix", True, 30)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 10, 10), (1, 2 * 100, 6 * 9, 8)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 10, 10), (1, 2 * 25, 6 * 9, 8)),
        (nn.Conv2d(6, 6, 3, padding="same", groups=6), (2, 6, 10, 10), (6, 2 * 100, 9, 1)),
        (nn.Conv1d(6, 8, 3), (2, 6, 10), (1, 2 * 8, 6 * 3, 8)),
        (nn.ConvTranspose2d(6, 8, 2, stride=2), (2, 6, 5, 5), (1, 2 * 25, 6, 8 * 4)),
    ],
)
def test_convolutions_are_products(layer: nn.Module, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    (row,) = hw.trace(nn.Sequential(layer), example=torch.zeros(shape)).operators
    assert product(row) == ("conv", *expected)
    assert row.weight_elements == sum(parameter.numel() for parameter in layer.parameters())
    assert row.output_elements == layer(torch.zeros(shape)).numel()


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        (nn.Conv2d(3, 8, 4, stride=4), "patch_embed"),
        (nn.Conv2d(3, 8, 4, stride=2), ""),
        (nn.Conv2d(3, 8, 1), ""),
        (nn.Conv2d(3, 8, 4, stride=4, padding=2), ""),
    ],
)
def test_patch_embedding_is_a_convolution_that_tiles_the_input(layer: nn.Module, role: str) -> None:
    assert hw.trace(nn.Sequential(layer), example=torch.zeros(1, 3, 16, 16)).operators[0].role == role


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: functional.gelu(x, approximate="tanh"), ["gelu_tanh"]),
        (functional.gelu, ["gelu"]),
        (lambda x: x**2, ["mul"]),
        (lambda x: x**0.5, ["sqrt"]),
        (lambda x: x**1.5, ["pow"]),
        (lambda x: functional.glu(x, -1), ["sigmoid", "mul"]),
        (lambda x: x.max(-1).values, ["max"]),
        (lambda x: torch.maximum(x, -x), ["neg", "maximum"]),
        (lambda x: x.topk(2, -1).values, ["topk"]),
        (lambda x: x.roll(1, 0), ["roll"]),
        (lambda x: functional.pad(x, (1, 1)), ["pad"]),
        (lambda x: torch.cat([x, x]), ["concat"]),
        (lambda x: functional.dropout(x, 0.5, training=False), []),
        (lambda x: x.transpose(0, 1).unsqueeze(0).expand(3, -1, -1)[:, 1:], []),
        (lambda x: x.reshape(2, 2, 6), []),
        (lambda x: x.t().reshape(4, 6), ["copy"]),
        (lambda x: x.t().contiguous(), ["copy"]),
        (lambda x: x.contiguous(), []),
        (lambda x: x.half(), ["cast"]),
        (lambda x: x.float(), []),
        (lambda x: x.clone(), ["copy"]),
        (lambda x: functional.normalize(x, dim=-1), ["sum", "clamp", "div"]),
        (lambda x: functional.rms_norm(x, (6,)), ["rmsnorm"]),
        (lambda x: x.masked_fill(x > 0, 0.0), ["gt", "where"]),
        (lambda x: x.cumsum(0), ["cumsum"]),
        (lambda x: x.var(-1), ["variance"]),
    ],
)
def test_kinds(function: Callable[..., torch.Tensor], kinds: list[str]) -> None:
    assert [row.kind for row in rows(function, (4, 6))] == kinds


def test_broadcast_operands_are_read_once() -> None:
    (row,) = rows(torch.add, (4, 6), (6,))
    assert (row.elements, row.input_elements, row.output_elements) == (24, 24 + 6, 24)


def test_gather_reads_what_it_writes() -> None:
    (row,) = rows(lambda x: x[torch.arange(2)], (100, 6))[1:]
    assert (row.kind, row.elements, row.input_elements) == ("gather", 12, 12 + 2)


def test_layernorm_rows() -> None:
    (row,) = hw.trace(nn.Sequential(nn.LayerNorm(6)), example=torch.zeros(2, 5, 6)).operators
    assert (row.name, row.elements, row.cols, row.weight_elements) == ("0", 60, 6, 12)


def test_batchnorm_in_eval_mode() -> None:
    (row,) = hw.trace(nn.Sequential(nn.BatchNorm2d(6)), example=torch.zeros(2, 6, 5, 5)).operators
    assert (row.kind, row.elements, row.cols, row.weight_elements) == ("batchnorm", 300, 25, 4 * 6)


def test_lstm_has_two_products_per_layer_and_direction() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    trace = hw.trace(Last(), example=torch.zeros(3, 5, 8))
    first, second = 4 * 16 * (8 + 16), 4 * 16 * (2 * 16 + 16)
    assert trace.macs == 3 * 5 * 2 * (first + second)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 5))),
        ("ij,jk,kl->il", ((9, 8), (8, 7), (7, 2))),
        ("bhid,bhjd,hg->bgij", ((2, 3, 5, 8), (2, 3, 7, 8), (3, 4))),
        ("ij,jk,kl,lm->im", ((2, 3), (3, 4), (4, 5), (5, 6))),
    ],
)
def test_einsum_of_many_multiplies_as_torch_does(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    values = [torch.zeros(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, *values)
    found = hw.trace(Wrapped(lambda *given: torch.einsum(equation, *given)), example=tuple(values))
    assert 2 * found.macs == counter.get_total_flops()
    assert found.edges == tuple((row, row + 1) for row in range(len(shapes) - 2))


@given(
    st.permutations([0, 1, 2, 3]), st.lists(st.sampled_from([1, 2, 3, 4]), min_size=4, max_size=4), st.integers(0, 3), st.booleans()
)
def test_is_viewable_agrees_with_torch(order: list[int], sizes: list[int], merge: int, narrow: bool) -> None:
    tensor = torch.empty(sizes).permute(order)
    tensor = tensor[:, :1] if narrow else tensor
    shape = list(tensor.shape)
    target = [*shape[:merge], shape[merge] * shape[merge + 1], *shape[merge + 2 :]] if merge < 3 else [-1]
    expected = list(tensor.reshape(target).shape)
    try:
        tensor.view(expected)
        possible = True
    except RuntimeError:
        possible = False
    assert is_viewable(tuple(shape), tensor.stride(), tuple(expected)) == possible


@pytest.mark.parametrize(
    ("parameter", "owner"),
    [
        ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv.weight_orig", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv.parametrizations.weight.original", "blocks.0.attn.qkv"),
        ("layers.0.self_attn.in_proj_weight", "layers.0.self_attn.in_proj"),
        ("attn.rel_pos_h", "attn.rel_pos_h"),
        ("weight", ""),
    ],
)
def test_owner_of_a_parameter(parameter: str, owner: str) -> None:
    assert owner_of(parameter) == owner
