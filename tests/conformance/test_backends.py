"""What every backend owes its users, on every shipped card and in every mode.

Cases come from the registry and the shipped cards, so a new card or backend is held to this without a line here.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from examples import pruned, vit
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import pruned_products, traces

import hwmodel as hw
from hwmodel.backends.base import Backend
from hwmodel.backends.cards import Card, shipped_cards
from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.errors import UnknownNameError, UnsupportedOperatorError
from hwmodel.ir.kinds import ATTENTION, MOVEMENT, PRODUCTS, REDUCTION, ROWWISE, TRANSCENDENTAL
from hwmodel.ir.masks import BlockMask, ExpectedMask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

CAUSES = ("compute_j", "onchip_j", "offchip_j", "static_j")
COLUMNS = ("cycles", "latency_s", "gap_s", *CAUSES, "dram_bytes", "executed_macs")
TOTALS = ("cycles", "latency_s", "energy_j", "dram_bytes", "executed_macs")
FAMILIES = {"product", "attention", "rowwise", "elementwise", "movement", "reduction"}
KINDS = PRODUCTS | ATTENTION | ROWWISE | MOVEMENT | REDUCTION | TRANSCENDENTAL
DESIGN = {"vita": {"pe": "32x32"}}
"""Design points that traces written by hand cannot tell by themselves."""

SLOW = {"scale-sim"}
"""Modes that run a simulator for every distinct shape."""

# Fields of which more may never cost time, where a backend has them.
RESOURCES = (
    "clock_hz", "dram_bytes_per_s", "product_hbm_bytes_per_s", "vector_hbm_bytes_per_s", "vector_ops_per_cycle",
    "sfu_elements_per_cycle", "buffer_bytes", "sm_count", "l2_bytes", "chip_macs", "pe_buffer_bytes", "buffer_bytes_per_cycle",
)  # fmt: skip


def modes(card: Card) -> list[str]:
    """Every execution mode under the default power mode, and every power mode in the default execution mode."""
    default, _ = card.split_mode(None)
    return [*get_backend(card.backend).modes, *(f"{default}+{power}" for power in card.power_modes)]


def case(card: Card, mode: str) -> Any:
    marks = [pytest.mark.slow, pytest.mark.peer] if mode in SLOW else []
    return pytest.param(card, mode, id=f"{card.name}-{mode}", marks=marks)


CARDS = list(shipped_cards().values())
FIRST = {card.backend: card for card in reversed(CARDS)}
ALL = pytest.mark.parametrize(("card", "mode"), [case(card, mode) for card in CARDS for mode in modes(card)])
ONE_PER_BACKEND = pytest.mark.parametrize(
    ("card", "mode"), [case(card, mode) for card in FIRST.values() for mode in get_backend(card.backend).modes if mode not in SLOW]
)
REPRESENTATIVES = pytest.mark.parametrize(("card", "mode"), [case(card, mode) for card in FIRST.values() for mode in modes(card)])
FEWER = settings(max_examples=25)


def price(trace: Trace, card: Card, mode: str, **choices: Any) -> hw.Estimate:
    return hw.estimate(trace.replace(design=DESIGN), device=card, mode=mode, **choices)


def by_hand(*operators: Operator) -> Trace:
    return Trace.from_operators(operators)


@cache
def examples() -> dict[str, Trace]:
    """A ViT block with and without edges, pruned and dense, and one operator of every family by hand."""
    block = vit(192, depth=1)
    rows = [
        hw.matmul(m=197, k=192, n=576), hw.matmul(batch=3, m=197, k=64, n=197), hw.softmax(rows=591, cols=197),
        hw.layernorm(rows=197, cols=192), hw.gelu(elements=197 * 768), hw.elementwise("add", elements=197 * 192, inputs=2),
        hw.movement("concat", elements=197 * 192), hw.reduction("mean", inputs=196 * 192, outputs=192),
        hw.attention(batch=1, heads=3, queries=197, keys=197, head_dim=64),
        hw.attention(batch=1, heads=3, queries=50, keys=197, head_dim=64, causal=True),
    ]  # fmt: skip
    return {
        "dense": block,
        "without edges": vit(192, depth=1, edges=False),
        "pruned": pruned(block, (32, 32), 0.4),
        "clustered": pruned(block, (32, 32), 0.4, "tile-clustered"),
        "all pruned": pruned(block, (32, 32), 0.0),
        "by hand": by_hand(*rows),
        "empty": by_hand(),
    }


def columns(estimate: hw.Estimate) -> dict[str, list[Any]]:
    return {name: getattr(estimate.costs, name).tolist() for name in COLUMNS}


def assert_sane(estimate: hw.Estimate) -> None:
    """Finite, not negative, summing up, and of one row per operator."""
    costs, rows = estimate.costs, len(estimate.trace)
    for name in COLUMNS:
        column = getattr(costs, name)
        assert column.shape == (rows,), name
        assert np.isfinite(column).all(), name
        assert (column >= 0).all(), name
    for total in TOTALS:
        assert getattr(estimate, total) == getattr(costs, total).sum(), total
    assert (costs.energy_j == costs.compute_j + costs.onchip_j + costs.offchip_j + costs.static_j).all()
    assert (costs.gap_s <= costs.latency_s).all()
    assert_fused(estimate)


def assert_fused(estimate: hw.Estimate) -> None:
    """A fused row names a row that carries its own cost, and costs no time itself."""
    into, own = estimate.costs.fused_into, np.arange(len(estimate.trace))
    assert (into[into] == into).all()
    assert (estimate.costs.latency_s[into != own] == 0).all()
    assert [text for text in (*estimate.costs.bound.tolist(), *estimate.costs.kernel.tolist()) if not text] == []


def no_dearer(less: hw.Estimate, more: hw.Estimate) -> None:
    """Neither time nor energy rises, beyond the last digits of a sum."""
    assert less.latency_s <= more.latency_s * (1 + 1e-9)
    assert less.energy_j <= more.energy_j * (1 + 1e-9)


# --- the registry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backend_names())
def test_a_backend_says_what_it_is(name: str) -> None:
    backend: Backend = get_backend(name)
    assert backend.name == name
    assert len(set(backend.modes)) == len(backend.modes) > 0
    for mode in backend.modes:
        assert (backend.kinds(mode) | backend.free(mode).keys()) - FAMILIES - KINDS == set(), "a kind that no operator has"
        assert not backend.kinds(mode) & backend.free(mode).keys(), "priced or free, not both"
        assert all(reason for reason in backend.free(mode).values()), "free on purpose has a reason"


@pytest.mark.parametrize("name", backend_names())
def test_a_backend_has_a_card(name: str) -> None:
    assert name in FIRST


# --- sums and signs -----------------------------------------------------------------------------------------------


@ALL
def test_costs_are_finite_and_add_up(card: Card, mode: str) -> None:
    for trace in examples().values():
        assert_sane(price(trace, card, mode))


@ALL
def test_every_number_format_of_the_card_is_priced(card: Card, mode: str) -> None:
    for dtype in card.dtypes:
        estimate = price(examples()["by hand"], card, mode, dtype=dtype)
        assert_sane(estimate)
        assert (estimate.dtype, estimate.latency_s > 0) == (dtype, True)


@ALL
def test_choices_keep_costs_finite(card: Card, mode: str) -> None:
    for choice in ({"attention": "math"}, {"attention": "fused"}, {"sparse_kernel": "always"}):
        assert_sane(price(examples()["pruned"], card, mode, **choice))


@ALL
def test_machines_execute_at_least_the_kept_macs(card: Card, mode: str) -> None:
    """What is timed in this mode executes its kept MACs, padding on top."""
    for name in ("dense", "pruned", "clustered", "by hand"):
        estimate = price(examples()[name], card, mode)
        macs, kept = estimate.costs.executed_macs, estimate.workload.kept_macs
        timed = (estimate.costs.latency_s > 0) | (estimate.costs.fused_into != np.arange(len(macs)))
        assert (macs[timed] >= kept[timed] * (1 - 1e-9)).all(), name


@ALL
def test_idle_power_only_adds(card: Card, mode: str) -> None:
    board, dynamic, lsp = (price(examples()["dense"], card, mode, scope=scope) for scope in ("board", "dynamic", "lsp"))
    assert_sane(dynamic)
    assert_sane(lsp)
    assert board.latency_s == dynamic.latency_s == lsp.latency_s
    assert dynamic.energy_j <= board.energy_j
    assert lsp.energy_j <= board.energy_j


@ONE_PER_BACKEND
@FEWER
@given(data=st.data())
def test_any_trace_costs_finite_and_adds_up(card: Card, mode: str, data: st.DataObject) -> None:
    dtypes = st.sampled_from([None, *card.dtypes])
    assert_sane(price(data.draw(traces(dtype=dtypes)), card, mode))


# --- the same input, the same output ------------------------------------------------------------------------------


@ALL
def test_the_same_input_gives_the_same_document(card: Card, mode: str) -> None:
    texts = {json.dumps(price(examples()["pruned"], card, mode).document(), allow_nan=False) for _ in range(2)}
    assert len(texts) == 1
    document = json.loads(texts.pop())
    assert (document["device"], len(document["operators"])) == (card.name, len(examples()["pruned"]))


@ALL
def test_the_order_of_operators_by_hand_does_not_matter(card: Card, mode: str) -> None:
    """Without edges nothing fuses and nothing waits for a neighbour."""
    trace = examples()["by hand"]
    turned = trace.replace(operators=trace.operators[::-1])
    one, other = price(trace, card, mode), price(turned, card, mode)
    for name in COLUMNS:
        forward, backward = getattr(one.costs, name), getattr(other.costs, name)[::-1]
        assert forward.tolist() == pytest.approx(backward.tolist(), rel=1e-9), name


@ALL
def test_an_operator_by_hand_costs_the_same_in_company(card: Card, mode: str) -> None:
    """Identical operators are costed once with a count; the count must not change the cost."""
    row = hw.matmul(m=197, k=192, n=576)
    alone = price(by_hand(row), card, mode).costs
    if alone.gap_s.any():
        pytest.skip("in this mode the host's time is shared among operators")
    many = price(by_hand(row, hw.gelu(elements=1000), row, hw.matmul(m=8, k=8, n=8)), card, mode).costs
    for name in COLUMNS:
        assert getattr(many, name)[[0, 2]].tolist() == pytest.approx([getattr(alone, name)[0]] * 2, rel=1e-12), name


@ALL
def test_names_and_roles_of_unfused_products_are_labels(card: Card, mode: str) -> None:
    plain, named = hw.matmul(m=197, k=192, n=192), hw.matmul(m=197, k=192, n=192, role="proj", name="blocks.0.attn.proj", block=0)
    assert columns(price(by_hand(plain), card, mode)) == columns(price(by_hand(named), card, mode))


# --- refusals -----------------------------------------------------------------------------------------------------

ONE_OF_EACH = {
    "matmul": hw.matmul(m=4, k=4, n=4), "conv": hw.matmul(m=4, k=4, n=4).replace(kind="conv"),
    "attention": hw.attention(batch=1, heads=1, queries=4, keys=4, head_dim=4), "softmax": hw.softmax(rows=4, cols=4),
    "layernorm": hw.layernorm(rows=4, cols=4), "gelu": hw.gelu(elements=4), "add": hw.elementwise("add", elements=4),
    "gather": hw.movement("gather", elements=4), "mean": hw.reduction("mean", inputs=4, outputs=1),
    "topk": hw.movement("topk", elements=4), "batchnorm": hw.rowwise("batchnorm", rows=4, cols=4),
}  # fmt: skip


@ALL
def test_every_kind_is_priced_free_for_a_reason_or_refused_with_its_count(card: Card, mode: str) -> None:
    backend, execution = get_backend(card.backend), card.split_mode(mode)[0]
    priced, free = backend.kinds(execution), backend.free(execution).keys()
    for kind, operator in ONE_OF_EACH.items():
        names, trace = {operator.kind, operator.family}, by_hand(operator, operator, operator)
        if names & (priced | free):
            assert (price(trace, card, mode).latency_s > 0) == (not names & free), kind
            continue
        with pytest.raises(UnsupportedOperatorError, match=f"{kind} x3"):
            price(trace, card, mode)


@ALL
def test_a_kind_that_the_backend_lacks_is_refused(card: Card, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend(card.backend)
    known = backend.kinds(card.split_mode(mode)[0])
    monkeypatch.setattr(type(backend), "kinds", lambda *_: known - {"product"})
    with pytest.raises(UnsupportedOperatorError, match=f"backend '{card.backend}' has no model for matmul x8; it knows"):
        price(vit(192, depth=1), card, mode)


@ALL
def test_unknown_modes_and_formats_are_refused(card: Card, mode: str) -> None:
    for wrong in ({"mode": f"{mode}x"}, {"mode": f"{mode}+{mode}x"}, {"dtype": "fp12"}):
        with pytest.raises(UnknownNameError):
            price(examples()["by hand"], card, **{"mode": mode} | wrong)
    for dtype in {"fp32", "int4", "tf32"} - set(card.dtypes):
        with pytest.raises(UnknownNameError, match=f"unknown dtype for {card.name} '{dtype}'"):
            price(examples()["by hand"], card, mode, dtype=dtype)


BAD = [-1.0, float("nan"), float("inf")]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_number_of_a_card_may_be_negative_or_infinite(card: Card) -> None:
    accepted = []
    for name, entry in card.parameters.items():
        paths = [f"{name}.{key}" for key in entry.value] if isinstance(entry.value, dict) else [name]
        numbers = [path for path in paths if isinstance(card.values()[name], dict | float | int)]
        for path in numbers:
            accepted += [(path, bad) for bad in BAD if resolves(card, path, bad)]
    assert accepted == []


def resolves(card: Card, path: str, value: Any, mode: str | None = None) -> bool:
    try:
        card.resolve(mode, {path: value})
    except hw.HwmodelError:
        return False
    return True


# --- masks --------------------------------------------------------------------------------------------------------

BLOCKS = [(16, 16), (32, 32), (32, 64), (64, 64), (128, 128)]


@ALL
def test_a_mask_that_prunes_nothing_changes_nothing(card: Card, mode: str) -> None:
    """Neither an expected one of density 1 nor a stored one that keeps every block: bit for bit."""
    dense = vit(192, depth=1)
    unmasked = columns(price(dense, card, mode))
    for block in BLOCKS:
        for rule in ("uniform", "row-clustered"):
            assert columns(price(pruned(dense, block, 1.0, rule), card, mode)) == unmasked, (block, rule)


@ALL
def test_a_layer_of_which_nothing_is_kept_costs_nothing(card: Card, mode: str) -> None:
    """However large its activations are."""
    none = [ExpectedMask((576, 192), block, 0) for block in BLOCKS]
    rows = [hw.matmul(m=4096, k=192, n=576, mask=mask) for mask in (*none, None)]
    for sparse_kernel in ("auto", "always"):
        costs = price(by_hand(*rows), card, mode, sparse_kernel=sparse_kernel).costs
        for name in COLUMNS:
            assert getattr(costs, name)[:-1].tolist() == [0] * len(none), name
        assert costs.latency_s[-1] > 0


@ALL
def test_equal_masks_cost_the_same_stored_or_shared(card: Card, mode: str) -> None:
    grid = np.random.default_rng(1).random((18, 6)) < 0.5
    masks = [BlockMask((576, 192), (32, 32), grid.copy()) for _ in range(2)]
    apart = by_hand(*(hw.matmul(m=197, k=192, n=576, mask=mask) for mask in masks))
    shared = by_hand(*(hw.matmul(m=197, k=192, n=576, mask=masks[0]) for _ in masks))
    assert columns(price(apart, card, mode)) == columns(price(shared, card, mode))


@ALL
def test_lower_density_never_costs_more(card: Card, mode: str) -> None:
    dense = vit(192, depth=1)
    for block in BLOCKS:
        ladder = [price(pruned(dense, block, density), card, mode) for density in (0, 0.2, 0.5, 0.8, 1.0)]
        for less, more in pairwise(ladder):
            no_dearer(less, more)


@ALL
def test_a_forced_sparse_kernel_is_never_better_than_the_choice(card: Card, mode: str) -> None:
    for density in (0.3, 0.9):
        trace = pruned(vit(192, depth=1), (32, 32), density)
        auto, always = (price(trace, card, mode, sparse_kernel=kernel) for kernel in ("auto", "always"))
        assert auto.latency_s <= always.latency_s * (1 + 1e-9)


@ALL
def test_the_last_block_of_a_layer_is_not_cheaper_to_keep(card: Card, mode: str) -> None:
    """A layer of which nothing is left hands its fused follower back; that must not cost more than both did."""
    gelu = hw.gelu(elements=577 * 768, name="gelu")
    residual = hw.elementwise("add", elements=577 * 768, inputs=2, name="residual")
    other = hw.layernorm(rows=577, cols=768, name="other")
    for follower, edges in ((gelu, ((1, 2),)), (residual, ((0, 2), (1, 2)))):
        ladder = []
        for kept in (0, 1, 2):
            layer = hw.matmul(m=577, k=768, n=768, mask=ExpectedMask((768, 768), (32, 128), kept), name="layer")
            ladder.append(price(by_hand(other, layer, follower).replace(edges=edges), card, mode))
        for less, more in pairwise(ladder):
            no_dearer(less, more)


@ONE_PER_BACKEND
@FEWER
@given(layer=pruned_products(), data=st.data())
def test_removing_a_block_never_costs(card: Card, mode: str, layer: Operator, data: st.DataObject) -> None:
    mask = layer.mask
    assert isinstance(mask, BlockMask)
    kept = np.argwhere(mask.kept)
    if not len(kept):
        return
    fewer = mask.kept.copy()
    fewer[tuple(data.draw(st.sampled_from(kept.tolist())))] = False
    less = layer.replace(mask=BlockMask(mask.shape, mask.block, fewer))
    follower = hw.gelu(elements=layer.m * layer.n)
    for rest, edges in (([], ()), ([follower], ((0, 1),))):
        after, before = (by_hand(row, *rest).replace(edges=edges) for row in (less, layer))
        no_dearer(price(after, card, mode), price(before, card, mode))


@ONE_PER_BACKEND
@FEWER
@given(layer=pruned_products())
def test_a_pruned_layer_never_costs_more_than_the_dense_one(card: Card, mode: str, layer: Operator) -> None:
    no_dearer(price(by_hand(layer), card, mode), price(by_hand(layer.replace(mask=None)), card, mode))


# --- work, resources and sweeps -----------------------------------------------------------------------------------


@ALL
def test_two_images_cost_at_least_one(card: Card, mode: str) -> None:
    one, two = (price(vit(192, depth=1, batch=batch), card, mode) for batch in (1, 2))
    no_dearer(one, two)
    assert two.executed_macs >= one.executed_macs * (1 + 1e-9)


@ALL
def test_more_of_a_resource_never_costs_time(card: Card, mode: str) -> None:
    parameters = card.resolve(mode)
    fields = [field for field in RESOURCES if field in type(parameters).model_fields]
    assert fields
    for field in fields:
        steps = [getattr(parameters, field) * factor for factor in (1.0, 1.5, 4.0)]
        for name in ("pruned", "by hand"):
            latencies = [price(examples()[name], card, mode, overrides={field: step}).latency_s for step in steps]
            assert all(faster <= slower * (1 + 1e-9) for slower, faster in pairwise(latencies)), (field, name, latencies)


def numbers(card: Card, mode: str) -> dict[str, float]:
    """Every number of the card by dotted name, one of each table."""
    found: dict[str, float] = {}
    for name, value in card.values(card.split_mode(mode)[1]).items():
        entries = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        plain = [(path, item) for path, item in entries.items() if isinstance(item, float | int) and not isinstance(item, bool)]
        found |= dict(plain[:1])
    return found


def sweepable(card: Card, mode: str) -> dict[str, list[float]]:
    """Two values of every number that can be changed by itself; a field may say that it cannot be swept."""
    found = {}
    for path, value in numbers(card, mode).items():
        pairs = ([value, value * factor] for factor in (2.0, 0.5, 0.99))
        pair = next((pair for pair in pairs if resolves(card, path, pair[1], mode)), None)
        if pair is None:
            continue
        try:
            price(examples()["dense"], card, mode, overrides={path: pair})
        except hw.HwmodelError as refused:
            assert "cannot be swept" in str(refused)
            continue
        found[path] = pair
    return found


@REPRESENTATIVES
def test_sweeping_gives_the_same_numbers_as_one_by_one(card: Card, mode: str) -> None:
    trace = examples()["pruned"]
    fields = sweepable(card, mode)
    assert len(fields) > 2
    for field, values in fields.items():
        swept = price(trace, card, mode, overrides={field: values})
        for design, value in enumerate(values):
            one = price(trace, card, mode, overrides={field: value})
            for total in TOTALS:
                found = np.broadcast_to(getattr(swept, total), len(values))[design]
                assert found == pytest.approx(getattr(one, total), rel=1e-9), (field, total)


@REPRESENTATIVES
def test_sweeping_all_fields_at_once_gives_the_same_numbers(card: Card, mode: str) -> None:
    """Not only the totals: every row of every column."""
    trace = examples()["by hand"]
    fields = sweepable(card, mode)
    together = {field: value for field, value in fields.items() if resolves_all(card, mode, fields, field)}
    swept = price(trace, card, mode, overrides=together)
    for design in range(2):
        one = price(trace, card, mode, overrides={field: values[design] for field, values in together.items()})
        for name in COLUMNS:
            found = np.broadcast_to(getattr(swept.costs, name), (2, len(trace)))[design]
            assert found.tolist() == pytest.approx(getattr(one.costs, name).tolist(), rel=1e-9), name


def resolves_all(card: Card, mode: str, fields: dict[str, list[float]], field: str) -> bool:
    """Whether all fields up to this one can be changed together."""
    names = list(fields)
    before = names[: names.index(field) + 1]
    try:
        card.resolve(mode, {name: fields[name] for name in before})
    except hw.HwmodelError:
        return False
    return True
