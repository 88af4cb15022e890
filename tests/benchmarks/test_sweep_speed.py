"""How fast sweeps and cost tables are. Run with ``make bench``; figures are printed, ratios inside one run are asserted.

An operator-evaluation is one operator of the trace on one design: DeiT-B has 161 of them, many alike, and what is alike is
computed once. Rates below are of one process on one core.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.exploration.evaluate import TOTALS, Evaluator

pytestmark = pytest.mark.slow
DESIGNS = 100_000
ALONE = 40
CASES: dict[tuple[str, str], float] = {("tpu-v3", "systolic"): 1e7, ("tpu-v3", "device"): 1e6, ("a100-40gb", "compiled"): 1e6}


@pytest.fixture(scope="module")
def deit_base() -> hw.Trace:
    return hw.trace("deit_base_patch16_224")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return tell


def variants(device: str, designs: int) -> dict[str, Any]:
    """Random cards: array or SM count, clock, bandwidth."""
    random = np.random.default_rng(0)
    clock = {"clock_hz": random.uniform(5e8, 2e9, designs)}
    if device == "tpu-v3":
        sides = {side: random.choice([32, 64, 128, 192, 256], designs) for side in ("array_rows", "array_cols")}
        return clock | sides | {"product_hbm_bytes_per_s": random.uniform(1e11, 2e12, designs)}
    return clock | {"sm_count": random.integers(20, 200, designs), "dram_bytes_per_s": random.uniform(2e11, 4e12, designs)}


@pytest.mark.parametrize(("device", "mode"), CASES)
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "32x32"])
def test_a_hundred_thousand_card_variants(  # noqa: PLR0917  (fixtures and parameters)
    benchmark: Any, deit_base: hw.Trace, say: Any, device: str, mode: str, pruned: bool
) -> None:
    """Under 10 s and 1 GB, and 50 times faster than the same API point by point, with the same bits."""
    trace = hw.prune(deit_base, "deit_base_lsp_b32x32") if pruned else deit_base
    grid, evaluator = variants(device, DESIGNS), Evaluator(trace, device=device, mode=mode)
    started = time.process_time()
    swept = benchmark.pedantic(evaluator.totals, args=(grid,), rounds=1)
    together_s = time.process_time() - started
    card = hw.load_card(device)
    started = time.process_time()
    alone = [
        hw.estimate(trace, device=card, mode=mode, overrides={field: values[design].item() for field, values in grid.items()})
        for design in range(ALONE)
    ]
    alone_s = (time.process_time() - started) / ALONE
    for quantity in TOTALS:
        assert [getattr(one.costs, quantity).sum() for one in alone] == getattr(swept, quantity)[:ALONE].tolist(), quantity
    rate, times = DESIGNS * len(trace) / together_s, alone_s / (together_s / DESIGNS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(
        f"{device} {mode}: {DESIGNS} designs x {len(trace)} operators in {together_s:.2f} s of one core, "
        f"{rate / 1e6:.1f} M operator-evaluations/s, {times:.0f} times a loop, {memory:.2f} GiB at most"
    )
    assert times >= 50
    assert rate >= CASES[device, mode]
    assert memory < 1.0
    assert together_s < 10


def test_against_scale_sim_itself(benchmark: Any, say: Any) -> None:
    """One product of DeiT-B on several arrays: the package runs each, the closed form all of them; cycles must be equal."""
    pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
    from hwmodel.backends import scale_sim
    from hwmodel.backends.scale_sim import Product

    trace = hw.Trace.from_operators([hw.matmul(m=197, k=192, n=576, dtype="bf16")])
    rows, cols = (side.ravel() for side in np.meshgrid([32, 64, 128], [32, 64, 128]))
    scale_sim.simulate(Product(4, 4, 4, 4, 4, "ws"))  # import it first
    started = time.process_time()
    package = [
        scale_sim.simulate(Product(197, 192, 576, one, other, "ws")).compute_cycles
        for one, other in zip(rows.tolist(), cols.tolist(), strict=True)
    ]
    package_s = (time.process_time() - started) / len(package)
    evaluator, times = Evaluator(trace, device="tpu-v3", mode="systolic"), 20_000
    grid = {"array_rows": np.tile(rows, times), "array_cols": np.tile(cols, times)}
    started = time.process_time()
    cycles = benchmark.pedantic(evaluator.totals, args=(grid,), rounds=1).cycles
    ours_s = (time.process_time() - started) / len(cycles)
    assert cycles[: len(package)].tolist() == package
    say(f"SCALE-Sim {package_s * 1e3:.1f} ms a point, ours {ours_s * 1e9:.0f} ns: {package_s / ours_s:.2e} times faster")
    assert package_s / ours_s > 1e5


@pytest.mark.parametrize("device", ["tpu-v3", "a100-40gb"])
def test_cost_table_of_deit_base(benchmark: Any, deit_base: hw.Trace, say: Any, device: str) -> None:
    """50 layers x 101 densities x 3 block shapes, break-even and hulls included; meant to stay under 2 s."""
    started = time.process_time()
    axes = {"block": [(32, 32), (64, 32), (64, 64)], "density": np.linspace(0, 1, 101)}
    table = benchmark.pedantic(hw.cost_table, args=(deit_base,), kwargs={"device": device, **axes}, rounds=1)
    table_s = time.process_time() - started
    assert len(table.rows[table.rows.group == "layer"]) == 50 * 101 * 3
    started = time.process_time()
    for density in (0.25, 0.75):
        recipe = {name: {"block": (32, 32), "density": density} for name in table.layers}
        hw.estimate(hw.prune(deit_base, recipe), device=device)
    alone_s = (time.process_time() - started) / 2
    say(f"cost table on {device}: {table_s:.2f} s of one core; by recipe and estimate {303 * alone_s:.2f} s, without break-even")
    assert table_s < 303 * alone_s
