"""Latency and energy of DeiT-B on every power mode of the AGX Orin boards: dense, token-pruned, block-pruned.

The most efficient mode is not the fastest. No measured ViT backs these rows: the cards' fidelity is analytic (time) and
assumed (energy).

    python analysis/orin_power_modes.py -o orin_power_modes.svg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.files import check_writable, write_file
from hwmodel.ir.trace import Trace
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

MODEL = "deit_base_patch16_224"
DEVICES = ("agx-orin-64gb", "agx-orin-32gb")
LAYERS = ("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc?")
BLOCKS = {"block": (64, 64), "density": 0.3}
KEEP = 0.7


@dataclass(frozen=True)
class Point:
    """One variant in one power mode. Seconds, joules and watts for the batch."""

    device: str
    mode: str
    variant: str
    latency_s: float
    energy_j: float
    power_w: float


def variants(batch: int) -> dict[str, Trace]:
    """Dense, 70 % of the patch tokens from block 3 on, and 64x64 blocks at density 0.3."""
    dense = hw.trace(MODEL, batch=batch)
    tokens = Recipe.model_validate(
        {
            "schema_version": 1,
            "model": MODEL,
            "source": "analysis/orin_power_modes.py",
            "encoder": [{"blocks": "3-11", "keep": KEEP}],
        }
    )
    return {"dense": dense, "tokens 0.7": hw.prune(dense, tokens), "blocks 0.3": hw.prune(dense, dict.fromkeys(LAYERS, BLOCKS))}


def study(batch: int = 8) -> list[Point]:
    """Every variant in every power mode of every device, engine mode, fp16."""
    points = []
    traces = variants(batch)
    for device in DEVICES:
        for mode in load_card(device).power_modes:
            for name, trace in traces.items():
                found = hw.estimate(trace, device=device, mode=f"engine+{mode}", dtype="fp16")
                points.append(
                    Point(device, mode, name, float(found.latency_s), float(found.energy_j), float(found.average_power_w))
                )
    return points


def best(points: list[Point], device: str, variant: str) -> tuple[Point, Point]:
    """The fastest and the most frugal point of one device and variant."""
    own = [point for point in points if (point.device, point.variant) == (device, variant)]
    return min(own, key=lambda point: point.latency_s), min(own, key=lambda point: point.energy_j)


def as_table(points: list[Point], batch: int) -> Table:
    """Milliseconds, millijoules per image and watts."""
    table = Table("device", "mode", "variant", "ms", "mJ per image", "W", title=f"{MODEL}, batch {batch}, fp16, engine")
    for point in points:
        cells = (f"{point.latency_s * 1e3:.2f}", f"{point.energy_j * 1e3 / batch:.1f}", f"{point.power_w:.1f}")
        table.add_row(point.device, point.mode, point.variant, *cells)
    return table


@themed
def as_figure(points: list[Point], batch: int, suffix: str = ".svg") -> bytes:
    """Energy against latency, one line per variant through the modes, as a file."""
    figure = new_figure(4)
    panels = figure.subplots(1, len(DEVICES), sharey=True)
    for axes, device in zip(panels, DEVICES, strict=True):
        for number, variant in enumerate(dict.fromkeys(point.variant for point in points)):
            own = [point for point in points if (point.device, point.variant) == (device, variant)]
            places = [(point.latency_s * 1e3, point.energy_j * 1e3 / batch) for point in own]
            axes.plot(*zip(*places, strict=True), marker="o", markersize=4, color=colour(device_token(number)), label=variant)
            for point, place in zip(own, places, strict=True):
                axes.annotate(point.mode, place, (0, -11), textcoords="offset points", ha="center", fontsize=7)
        axes.set_title(device)
        axes.set_xscale("log")
        axes.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
        axes.minorticks_off()
        axes.margins(0.08, 0.1)
        axes.set_xlabel(f"latency of {batch} images (ms)")
    panels[0].set_ylabel("energy per image (mJ)")
    panels[0].legend(loc="upper left")
    return figure_file(figure, suffix)


def main(
    output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None,
    batch: Annotated[int, typer.Option(help="images of one forward pass")] = 8,
) -> None:
    """Print the table and the best modes; write the plot where asked."""
    if output is not None:
        check_writable(output)
    points = study(batch)
    console = Console(width=120)
    console.print(as_table(points, batch))
    for device in DEVICES:
        for variant in dict.fromkeys(point.variant for point in points):
            fastest, frugal = best(points, device, variant)
            saved = 1 - frugal.energy_j / fastest.energy_j
            console.print(f"- {device}, {variant}: fastest {fastest.mode}, most efficient {frugal.mode} (-{saved:.0%} energy)")
    if output is not None:
        write_file(output, as_figure(points, batch, output.suffix))


if __name__ == "__main__":
    typer.run(main)
