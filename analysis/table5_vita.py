"""LSP Table 5 redrawn: ViTA in ``paper`` mode beside the printed times, as a table and a plot.

Each pruned row is priced on its own PE. Two speed-ups are shown: against dense on the *same* PE, as the paper's column
turns out to be, and against the printed dense row.

    python analysis/table5_vita.py -o table5_vita.svg
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
from hwmodel.reporting.style import figure_file

PAPER = content_folder("simulators") / "vita" / "lsp_table5.csv"
_traced = cache(hw.trace)


@dataclass(frozen=True)
class Row:
    """One printed row beside ours. Times in seconds; speed-ups are ratios."""

    model: str
    block: str
    kept_pct: float
    pe: str
    paper_s: float
    paper_speedup: float
    model_s: float
    same_pe_dense_s: float
    printed_dense_s: float

    @property
    def error(self) -> float:
        """Relative error of our time."""
        return self.model_s / self.paper_s - 1


def model_time_s(model: str, recipe: str = "", pe: str = "") -> float:
    """Seconds in ``paper`` mode; ``pe`` overrides the rule (the recipe's first, then the card's by width)."""
    trace = _traced(model)
    pruned = hw.prune(trace, recipe) if recipe else trace
    return float(hw.estimate(pruned, device="vita", mode="paper", overrides={"pe": pe} if pe else {}).latency_s)


def redraw() -> list[Row]:
    """One row per row of the paper, in its order."""
    with PAPER.open(encoding="utf-8", newline="") as lines:
        printed = list(csv.DictReader(lines))
    dense_s = {row["model"]: float(row["time_ms"]) * 1e-3 for row in printed if not row["recipe"]}
    return [
        Row(
            model=row["model"],
            block=f"{row['block_out']}x{row['block_in']}" if row["recipe"] else "dense",
            kept_pct=float(row["kept_pct"]),
            pe=row["pe"],
            paper_s=float(row["time_ms"]) * 1e-3,
            paper_speedup=float(row["speedup"]),
            model_s=model_time_s(row["model"], row["recipe"]),
            same_pe_dense_s=model_time_s(row["model"], pe=row["pe"]),
            printed_dense_s=dense_s[row["model"]],
        )
        for row in printed
    ]


def as_table(rows: list[Row]) -> Table:
    """The rows for a terminal."""
    table = Table("model", "block", "kept", "PE", "paper", "model", "error", "paper x", "same PE x", "vs printed dense x")
    for row in rows:
        times = (f"{row.paper_s * 1e3:.2f} ms", f"{row.model_s * 1e3:.2f} ms", f"{row.error:+.1%}")
        speedups = (row.paper_speedup, row.same_pe_dense_s / row.model_s, row.printed_dense_s / row.model_s)
        table.add_row(row.model, row.block, f"{row.kept_pct:g} %", row.pe, *times, *(f"{speedup:.2f}" for speedup in speedups))
    return table


def draw(rows: list[Row], path: Path) -> None:
    """Paper beside model, one pair of bars per row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.bar([place - 0.2 for place in places], [row.paper_s * 1e3 for row in rows], 0.4, color="#9aa5b1", label="LSP Table 5")
    ours = [row.model_s * 1e3 for row in rows]
    bars = axes.bar([place + 0.2 for place in places], ours, 0.4, color="#0072b2", label="hwmodel: vita, paper mode")
    axes.bar_label(bars, labels=[f"{row.error:+.1%}" for row in rows], fontsize=8, padding=2)
    labels = [f"{row.model.split('_')[1]}\n{row.block}\n{row.kept_pct:g} %" for row in rows]
    axes.set_xticks(list(places), labels, fontsize=8)
    axes.set_ylabel("time per image (ms)")
    axes.set_title("LSP Table 5 on one ViTA processing element: printed against modelled", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_file(path, figure_file(figure, path.suffix))


def main(output: Annotated[Path | None, typer.Option("-o", "--output", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Print the table; draw the figure where a path is given."""
    if output is not None:
        check_writable(output)
    rows = redraw()
    Console().print(as_table(rows))
    if output is not None:
        draw(rows, output)


if __name__ == "__main__":
    typer.run(main)
