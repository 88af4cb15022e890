"""The closed form against the real package on random arrays and shapes: 40 cases here, 300 in the slow suite."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hwmodel.backends import scale_sim, systolic
from hwmodel.backends.scale_sim import Product

pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
pytestmark = pytest.mark.peer

LARGEST = 256
FEW_WORDS, MIDDLE_WORDS, MANY_WORDS = 200_000, 1_000_000, 3_000_000
"""Words of the three demand matrices: what the package takes time for."""


def shape_of(p: Product) -> dict[str, object]:
    return {"m": p.m, "k": p.k, "n": p.n, "rows": p.rows, "cols": p.cols, "dataflow": p.dataflow}


def cases(seed: int, count: int, words: int) -> Iterator[Product]:
    """Sides of arrays and products between 1 and 256, small ones as likely as large ones; too long cases are drawn again."""
    source = random.Random(seed)
    while count:
        sides = [round(LARGEST ** source.random()) if source.random() < 0.5 else source.randint(1, LARGEST) for _ in range(5)]
        product = Product(*sides, source.choice(scale_sim.DATAFLOWS))
        if (closed_form(product) + 1) * (product.rows + 2 * product.cols) <= words:
            count -= 1
            yield product


def closed_form(product: Product) -> int:
    return int(systolic.compute_cycles(**shape_of(product)))


FAST = list(cases(seed=4, count=40, words=FEW_WORDS))
SLOW = list(cases(seed=2026, count=300, words=MANY_WORDS))


def test_cases_reach_the_corners() -> None:
    """All dataflows, arrays that are not square, with side 1 and with more than 200; several folds and ragged ones."""
    for chosen in (FAST, SLOW):
        assert {product.dataflow for product in chosen} == set(scale_sim.DATAFLOWS)
        assert sum(product.rows != product.cols for product in chosen) > 0.9 * len(chosen)
        assert min(min(product.rows, product.cols) for product in chosen) == 1
        assert max(max(product.rows, product.cols) for product in chosen) > 200
        folds = [int(systolic.folds(**shape_of(product))) for product in chosen]
        assert min(folds) == 1
        assert max(folds) > 20


@pytest.mark.parametrize("product", FAST, ids=str)
def test_whole_simulation_of_forty_cases(product: Product) -> None:
    result = scale_sim.simulate(product)
    assert (result.compute_cycles, result.stall_cycles) == (closed_form(product), 0)


@pytest.mark.slow
def test_demand_of_three_hundred_cases() -> None:
    """As many rows in the demand matrices as the closed form has cycles, which is all that counts in CALC mode."""
    wrong = [product for product in SLOW if scale_sim.demand_cycles(product) != closed_form(product)]
    assert wrong == []


@pytest.mark.slow
def test_whole_simulation_of_the_smaller_of_them() -> None:
    small = [product for product in SLOW if (closed_form(product) + 1) * (product.rows + 2 * product.cols) <= MIDDLE_WORDS]
    assert len(small) > 200
    wrong = [product for product in small if scale_sim.simulate(product).compute_cycles != closed_form(product)]
    assert wrong == []
