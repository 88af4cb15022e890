"""PE shape and count of the ViTA chip against the block shape of a pruned DeiT-B.

The chip's organisation is not published: PEs, memories, energy and area are assumed card fields (simulators/vita).
An example of `hwmodel explore`; `vita_design.py` adds memories, bandwidth, other models and the assumed numbers.

    python analysis/vita_pe.py -o vita_pe.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

import hwmodel as hw
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.study_figures import log_scale
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
    whole = frame["PE count"] * frame["PE shape"].astype(str).map(macs)
    own = frame[(frame.density == density) & (whole == CHIP_MACS)]
    table = own.pivot_table(index="PE shape", columns="block", values="latency_s", observed=True) * 1e3
    rows, columns = (sorted(names.astype(str), key=lambda shape: (macs(shape), shape)) for names in (table.index, table.columns))
    return table.loc[rows, columns]


def by_count(frame: pd.DataFrame, shape: str) -> pd.DataFrame:
    """Designs of one PE shape on 32x32 blocks, by number of PEs."""
    own = frame[(frame["PE shape"] == shape) & (frame.block == "32x32") & (frame.density == DENSITY)]
    return own.sort_values("PE count")


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the study says, from its own numbers."""
    pruned, dense = (of_chip_size(frame, density).to_dict("index") for density in (DENSITY, 1.0))
    best = min(pruned, key=lambda shape: pruned[shape]["32x32"])
    fastest_ms = pruned[best]["32x32"]
    coarse = {block: dense["64x64"][block] / pruned["64x64"][block] for block in ("16x16", "64x64")}
    fine = max(pruned["16x16"].values()) / min(pruned["16x16"].values()) - 1
    few = by_count(frame, "32x32").set_index("PE count")[["latency_s", "area_mm2", "energy_j"]].to_dict("index")
    faster, larger, dearer = (
        few[1]["latency_s"] / few[8]["latency_s"],
        *(few[8][name] / few[1][name] for name in ("area_mm2", "energy_j")),
    )
    return [
        f"With {CHIP_MACS} multipliers and a quarter of the 32x32 blocks kept, {best} PEs are the fastest ({fastest_ms:.2f} "
        f"ms); 64x64 "
        f"PEs take {pruned['64x64']['32x32'] / fastest_ms:.1f} times as long, for a tile is skipped only where every block in "
        f"it is pruned.",
        f"Blocks pay where they fill a PE: on 64x64 PEs, 16x16 blocks gain {coarse['16x16']:.2f} times over dense and 64x64 "
        f"blocks "
        f"{coarse['64x64']:.2f} times, while on 16x16 PEs all block shapes cost the same to {fine:.1%}.",
        f"PEs beyond a few wait for memory: from one 32x32 PE to eight, latency falls {faster:.2f} times, area grows "
        f"{larger:.1f} times "
        f"and energy {dearer:.2f} times.",
    ]


@themed
def as_figure(frame: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """Left: latency by PE and block shape at equal multipliers. Right: latency against area, a line of counts per PE shape."""
    table = of_chip_size(frame, DENSITY)
    values = table.to_numpy()
    figure = new_figure(4.6, 11.0)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
    shown = left.imshow(values, cmap="cividis_r", aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = float(values[row, column])
        dark = value > (values.max() + values.min()) / 2
        left.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
    counts = [f"{shape} ({CHIP_MACS // macs(shape)} PEs)" for shape in table.index]
    left.set_xticks(range(table.shape[1]), table.columns.tolist())
    left.set_yticks(range(table.shape[0]), counts)
    left.set_title(f"Latency (ms), density {DENSITY:g}, {CHIP_MACS} multipliers")
    left.set(xlabel="weight block, out x in", ylabel="PE, out x in")
    left.grid(visible=False)
    figure.colorbar(shown, ax=left, label="latency (ms)")
    for number, shape in enumerate(table.index.tolist()):
        own = by_count(frame, shape)
        line = {"marker": MARKERS[number], "color": colour(device_token(number)), "label": shape}
        right.plot(own.area_mm2, own.latency_s * 1e3, markersize=5, **line)
    right.set_title(f"32x32 blocks, density {DENSITY:g}, 1 to 32 PEs")
    right.set(xlabel="area (mm², assumed)", ylabel="latency (ms)")
    drawn = frame[frame["PE shape"].isin(table.index) & (frame.block == "32x32") & (frame.density == DENSITY)]
    log_scale(right, "x", drawn.area_mm2)
    log_scale(right, "y", drawn.latency_s * 1e3)
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
