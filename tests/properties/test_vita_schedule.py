"""ViTA's choice among orders of a product, against every order there is, tried one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.backends.vita.memory import Demand
from hwmodel.backends.vita.schedule import Pipeline, fastest_order

amounts = st.floats(0.1, 50.0)


def one(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([value], dtype=np.float64)


@st.composite
def products(draw: st.DrawFn) -> tuple[Pipeline, Demand]:
    tokens, tiles, pes = draw(st.integers(1, 12)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    longest = -(-tiles // pes)
    block, fetch, hand, stream, dispatch = (draw(amounts) for _ in range(5))
    groups = draw(st.integers(1, tokens))
    pipeline = Pipeline(
        block=one(block), fetch=one(fetch), hand=one(hand), stream=one(stream), tokens=one(tokens), tiles=one(tiles),
        longest=one(longest), tied=one(1), dispatch=one(dispatch), weights=one(fetch * tiles),
    )  # fmt: skip
    demand = Demand(
        tile_bytes=one(1), slice_bytes=one(1), fetch_bytes=one(fetch), weight_bytes=one(fetch * tiles),
        read_bytes=one(draw(st.sampled_from([0.0, 1.0, 10.0, 400.0]))), written_bytes=one(draw(amounts)),
        groups=one(groups), small_groups=one(draw(st.integers(groups, tokens))), turns=one(draw(st.integers(1, 5))),
    )  # fmt: skip
    return pipeline, demand


@given(product=products(), beside_bytes=amounts)
def test_no_order_ends_sooner_than_the_chosen_one(product: tuple[Pipeline, Demand], beside_bytes: float) -> None:
    """One byte per cycle of DRAM: every number of groups that a buffer allows, inputs read once or for each turn of rows."""
    pipeline, demand = product
    tokens = int(pipeline.tokens[0])

    def ends(groups: float, moved: float) -> float:
        return float(pipeline.running(one(groups), one(moved + beside_bytes))[0])

    once = demand.read_bytes[0] + demand.written_bytes[0]
    again = demand.read_bytes[0] * demand.turns[0] + demand.written_bytes[0]
    orders = [(groups, once) for groups in range(int(demand.small_groups[0]), tokens + 1)]
    orders += [(groups, again) for groups in range(int(demand.groups[0]), tokens + 1) if demand.read_bytes[0]]
    groups, moved = fastest_order(pipeline, demand, one(beside_bytes), 1.0)
    assert (groups[0], moved[0]) in orders
    assert ends(groups[0], moved[0]) <= min(ends(*order) for order in orders) * (1 + 1e-9)
