"""The trace: order, names, edges and totals."""

from __future__ import annotations

import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel.ir.trace import Trace

OPERATORS = [hw.matmul(m=4, k=8, n=16), hw.softmax(rows=4, cols=8), hw.matmul(m=4, k=8, n=16, name="head")]


def test_operators_without_a_name_are_named_by_kind_and_row() -> None:
    trace = Trace.from_operators(OPERATORS)
    assert [operator.name for operator in trace.operators] == ["matmul_0", "softmax_1", "head"]
    assert len(trace) == 3
    assert trace["head"].n == 16
    with pytest.raises(KeyError, match="tail"):
        trace["tail"]


def test_names_that_repeat_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be unique; these repeat: head$"):
        Trace.from_operators([OPERATORS[2], OPERATORS[2]])
    with pytest.raises(ValueError, match="these repeat: matmul_1"):
        Trace.from_operators([hw.gelu(elements=1, name="matmul_1"), OPERATORS[0]])


@pytest.mark.parametrize("edge", [(0, 3), (1, 1), (2, 1), (-1, 1)])
def test_edges_lead_forward_within_the_trace(edge: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must lead forward within 3 operators"):
        Trace.from_operators(OPERATORS).replace(edges=(edge,))


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(hw.HwmodelError, match="unknown dtype 'fp12'"):
        Trace.from_operators(OPERATORS, dtype="fp12")


def test_macs_of_deit_tiny() -> None:
    """Patch embedding, twelve blocks with attention, and a classifier on one token: 1.25 GMAC."""
    patch, head = 196 * 768 * 192, 192 * 1000
    linear = 197 * (192 * 576 + 192 * 192 + 2 * 192 * 768)
    attention = 3 * 2 * 197 * 64 * 197
    assert vit(192).macs == patch + 12 * (linear + attention) + head


def test_kept_macs_follow_the_masks_and_macs_do_not() -> None:
    dense = vit(192, depth=1)
    half = pruned(dense, (16, 16), 0.5)
    attention = 3 * 2 * 197 * 64 * 197
    assert half.macs == dense.macs == dense.kept_macs
    assert half.kept_macs == pytest.approx((dense.macs - attention) / 2 + attention, rel=1e-3)


def test_the_graph_has_one_node_per_operator() -> None:
    trace = Trace.from_operators(OPERATORS, model="small").replace(edges=((0, 1), (1, 2), (0, 2)))
    graph = trace.graph()
    assert sorted(graph.edges) == [("matmul_0", "head"), ("matmul_0", "softmax_1"), ("softmax_1", "head")]
    assert list(graph.nodes) == ["matmul_0", "softmax_1", "head"]
    assert graph.nodes["head"]["operator"] is trace["head"]
    assert graph.graph["model"] == "small"


def test_a_trace_may_be_empty() -> None:
    trace = Trace.from_operators([])
    assert (len(trace), trace.macs, trace.kept_macs) == (0, 0, 0)
