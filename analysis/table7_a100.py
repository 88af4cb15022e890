"""LSP Table 7 redrawn: DeiTs on an A100 in fp32, eager, time and power beside the printed ones, with what contradicts.

The paper's A100 40GB is not said to be SXM or PCIe: both boards are shown. Power is ``scope="lsp"`` (nvidia-smi less idle).
Blocks are priced twice: ``auto`` runs the dense kernel where the block-sparse one is slower, ``always`` forces it.

    python analysis/table7_a100.py -o table7_a100.svg
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import hwmodel as hw
from hwmodel.content import content_folder
from hwmodel.files import check_writable, write_file
from hwmodel.ir.trace import Trace
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

PAPER = content_folder("simulators") / "a100-40gb-sxm" / "lsp_table7.csv"
BOARDS = ("a100-40gb-sxm", "a100-40gb-pcie")
LAYERS = ("patch_embed.proj", "blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc?", "head")
CONTRADICTIONS = (
    "DeiT-T is printed ten times too fast for the regime of the other two: 5.12 ms is 125 TFLOP/s in fp32, 51.2 ms would fit.",
    "The sparse DeiT-B rows sit near 6 ms whatever the density (0.20 to 0.66): a floor, not arithmetic; the model has none there.",
    "64x64 at 65.9 % is printed 1.66 times faster, above its FLOP bound of 1.52.",
    'The "60.4 % power reduction" is 60.4 % remaining (101 of 167 W).',
    "Board and idle power are unknown: dense power agrees with the 250 W PCIe board and is a fifth to a third too high on SXM.",
)
_traced = cache(hw.trace)


@dataclass(frozen=True)
class Row:
    """One printed row beside ours. Seconds and watts; the model's by (board, sparse kernel)."""

    label: str
    paper_s: float
    paper_w: float
    model: dict[tuple[str, str], tuple[float, float]]

    def error(self, board: str, kernel: str = "auto") -> float:
        """Relative error of our time."""
        return self.model[board, kernel][0] / self.paper_s - 1


def _pruned(trace: Trace, printed: dict[str, str]) -> Trace:
    if not printed["block_out"]:
        return trace
    rule = {
        "block": (int(printed["block_out"]), int(printed["block_in"])),
        "density": float(printed["flops_remained_pct"]) / 100,
    }
    return hw.prune(trace, dict.fromkeys(LAYERS, rule))


def _priced(trace: Trace, board: str, kernel: str) -> tuple[float, float]:
    found = hw.estimate(trace, device=board, mode="eager", dtype="fp32", scope="lsp", sparse_kernel=kernel)  # type: ignore[arg-type]
    return float(found.latency_s), float(found.average_power_w)


def redraw() -> list[Row]:
    """One row per row of the paper, in its order."""
    with PAPER.open(encoding="utf-8", newline="") as lines:
        printed = list(csv.DictReader(lines))
    rows = []
    for one in printed:
        trace = _pruned(_traced(f"{one['model']}_patch16_224", batch=int(one["batch"])), one)
        model = {(board, kernel): _priced(trace, board, kernel) for board in BOARDS for kernel in ("auto", "always")}
        block = f" {one['block_out']}x{one['block_in']}" if one["block_out"] else ""
        label = f"{one['model']} b{one['batch']} {one['flops_remained_pct']} %{block}"
        rows.append(Row(label, float(one["time_ms"]) * 1e-3, float(one["power_w"]), model))
    return rows


def as_table(rows: list[Row]) -> Table:
    """The rows as text, milliseconds and watts."""
    table = Table("row", "paper ms", "sxm auto", "sxm always", "pcie auto", "paper W", "sxm W", "pcie W", title="LSP Table 7")
    for row in rows:
        times = [row.model["a100-40gb-sxm", "auto"], row.model["a100-40gb-sxm", "always"], row.model["a100-40gb-pcie", "auto"]]
        cells = (f"{seconds * 1e3:.2f}" for seconds, _ in times)
        powers = (f"{row.model[board, 'auto'][1]:.0f}" for board in BOARDS)
        table.add_row(row.label, f"{row.paper_s * 1e3:.2f}", *cells, f"{row.paper_w:.0f}", *powers)
    return table


@themed
def as_figure(rows: list[Row], suffix: str = ".svg") -> bytes:
    """Bars of time and of power, paper against model, as a file."""
    figure = new_figure(6, 9)
    latency, power = figure.subplots(2, 1, sharex=True)
    places = range(len(rows))
    tone = colour("muted")
    latency.bar([place - 0.3 for place in places], [row.paper_s * 1e3 for row in rows], 0.28, color=tone, label="LSP Table 7")
    power.bar([place - 0.3 for place in places], [row.paper_w for row in rows], 0.28, color=tone)
    for number, (shift, board) in enumerate(zip((0.0, 0.3), BOARDS, strict=True)):
        x, tone = [place + shift for place in places], colour(device_token(number))
        latency.bar(x, [row.model[board, "auto"][0] * 1e3 for row in rows], 0.28, color=tone, label=f"hwmodel: {board}")
        power.bar(x, [row.model[board, "auto"][1] for row in rows], 0.28, color=tone)
    latency.set_yscale("log")
    latency.set_yticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    latency.minorticks_off()
    latency.set_ylabel("time per batch (ms)")
    power.set_ylabel("power less idle (W)")
    power.set_xticks(list(places), [row.label for row in rows], rotation=60, ha="right", fontsize=7)
    latency.legend(loc="upper left")
    return figure_file(figure, suffix)


def main(output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Print the table and what contradicts itself; write the plot where asked."""
    if output is not None:
        check_writable(output)
    rows = redraw()
    console = Console(width=120)
    console.print(as_table(rows))
    for text in CONTRADICTIONS:
        console.print(f"- {text}")
    if output is not None:
        write_file(output, as_figure(rows, output.suffix))


if __name__ == "__main__":
    typer.run(main)
