"""Operators: shapes, MACs and bytes, and what is refused at birth."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.ir.dtypes import BITS, bytes_per_element, check_dtype
from hwmodel.ir.kinds import ATTENTION, MOVEMENT, PRODUCTS, REDUCTION, ROWWISE, TRANSCENDENTAL, family_of
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator


def test_a_linear_layer() -> None:
    """DeiT-Tiny's qkv: 197 tokens, 192 to 576."""
    qkv = hw.matmul(m=197, k=192, n=576, name="qkv", dtype="fp16")
    assert qkv.macs == qkv.shape_macs == qkv.kept_macs == 197 * 192 * 576
    assert (qkv.input_elements, qkv.weight_elements, qkv.output_elements) == (197 * 192, 192 * 576, 197 * 576)
    assert (qkv.input_bytes, qkv.weight_bytes, qkv.output_bytes) == (2 * 197 * 192, 2 * 192 * 576, 2 * 197 * 576)
    assert qkv.parameter


def test_a_batched_product_reads_both_operands_as_activations() -> None:
    scores = hw.matmul(batch=3, m=197, k=64, n=197)
    assert not scores.parameter
    assert scores.macs == 3 * 197 * 64 * 197
    assert scores.input_elements == 3 * (197 * 64 + 64 * 197)
    assert (scores.weight_elements, scores.output_elements) == (0, 3 * 197 * 197)


def test_batched_weights_and_single_activations_can_be_told() -> None:
    experts = hw.matmul(batch=8, m=32, k=64, n=128, parameter=True)
    assert (experts.weight_elements, experts.input_elements) == (8 * 64 * 128, 8 * 32 * 64)
    single = hw.matmul(m=197, k=64, n=197, parameter=False)
    assert (single.weight_elements, single.input_elements) == (0, 197 * 64 + 64 * 197)


def test_weights_may_have_their_own_format() -> None:
    layer = hw.matmul(m=10, k=64, n=32, dtype="fp16", weight_dtype="int4")
    assert layer.weight_bytes == 64 * 32 / 2
    assert layer.input_bytes == 2 * 10 * 64


def test_bytes_are_fp32_where_nobody_says_otherwise() -> None:
    assert hw.matmul(m=10, k=64, n=32).weight_bytes == 4 * 64 * 32


def test_kept_macs_count_the_weights_that_are_left() -> None:
    """A 1000 x 768 classifier whose only kept block is the ragged last row's: 8 outputs of 32 inputs."""
    kept = np.zeros((32, 24), dtype=np.bool_)
    kept[31, 0] = True
    head = hw.matmul(m=4, k=768, n=1000, mask=BlockMask((1000, 768), (32, 32), kept))
    assert head.kept_macs == 4 * 8 * 32
    assert head.macs == 4 * 768 * 1000


def test_macs_remember_the_unpruned_operator() -> None:
    """197 tokens became 120: ``macs`` is the dense model's, the other two are at the present shape."""
    pruned = hw.matmul(m=120, k=192, n=576, dense_macs=197 * 192 * 576)
    assert pruned.macs == 197 * 192 * 576
    assert pruned.shape_macs == pruned.kept_macs == 120 * 192 * 576


def test_attention_counts_scores_and_context() -> None:
    one = hw.attention(batch=2, heads=12, queries=197, keys=197, head_dim=64)
    assert one.macs == 2 * 12 * 2 * (197 * 64 * 197)
    assert one.input_elements == 2 * 12 * 3 * 197 * 64
    assert one.output_elements == 2 * 12 * 197 * 64
    assert one.elements == 2 * 12 * 197 * 197


def test_attention_macs_equal_those_of_its_two_products() -> None:
    heads = {"batch": 6, "m": 50}
    products = hw.matmul(k=64, n=70, **heads).macs + hw.matmul(k=70, n=64, **heads).macs
    assert hw.attention(batch=1, heads=6, queries=50, keys=70, head_dim=64).macs == products


def test_grouped_queries_read_keys_and_values_once_per_group() -> None:
    grouped = hw.attention(batch=1, heads=8, kv_heads=2, queries=10, keys=20, head_dim=64)
    assert grouped.input_elements == 8 * 10 * 64 + 2 * (2 * 20 * 64)
    assert grouped.macs == 8 * 2 * (10 * 64 * 20)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 9), (4, 9), (9, 4), (9, 1)])
def test_causal_queries_see_keys_up_to_their_own(queries: int, keys: int) -> None:
    """Query i is aligned to key ``keys - queries + i``: pairs are counted one by one."""
    pairs = sum(keys - queries + query >= key for query in range(queries) for key in range(keys))
    assert hw.attention(batch=1, heads=1, queries=queries, keys=keys, head_dim=7, causal=True).macs == 2 * 7 * pairs


