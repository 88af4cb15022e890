"""Array size, HBM bandwidth and block size for pruned DeiT-S and DeiT-B: one front of latency and energy per density.

The machine is one TPU v3 core (two arrays) whose array side and HBM bandwidth vary; clock, on-chip memory, energy per event
and static power stay the card's, so what a larger array costs in area or clock is not in it. Fidelity: assumed.

    python analysis/systolic_array.py -o systolic_array.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from matplotlib.lines import Line2D

import hwmodel as hw
from hwmodel.exploration.pareto import pareto_front
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.study_figures import log_scale
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

STUDY = Path(__file__).parent / "studies" / "systolic_array.toml"
SIDE, BANDWIDTH = "array side", "HBM bandwidth over TPU v3"
MARKERS = {32: "v", 64: "s", 128: "o", 256: "D"}
LINES: dict[float, Literal["-", ":"]] = {1.0: "-", 0.25: ":"}
LIES = {"uniform": "blocks anywhere", "tile-clustered": "blocks in clusters of 128x128"}


def seconds(frame: pd.DataFrame, side: int, bandwidth: float, density: float, expect: str) -> float:
    """Latency of one design of DeiT-B in 32x32 blocks."""
    own = frame[(frame.model == "DeiT-B") & (frame.block == "32x32") & (frame.density == density) & (frame.expect == expect)]
    return float(own[(own[SIDE] == side) & (own[BANDWIDTH] == bandwidth)].latency_s.iloc[0])


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the study says, from its own numbers."""
    dense = {side: seconds(frame, side, 1.0, 1.0, "uniform") for side in MARKERS}
    gain = {
        (side, expect): dense[side] / seconds(frame, side, 1.0, 0.25, expect) for side in (32, 128) for expect in LIES
    }  # fmt: skip
    faster = {
        density: seconds(frame, 128, 1.0, density, "tile-clustered") / seconds(frame, 128, 4.0, density, "tile-clustered")
        for density in (1.0, 0.1)
    }
    own = frame[
        (frame.model == "DeiT-B") & (frame.block == "32x32") & (frame.expect == "tile-clustered") & (frame[BANDWIDTH] == 1.0)
    ]
    best = {
        (quantity, density): own[own.density == density].sort_values(quantity)[SIDE].tolist()[0]
        for quantity in ("latency_s", "energy_j")
        for density in (1.0, 0.1)
    }
    return [
        f"Keeping a quarter of the 32x32 blocks of DeiT-B, lying anywhere, makes a core with 32x32 arrays "
        f"{gain[32, 'uniform']:.2f} times as fast and one with 128x128 arrays {gain[128, 'uniform']:.2f} times, for hardly a "
        f"tile is empty; gathered in "
        f"clusters the latter gains {gain[128, 'tile-clustered']:.2f} times.",
        f"Pruning turns compute-bound layers into memory-bound ones: four times the HBM bandwidth speeds the 128x128 core up "
        f"{faster[1.0]:.2f} times dense and {faster[0.1]:.2f} times at density 0.1 (clustered).",
        f"The best array shrinks with density: at TPU v3's bandwidth the fastest side is {best['latency_s', 1.0]} dense and "
        f"{best['latency_s', 0.1]} at density 0.1 (clustered), the most frugal {best['energy_j', 1.0]} and "
        f"{best['energy_j', 0.1]}; a larger array's area and clock are not counted against it.",
    ]


@themed
def as_figure(frame: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """Energy per image against latency: every design in grey; dense and 32x32 blocks in colour, a line through bandwidths."""
    models = frame.model.unique().tolist()
    figure = new_figure(3.4 * len(models) + 0.8)
    grid = figure.subplots(len(models), len(LIES), squeeze=False, sharex="row", sharey="row")
    for row, model in zip(grid, models, strict=True):
        for axes, (expect, label) in zip(row, LIES.items(), strict=True):
            own = frame[(frame.model == model) & (frame.expect == expect)]
            own = own.assign(ms=own.latency_s * 1e3, mj=own.energy_j / own.batch * 1e3)
            axes.scatter(own.ms, own.mj, s=8, color=colour("grid"), zorder=1)
            for number, (side, marker) in enumerate(MARKERS.items()):
                for density, line in LINES.items():
                    some = own[(own[SIDE] == side) & (own.density == density) & (own.block == "32x32")].sort_values(BANDWIDTH)
                    axes.plot(some.ms, some.mj, line, marker=marker, markersize=4, color=colour(device_token(number)), zorder=2)
            for density in LINES:
                some = own[own.density == density].drop_duplicates(["ms", "mj"])
                front = some.iloc[pareto_front(some[["latency_s", "energy_j"]].to_numpy())]
                axes.scatter(front.ms, front.mj, s=90, facecolors="none", edgecolors=colour("ink"), zorder=3)
            axes.set(title=f"{model}, {label}", xlabel=f"latency of {own.batch.iloc[0]} images (ms)")
            log_scale(axes, "x", own.ms)
            log_scale(axes, "y", own.mj)
            axes.grid(axis="both", which="major")
        row[0].set_ylabel("energy per image (mJ)")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4)
    return figure_file(figure, suffix)


def _legend() -> list[Line2D]:
    sides = [
        Line2D([], [], color=colour(device_token(number)), marker=marker, markersize=5, label=f"{side}x{side} arrays")
        for number, (side, marker) in enumerate(MARKERS.items())
    ]
    lines = [
        Line2D([], [], color=colour("muted"), linestyle=line, label=f"density {density:g}, HBM x 0.25 to 4")
        for density, line in LINES.items()
    ]
    ink = colour("ink")
    ring = Line2D(
        [], [], marker="o", linestyle="", markersize=9, markerfacecolor="none", markeredgecolor=ink, label="front of that density"
    )
    dots = Line2D([], [], marker="o", linestyle="", markersize=3, color=colour("grid"), label="every design")
    return [*sides, *lines, ring, dots]


def main(output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Run the study, print what it says, and draw it where asked."""
    if output is not None:
        check_writable(output)
    frame = hw.explore(STUDY).frame()
    for sentence in sentences(frame):
        print(f"- {sentence}")
    if output is not None:
        write_file(output, as_figure(frame, output.suffix))


if __name__ == "__main__":
    typer.run(main)
