"""The closed form of ViTA against an event loop over blocks, buffers and DMA, on random small layers with real masks.

Both take the same numbers and share no code. Where nothing overlaps (one element, compute-bound) they must agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from vita_machine import Machine, Product, alone, between, residual

import hwmodel as hw
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator

pytestmark = pytest.mark.peer
CASES, CHAINS = range(50), range(25)
LARGE = 2**21
"""Half of a global buffer that every activation of these layers fits: chains are compared without spills."""


def machine_of(rng: np.random.Generator) -> Machine:
    out, in_ = [(16, 16), (32, 16), (16, 32), (32, 32)][rng.integers(4)]
    return Machine(
        pes=int(rng.choice([1, 1, 2, 3, 4, 8])), out=out, in_=in_,
        dram_bytes_per_cycle=float(rng.choice([3.2, 6.4, 12.8, 25.6, 51.2])),
        pe_buffer_bytes=int(rng.choice([8192, 16384, 40960])), half_buffer_bytes=int(rng.choice([32768, 65536, 262144])),
    )  # fmt: skip


def layer_of(rng: np.random.Generator, m: int, k: int, n: int) -> tuple[Operator, Product]:
    """A pruned layer for both: blocks of random shape, density and, half of the time, density by row."""
    block = [(16, 16), (32, 32), (32, 64), (64, 32)][rng.integers(4)]
    grid = -(-n // block[0]), -(-k // block[1])
    density = rng.uniform(0.15, 1)
    by_row = 2 * rng.random((grid[0], 1)) if rng.integers(2) else np.ones((grid[0], 1))
    kept = rng.random(grid) < density * by_row
    kept[0, 0] |= not kept.any()
    weights = np.repeat(np.repeat(kept, block[0], 0), block[1], 1)[:n, :k]
    return hw.matmul(m=m, k=k, n=n, mask=BlockMask((n, k), block, kept)), Product(m, weights)


def sizes(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Tokens, and three widths that tiles do not always divide."""
    first, second, third = (int(32 * rng.integers(3, 14) + 8 * rng.integers(2)) for _ in range(3))
    return int(rng.integers(36, 250)), first, second, third


def price(machine: Machine, *rows: Operator, edges: tuple[tuple[int, int], ...] = ()) -> hw.Estimate:
    overrides = {
        "pe": f"{machine.out}x{machine.in_}", "clock_hz": 1e9, "dram_bytes_per_s": machine.dram_bytes_per_cycle * 1e9,
        "pe_buffer_bytes": float(machine.pe_buffer_bytes), "buffer_bytes": 2.0 * machine.half_buffer_bytes,
        "buffer_bytes_per_cycle": machine.port_bytes_per_cycle, "cycles_per_layer": machine.cycles_per_layer,
        "cycles_per_row": machine.cycles_per_row, "cycles_per_block": machine.cycles_per_block,
        "sfu_elements_per_cycle": machine.function_elements_per_cycle,
    }  # fmt: skip
    count = {"pe_count": float(machine.pes)} if machine.pes > 1 else {}
    trace = hw.Trace.from_operators(rows).replace(edges=edges)
    return hw.estimate(trace, device="vita", mode="chip" if count else "full", overrides=overrides | count)


@pytest.mark.parametrize("seed", CASES)
def test_a_pruned_product(seed: int) -> None:
    """Within 3 %, the same idle share, never faster than arithmetic or DRAM allow."""
    rng = np.random.default_rng(seed)
    machine, (m, k, n, _) = machine_of(rng), sizes(rng)
    operator, product = layer_of(rng, m, k, n)
    ours, theirs = price(machine, operator), alone(product, machine)
    assert ours.cycles == pytest.approx(theirs.end, rel=0.03)
    assert ours.idle_share == pytest.approx(theirs.idle_share, abs=1e-9)
    assert ours.cycles >= product.kept.sum() * m / (machine.pes * machine.out * machine.in_)
    assert ours.cycles >= ours.dram_bytes / machine.dram_bytes_per_cycle