@pytest.mark.parametrize("kv_heads", [0, 5, 24])
def test_heads_share_keys_evenly(kv_heads: int) -> None:
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        hw.attention(batch=1, heads=12, kv_heads=kv_heads, queries=4, keys=4, head_dim=4)


def test_vector_operators_have_elements_and_no_macs() -> None:
    softmax, norm = hw.softmax(rows=12, cols=197), hw.layernorm(rows=197, cols=768)
    assert (softmax.elements, softmax.cols, softmax.weight_elements) == (12 * 197, 197, 0)
    assert (norm.input_elements, norm.output_elements, norm.weight_elements) == (197 * 768, 197 * 768, 2 * 768)
    add = hw.elementwise("add", elements=100, inputs=2)
    assert (add.elements, add.input_elements, add.output_elements) == (100, 200, 100)
    mean = hw.reduction("mean", inputs=196 * 768, outputs=768)
    assert (mean.elements, mean.output_elements) == (196 * 768, 768)
    copy = hw.movement("copy", elements=7)
    assert (copy.input_elements, copy.output_elements) == (7, 7)
    assert {operator.macs for operator in (softmax, norm, add, mean, copy, hw.gelu(elements=3))} == {0}


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "product") for kind in sorted(PRODUCTS)), *((kind, "attention") for kind in sorted(ATTENTION)),
        *((kind, "rowwise") for kind in sorted(ROWWISE)), *((kind, "movement") for kind in sorted(MOVEMENT)),
        *((kind, "reduction") for kind in sorted(REDUCTION)), *((kind, "elementwise") for kind in sorted(TRANSCENDENTAL)),
        ("add", "elementwise"), ("relu", "elementwise"),
    ],
)  # fmt: skip
def test_every_kind_is_in_one_family(kind: str, family: str) -> None:
    assert family_of(kind) == family
    assert Operator(name="x", kind=kind).family == family


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: hw.elementwise("softmax", elements=4),
        lambda: hw.elementwise("matmul", elements=4),
        lambda: hw.movement("add", elements=4),
        lambda: hw.reduction("gelu", inputs=4, outputs=1),
        lambda: hw.rowwise("mean", rows=4, cols=4),
    ],
)
def test_a_kind_of_another_family_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"kind|reduction"):
        wrong()


@pytest.mark.parametrize("size", ["m", "k", "n", "batch"])
def test_negative_and_broken_sizes_are_refused(size: str) -> None:
    sizes = {"m": 4, "k": 4, "n": 4, "batch": 1, "name": "blocks.0.fc1"}
    with pytest.raises(ValueError, match=rf"blocks\.0\.fc1: {size} must not be negative, got -1"):
        hw.matmul(**{**sizes, size: -1})
    with pytest.raises(ValueError, match=rf"blocks\.0\.fc1: {size} must be a whole number, got 1\.5"):
        hw.matmul(**{**sizes, size: 1.5})
    with pytest.raises(ValueError, match="2\\*\\*53"):
        hw.matmul(**{**sizes, size: 10**20})


def test_numpy_sizes_become_plain_ints() -> None:
    """Otherwise a saved trace could not be written."""
    operator = hw.matmul(m=np.int64(4), k=np.int32(8), n=16)
    assert operator == hw.matmul(m=4, k=8, n=16)
    assert {type(getattr(operator, name)) for name in ("m", "k", "input_elements", "weight_elements")} == {int}


def test_masks_belong_to_weights_of_their_shape() -> None:
    mask = BlockMask.full((64, 32), (32, 32))
    assert hw.matmul(m=4, k=32, n=64, mask=mask).mask is mask
    with pytest.raises(ValueError, match=r"fc1: mask is for a weight of \(64, 32\), the operator has \(32, 64\)"):
        hw.matmul(m=4, k=64, n=32, mask=mask, name="fc1")
    with pytest.raises(ValueError, match="mask is for"):
        hw.softmax(rows=4, cols=4, mask=mask)


@pytest.mark.parametrize("field", ["dtype", "weight_dtype"])
def test_unknown_formats_are_refused_with_the_nearest(field: str) -> None:
    with pytest.raises(hw.HwmodelError, match="unknown dtype 'float16'"):
        hw.matmul(m=4, k=4, n=4, **{field: "float16"})
    with pytest.raises(hw.HwmodelError, match=r"'bp16': did you mean .*'bf16'"):
        check_dtype("bp16")


def test_formats_have_their_storage_width() -> None:
    assert {dtype: bytes_per_element(dtype) for dtype in BITS} == {
        "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "amp-fp16": 2, "amp-bf16": 2, "int8": 1, "int4": 0.5,
    }  # fmt: skip


def test_operators_are_frozen_and_copies_are_checked() -> None:
    operator = hw.matmul(m=4, k=4, n=4)
    with pytest.raises(FrozenInstanceError):
        operator.m = 5  # type: ignore[misc]
    assert operator.replace(m=5).m == 5
    with pytest.raises(ValueError, match="m must not be negative"):
        operator.replace(m=-5)
