"""PE shape and count of the ViTA chip against the block shape of a pruned DeiT-B.

The chip's organisation is not published: PEs, memories, energy and area are assumed card fields (simulators/vita).

    python analysis/vita_pe.py -o vita_pe.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import hwmodel as hw
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

STUDY = Path(__file__).parent / "studies" / "vita_pe.toml"
CHIP_MACS = 8192
"""Multipliers of the published chip: 16.384 TOPS at 1 GHz."""
DENSITY = 0.25
MARKERS = "osD^vP*"


def macs(shape: str) -> int:
    """Multipliers of one PE."""
    out, depth = (int(side) for side in shape.split("x"))
    return out * depth


def of_chip_size(frame: pd.DataFrame, density: float) -> pd.DataFrame:
    """Milliseconds by PE shape (rows) and block shape (columns), each design with the chip's number of multipliers."""
    own = frame[(frame.density == density) & (frame["PE count"] * frame["PE shape"].map(macs).astype(int) == CHIP_MACS)]
    table = own.pivot_table(index="PE shape", columns="block", values="latency_s", observed=True) * 1e3
    return table.loc[
        sorted(table.index, key=lambda shape: (macs(shape), shape)), sorted(table.columns, key=lambda block: (macs(block), block))
    ]


def by_count(frame: pd.DataFrame, shape: str) -> pd.DataFrame:
    """Designs of one PE shape on 32x32 blocks, by number of PEs."""
    own = frame[(frame["PE shape"] == shape) & (frame.block == "32x32") & (frame.density == DENSITY)]
    return own.sort_values("PE count").set_index("PE count")


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the study says, from its own numbers."""
    pruned, dense, few = of_chip_size(frame, DENSITY), of_chip_size(frame, 1.0), by_count(frame, "32x32")
    best = str(pruned["32x32"].idxmin())
    gain = {shape: dense.loc["64x64", shape] / pruned.loc["64x64", shape] for shape in ("16x16", "64x64")}
    small = pruned.loc["16x16"]
    first, chip = few.loc[1], few.loc[8]
    return [
        f"With {CHIP_MACS} multipliers and a quarter of the 32x32 blocks kept, {best} PEs are the fastest "
        f"({pruned.loc[best, '32x32']:.2f} ms); 64x64 PEs take {pruned.loc['64x64', '32x32'] / pruned.loc[best, '32x32']:.1f} times "
        f"as long, for a PE tile is skipped only where every block in it is pruned.",
        f"Blocks pay where they fill a PE: on 64x64 PEs, 16x16 blocks gain {gain['16x16']:.2f} times over dense and 64x64 blocks "
        f"{gain['64x64']:.2f} times, while on 16x16 PEs all block shapes cost the same to {small.max() / small.min() - 1:.1%}.",
        f"PEs beyond a few wait for memory: from one 32x32 PE to eight, latency falls {first.latency_s / chip.latency_s:.2f} times, "
        f"area grows {chip.area_mm2 / first.area_mm2:.1f} times and energy {chip.energy_j / first.energy_j:.2f} times.",
    ]


@themed
def as_figure(frame: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """Left: latency by PE and block shape at equal multipliers. Right: latency against area, a line of counts per PE shape."""
    table = of_chip_size(frame, DENSITY)
    figure = new_figure(4.6, 11.0)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
    shown = left.imshow(table.to_numpy(), cmap="cividis_r", aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = float(table.iloc[row, column])
        dark = value > (table.to_numpy().max() + table.to_numpy().min()) / 2
        left.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
    counts = [f"{shape} ({CHIP_MACS // macs(shape)} PEs)" for shape in table.index]
    left.set_xticks(range(table.shape[1]), table.columns)
    left.set_yticks(range(table.shape[0]), counts)
    left.set(
        title=f"Latency (ms), density {DENSITY:g}, {CHIP_MACS} multipliers", xlabel="weight block, out x in", ylabel="PE, out x in"
    )
    left.grid(visible=False)
    figure.colorbar(shown, ax=left, label="latency (ms)")
    for number, shape in enumerate(table.index):
        own = by_count(frame, shape)
        right.plot(
            own.area_mm2, own.latency_s * 1e3, marker=MARKERS[number], markersize=5, color=colour(device_token(number)), label=shape
        )
    right.set(
        title=f"32x32 blocks, density {DENSITY:g}, 1 to 32 PEs",
        xlabel="area (mm², assumed)",
        ylabel="latency (ms)",
        xscale="log",
        yscale="log",
    )
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    right.grid(axis="both", which="major")
    right.legend(title="PE shape")
    return figure_file(figure, suffix)


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