@pytest.mark.parametrize("seed", CASES)
def test_one_element_that_never_waits_is_exact(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    machine = replace(machine_of(rng), pes=1, dram_bytes_per_cycle=1024.0, half_buffer_bytes=LARGE, pe_buffer_bytes=65536)
    m, k, n, _ = sizes(rng)
    operator, product = layer_of(rng, m, k, n)
    assert price(machine, operator).cycles == pytest.approx(alone(product, machine).end, rel=1e-12)


def product_pair(rng: np.random.Generator, machine: Machine) -> tuple[float, float]:
    m, k, n, other = sizes(rng)
    (first, one), (second, two) = layer_of(rng, m, k, n), layer_of(rng, m, n, other)
    ours = price(machine, first, hw.gelu(elements=m * n), second, edges=((0, 1), (1, 2)))
    return ours.cycles, between(one, 1, two, machine)


def attention(rng: np.random.Generator, machine: Machine) -> tuple[float, float]:
    m, heads = int(rng.integers(36, 250)), int(rng.integers(2, 13))
    scores, context = hw.matmul(batch=heads, m=m, k=64, n=m), hw.matmul(batch=heads, m=m, k=m, n=64)
    ours = price(machine, scores, hw.softmax(rows=heads * m, cols=m), context, edges=((0, 1), (1, 2)))
    one, two = Product(m, np.ones((m, 64), dtype=np.bool_), heads), Product(m, np.ones((64, m), dtype=np.bool_), heads)
    return ours.cycles, between(one, 2, two, machine)


def product_and_residual(rng: np.random.Generator, machine: Machine) -> tuple[float, float]:
    m, k, n, _ = sizes(rng)
    operator, product = layer_of(rng, m, k, n)
    older, added = hw.gelu(elements=10), hw.elementwise("add", elements=m * n, inputs=2)
    ours = price(machine, older, operator, added, edges=((0, 2), (1, 2)))
    return ours.cycles - ours.costs.cycles[0], residual(product, machine)


def attention_layer(rng: np.random.Generator, machine: Machine) -> tuple[float, float]:
    """Normalisation, a pruned product, attention over its heads, a pruned product and the residual."""
    m, heads = int(rng.integers(36, 250)), int(rng.integers(1, 7))
    (into, one), (out, two) = layer_of(rng, m, 64 * heads, 192 * heads), layer_of(rng, m, 64 * heads, 64 * heads)
    scores, context = (hw.matmul(batch=heads, m=m, k=k, n=n, parameter=False) for k, n in ((64, m), (m, 64)))
    norm, softmax = hw.layernorm(rows=m, cols=64 * heads), hw.softmax(rows=heads * m, cols=m)
    residual_sum = hw.elementwise("add", elements=m * 64 * heads, inputs=2)
    edges = (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (0, 6)
    ours = price(machine, norm, into, scores, softmax, context, out, residual_sum, edges=edges)
    three, four = Product(m, np.ones((m, 64), dtype=np.bool_), heads), Product(m, np.ones((64, m), dtype=np.bool_), heads)
    alone_cycles = 2 * m * 64 * heads / machine.function_elements_per_cycle
    parts = alone_cycles, alone(one, machine).end, between(three, 2, four, machine), residual(two, machine)
    return ours.cycles, sum(parts)


@pytest.mark.parametrize(
    "rate", [8.0, pytest.param(16.0, marks=pytest.mark.slow), 32.0, pytest.param(64.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("what", [product_pair, attention, product_and_residual, attention_layer])
def test_special_functions_beside_products(what: Callable[..., tuple[float, float]], rate: float) -> None:
    """Twenty-five cases each within 3 %; the special-function unit over the whole range of the card."""
    found = []
    for seed in CHAINS:
        rng = np.random.default_rng(2000 + seed)
        machine = replace(machine_of(rng), function_elements_per_cycle=rate, half_buffer_bytes=LARGE)
        ours, theirs = what(rng, machine)
        found.append((ours / theirs - 1, seed))
    assert max(abs(error) for error, _ in found) <= 0.03, sorted(found, key=lambda case: -abs(case[0]))[:5]


@pytest.mark.parametrize("density", [0.15, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_mlp_of_a_narrow_network_on_many_elements(density: float) -> None:
    """DeiT-T on the chip's thirty-two 16x16 PEs: more PEs than DRAM feeds, and than the second product has rows."""
    rng = np.random.default_rng(1)
    machine = Machine(pes=32, out=16, in_=16, half_buffer_bytes=LARGE)
    masks = [rng.random(grid) < density * 2 * rng.random((grid[0], 1)) for grid in ((24, 6), (6, 24))]
    layers = [
        hw.matmul(
            m=197,
            k=32 * kept.shape[1],
            n=32 * kept.shape[0],
            mask=BlockMask((32 * kept.shape[0], 32 * kept.shape[1]), (32, 32), kept),
        )
        for kept in masks
    ]
    ours = price(machine, layers[0], hw.gelu(elements=197 * 768), layers[1], edges=((0, 1), (1, 2)))
    one, two = (Product(197, np.repeat(np.repeat(kept, 32, 0), 32, 1)) for kept in masks)
    assert ours.cycles == pytest.approx(between(one, 1, two, machine), rel=0.03)
