"""What an architect would ask about ViTA for pruned vision transformers: shape and number of processing elements (PEs), memory,
bandwidth, and block shape of the mask, in latency, energy, area and idle share; and how much each assumed number matters.

Masks are random stored ones of a given density, even over each layer or skewed by rows of blocks: rows of real masks differ.
`vita_pe.py` asks one of these questions, PE shape against block shape, through `hwmodel explore`.

    python analysis/vita_design.py -o vita_design.svg
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.backends.vita import Totals, sweep
from hwmodel.files import check_writable, write_file
from hwmodel.ir.masks import BlockMask, grid_shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.float64]
Shape = tuple[int, int]

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "swin_tiny_patch4_window7_224")
PES = ("8x8", "16x16", "16x32", "32x16", "32x32", "16x64", "64x16", "64x32", "64x64")
BLOCKS: tuple[Shape, ...] = ((16, 16), (32, 32), (64, 64))
DENSITIES = (1.0, 0.5, 0.25)
CHIP_MACS = (4096.0, 8192.0, 16384.0)
PE_BUFFER_BYTES_PER_MAC = (20.0, 40.0, 80.0)
BUFFER_BYTES = tuple(float(2**20 * size) for size in (0.25, 0.5, 1, 2, 4))
DRAM_BYTES_PER_S = (12.8e9, 25.6e9, 51.2e9, 102.4e9)
SHOWN = {"area_mm2": ("area (mm²)", 1.0), "latency_s": ("latency (ms)", 1e3), "energy_j": ("energy (mJ)", 1e3)}
"""Axis label of each total, and its factor from SI units."""

_traced = cache(hw.trace)


@dataclass(frozen=True, eq=False)
class Designs:
    """One model with one mask on many designs; every array has shape (designs,)."""

    model: str
    block: str
    density: float
    pe: str
    fields: dict[str, FloatArray]
    totals: Totals


@dataclass(frozen=True)
class Swing:
    """Latency and energy over those of the card when one assumed number goes to either end of its range."""

    field: str
    latency: tuple[float, float]
    energy: tuple[float, float]

    @property
    def width(self) -> float:
        """The larger of the two swings."""
        return float(max(np.ptp(self.latency), np.ptp(self.energy)))


def pruned(model: str, block: Shape, density: float, *, skewed: bool = False) -> Trace:
    """Every encoder layer with a random mask of this density, seeded by its name; a skewed one thins out by row of blocks."""
    trace = _traced(model)
    if density == 1.0:
        return trace
    return trace.replace(
        operators=tuple(
            one.replace(mask=_mask(one, block, density, skewed)) if one.parameter and one.block is not None else one
            for one in trace.operators
        )
    )


def _mask(operator: Operator, block: Shape, density: float, skewed: bool) -> BlockMask:
    weight = operator.n, operator.k
    fitting = min(block[0], weight[0]), min(block[1], weight[1])
    grid = grid_shape(weight, fitting)
    rng = np.random.default_rng(list(operator.name.encode()))
    score = rng.random(grid) - (2 * np.linspace(0, 1, grid[0])[:, None] if skewed else 0.0)
    kept = np.zeros(score.size, dtype=np.bool_)
    kept[np.argsort(score, axis=None)[: round(density * score.size)]] = True
    return BlockMask(weight, fitting, kept.reshape(grid))


def grid(pe: str) -> dict[str, FloatArray]:
    """Every combination of the swept fields for one shape of PE; PE buffers grow with the PE."""
    out, in_ = map(int, pe.split("x"))
    axes = CHIP_MACS, PE_BUFFER_BYTES_PER_MAC, BUFFER_BYTES, DRAM_BYTES_PER_S
    macs, inner, outer, bandwidth = np.array(list(product(*axes))).T
    return {"chip_macs": macs, "pe_buffer_bytes": inner * out * in_, "buffer_bytes": outer, "dram_bytes_per_s": bandwidth}


def study(models: tuple[str, ...] = MODELS) -> Iterator[Designs]:
    """Every model, block shape, density and shape of PE on the whole grid."""
    for model, density, pe in product(models, DENSITIES, PES):
        for block in BLOCKS if density < 1 else BLOCKS[1:2]:
            fields = grid(pe)
            totals = sweep(pruned(model, block, density), {"pe": pe, **fields})
            name = f"{block[0]}x{block[1]}" if density < 1 else "dense"
            yield Designs(model, name, density, pe, fields, totals)


def front(first: FloatArray, second: FloatArray) -> npt.NDArray[np.int64]:
    """Places of the points that no other beats in both, by ascending ``first``."""
    order = np.lexsort((second, first))
    best = np.minimum.accumulate(second[order])
    kept = np.r_[True, second[order][1:] < best[:-1]]
    return order[kept]


def tornado(trace: Trace, pe: str = "32x32") -> list[Swing]:
    """Every assumed number of the card at the ends of its range, widest swing first."""
    card = load_card("vita")
    assumed = {name: entry for name, entry in card.parameters.items() if entry.range and isinstance(entry.value, (int, float))}
    own = hw.estimate(trace, device=card, mode="chip", overrides={"pe": pe})
    swings = []
    for field, entry in assumed.items():
        ends = hw.estimate(trace, device=card, mode="chip", overrides={"pe": pe, field: np.array(entry.range, dtype=np.float64)})
        latency, energy = (np.broadcast_to(total, 2) for total in (ends.latency_s / own.latency_s, ends.energy_j / own.energy_j))
        swings.append(Swing(field, (float(latency[0]), float(latency[1])), (float(energy[0]), float(energy[1]))))
    return sorted((one for one in swings if one.width > 1e-3), key=lambda one: -one.width)


def components(trace: Trace, pe: str = "32x32") -> Table:
    """Energy and area of the published chip by component."""
    found = hw.estimate(trace, device="vita", mode="chip", overrides={"pe": pe})
    area = found.area_mm2
    table = Table("component", "mJ", "mm2", title=f"{trace.model} on the chip as the card has it, {pe} PEs")
    for name in dict.fromkeys([*found.energy_by_component_j, *area]):
        joules = found.energy_by_component_j.get(name)
        table.add_row(name, "" if joules is None else f"{joules * 1e3:.2f}", f"{area[name]:.2f}" if name in area else "")
    table.add_row("all", f"{found.energy_j * 1e3:.2f}", f"{sum(area.values()):.2f}")
    return table


def best_table(found: list[Designs]) -> Table:
    """For each model and mask the design of least energy-delay product within the published area and 25.6 GB/s."""
    heads = ("model", "mask", "density", "PE", "PEs", "global MiB", "ms", "mJ", "mm2", "idle")
    table = Table(*heads, title="least energy x delay, at most 7.7 mm2, 25.6 GB/s")
    keys = dict.fromkeys((one.model, one.block, one.density) for one in found)
    for key in keys:
        rows = [(one, place) for one in found if (one.model, one.block, one.density) == key for place in _affordable(one)]
        one, place = min(rows, key=lambda row: float(row[0].totals.energy_j[row[1]] * row[0].totals.latency_s[row[1]]))
        out, in_ = map(int, one.pe.split("x"))
        totals = one.totals
        pes, mib = one.fields["chip_macs"][place] // (out * in_), one.fields["buffer_bytes"][place] / 2**20
        cost = f"{totals.latency_s[place] * 1e3:.2f}", f"{totals.energy_j[place] * 1e3:.1f}", f"{totals.area_mm2[place]:.1f}"
        design = one.model, one.block, f"{one.density:g}", one.pe, f"{pes:.0f}", f"{mib:g}"
        table.add_row(*design, *cost, f"{totals.idle_share[place]:.0%}")
    return table


def _affordable(one: Designs) -> list[int]:
    chosen = (one.totals.area_mm2 <= 7.7) & (one.fields["dram_bytes_per_s"] == 25.6e9)
    return [int(place) for place in chosen.nonzero()[0]]


def idle_by_shape(model: str, block: Shape, density: float) -> dict[str, list[float]]:
    """Idle share of each shape of PE on the chip of 8192 MACs: dense, even mask, skewed mask."""
    cases = {
        "dense": _traced(model),
        "even mask": pruned(model, block, density),
        "skewed mask": pruned(model, block, density, skewed=True),
    }
    return {
        name: [float(hw.estimate(trace, device="vita", mode="chip", overrides={"pe": pe, **_roomy(pe)}).idle_share) for pe in PES]
        for name, trace in cases.items()
    }


def _roomy(pe: str) -> dict[str, Any]:
    out, in_ = map(int, pe.split("x"))
    return {"pe_buffer_bytes": 40.0 * out * in_}


@themed
def as_figure(found: list[Designs], swings: list[Swing], idle: dict[str, list[float]], suffix: str = ".svg") -> bytes:
    """Four panels: latency against area, energy against latency, idle share by shape of PE, and the tornado."""
    figure = new_figure(9.2, 13.0)
    panels = figure.subplots(2, 2)
    _fronts(panels[0, 0], found, "area_mm2", "latency_s")
    _fronts(panels[0, 1], found, "latency_s", "energy_j")
    panels[0, 0].set_title("Latency against area: the fronts of four models, dense and pruned")
    panels[0, 1].set_title("Energy against latency: the fronts")
    panels[0, 1].legend(fontsize=7.5, ncols=2)
    _idle(panels[1, 0], idle)
    _tornado(panels[1, 1], swings)
    return figure_file(figure, suffix)


def _fronts(axes: Axes, found: list[Designs], x: str, y: str) -> None:
    """One line per model and density (32x32 blocks), over all shapes of PE; logarithmic both ways."""
    for place, model in enumerate(MODELS):
        for density, style in ((1.0, "-"), (0.25, ":")):
            mine = [
                one.totals for one in found if one.model == model and one.density == density and one.block in ("dense", "32x32")
            ]
            first, second = (np.concatenate([getattr(totals, name) for totals in mine]) for name in (x, y))
            best = front(first, second)
            label = f"{model.split('_patch')[0]}, {'dense' if density == 1 else '25 % kept'}"
            tone, marker = colour(device_token(place)), "os^D"[place]
            axes.plot(
                first[best] * SHOWN[x][1], second[best] * SHOWN[y][1], style, color=tone, marker=marker, ms=3, lw=1, label=label
            )
    axes.set(xscale="log", yscale="log", xlabel=SHOWN[x][0], ylabel=SHOWN[y][0])
    _plain_ticks(axes)


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _idle(axes: Axes, idle: dict[str, list[float]]) -> None:
    """Idle share by shape of PE, one bar per kind of mask."""
    tones = [colour(token) for token in ("untouched", "kept", "rest")]
    for place, ((name, shares), tone) in enumerate(zip(idle.items(), tones, strict=True)):
        axes.bar(np.arange(len(PES)) + 0.27 * (place - 1), np.array(shares) * 100, 0.25, color=tone, label=name)
    axes.set_xticks(range(len(PES)), PES)
    axes.set(xlabel="shape of PE (out x in); 8192 MACs in all", ylabel="idle share of PE time (%)")
    axes.set_title("Waiting for the busiest PE: DeiT-B, 32x32 blocks, 25 % kept")
    axes.legend()


def _tornado(axes: Axes, swings: list[Swing]) -> None:
    """Swing of latency and energy over the range of each assumed number."""
    shown = swings[:14][::-1]
    for shift, name, token in ((0.19, "latency", "kept"), (-0.19, "energy", "coarse")):
        ends = np.array([getattr(one, name) for one in shown]) - 1
        low, high = ends.min(axis=1).clip(max=0), ends.max(axis=1).clip(min=0)
        axes.barh(np.arange(len(shown)) + shift, (high - low) * 100, 0.36, left=low * 100, color=colour(token), label=name)
    axes.axvline(0, color=colour("ink"), lw=0.8)
    axes.set_yticks(range(len(shown)), [one.field for one in shown])
    axes.set_xlabel("change over the range of the assumed number (%)")
    axes.use_sticky_edges = False
    axes.margins(x=0.04)
    axes.autoscale_view()
    axes.set_title("How much each assumed number matters (same model and mask)")
    axes.legend(loc="lower right")


def main(output: Annotated[Path | None, typer.Option("-o", "--output", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Print components, best designs and swings; draw the four panels where a path is given."""
    if output is not None:
        check_writable(output)
    console = Console(width=140)
    base = pruned(MODELS[2], (32, 32), 0.25)
    console.print(components(_traced(MODELS[2])))
    found = list(study())
    console.print(best_table(found))
    swings = tornado(base)
    table = Table(
        "assumed number", "latency at its ends", "energy at its ends", title="DeiT-B, 32x32 blocks, 25 % kept, on the chip"
    )
    for one in swings:
        table.add_row(one.field, *(f"{low:.3f} to {high:.3f}" for low, high in (one.latency, one.energy)))
    console.print(table)
    if output is not None:
        write_file(output, as_figure(found, swings, idle_by_shape(MODELS[2], (32, 32), 0.25), output.suffix))


if __name__ == "__main__":
    typer.run(main)
