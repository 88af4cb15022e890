"""Break-even density of every layer of DeiT-B on an A100 by batch, block shape and number format.

Below it the block-sparse kernel is faster than the dense one. The sparse kernel's time is the dense one's times an affine law
in density that rests on two whole-model runs (simulators/a100-40gb-sxm): a hypothesis, and so is this map.

    python analysis/break_even_a100.py -o break_even_a100.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import hwmodel as hw
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.style import figure_file, new_figure, themed

MODEL, DEVICE = "deit_base_patch16_224", "a100-40gb"
BATCHES = (1, 4, 16, 64)
BLOCKS = ((16, 16), (32, 32), (64, 64))
DTYPES = ("fp16", "fp32")
DENSITY = 0.25
ROLES = ("patch_embed", "qkv", "proj", "fc1", "fc2", "head")


def table(batches: Sequence[int] = BATCHES, model: str = MODEL) -> pd.DataFrame:
    """The layers' rows of the cost table over batch, block shape and dtype."""
    traces = [hw.trace(model, batch=batch) for batch in batches]
    rows = hw.cost_table(traces, device=DEVICE, block=BLOCKS, density=[DENSITY], dtype=DTYPES).rows
    return rows[rows.group == "layer"]


def sentences(rows: pd.DataFrame) -> list[str]:
    """What the maps say, from their own numbers."""
    limits = rows.groupby(["dtype", "block_out"]).break_even_density
    median: dict[Any, float] = limits.median().to_dict()
    spread: dict[Any, float] = (limits.max() - limits.min()).to_dict()
    totals: dict[Any, float] = rows.groupby(["dtype", "block_out", "batch", "density"]).latency_s.sum().to_dict()
    batch, (dtype, side) = int(rows.batch.max()), max(spread, key=lambda key: spread[key])
    gain = {block: totals["fp16", block, batch, 1.0] / totals["fp16", block, batch, DENSITY] for block in (32, 64)}
    own = rows[(rows.dtype == dtype) & (rows.block_out == side)].sort_values("break_even_density")
    peak = {name: own[name].tolist()[-1] for name in ("role", "batch", "break_even_density")}
    return [
        f"In fp16 a sparse kernel pays below {median['fp16', 64]:.0%} of 64x64 blocks kept, {median['fp16', 32]:.0%} of 32x32 "
        f"and "
        f"{median['fp16', 16]:.0%} of 16x16; on CUDA cores (fp32), which operands limit less, below {median['fp32', 64]:.0%}, "
        f"{median['fp32', 32]:.0%} and {median['fp32', 16]:.0%}.",
        f"Layer and batch hardly matter, by {spread[dtype, side]:.1%} at most ({dtype}, {side}x{side} blocks): the largest "
        f"there, "
        f"{peak['break_even_density']:.0%}, is {peak['role']}'s at batch {peak['batch']}, where the board's limit slows the "
        f"dense kernel.",
        f"So a quarter of the blocks kept, batch {batch}, fp16, makes the layers {gain[64]:.2f} times as fast in 64x64 blocks "
        f"and "
        f"{gain[32]:.2f} times in 32x32 blocks: on this machine the block shape decides, not the layer.",
    ]


@themed
def as_figure(rows: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """One map per dtype (row) and block shape (column): layers by batch. Blocks of one role are alike and share a line."""
    figure = new_figure(5.6, 11.0)
    grid = figure.subplots(len(DTYPES), len(BLOCKS), sharex=True, sharey=True)
    for row, dtype in zip(grid, DTYPES, strict=True):
        for axes, block in zip(row, BLOCKS, strict=True):
            own = rows[(rows.dtype == dtype) & (rows.block_out == block[0])]
            values = own.pivot_table(index="role", columns="batch", values="break_even_density", aggfunc="median").loc[list(ROLES)]
            axes.imshow(values.to_numpy(), cmap="cividis", vmin=0.0, vmax=0.7, aspect="auto")
            for place in np.ndindex(values.shape):
                share = float(values.to_numpy()[place])
                axes.text(place[1], place[0], f"{share:.0%}", ha="center", va="center", color="white" if share < 0.35 else "black")
            axes.set_title(f"{dtype}, {block[0]}x{block[1]} blocks")
            axes.set_xticks(range(values.shape[1]), values.columns)
            axes.set_yticks(range(len(ROLES)), [f"{role} ({own[own.role == role].name.nunique()})" for role in ROLES])
            axes.grid(visible=False)
    for axes in grid[-1]:
        axes.set_xlabel("batch (images)")
    for axes in grid[:, 0]:
        axes.set_ylabel("layer (how many)")
    figure.colorbar(grid[0, 0].images[0], ax=grid, label="break-even: fraction of blocks kept", shrink=0.8)
    return figure_file(figure, suffix)


def main(output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Make the table, print what it says, and draw it where asked."""
    if output is not None:
        check_writable(output)
    rows = table()
    for sentence in sentences(rows):
        print(f"- {sentence}")
    if output is not None:
        write_file(output, as_figure(rows, output.suffix))


if __name__ == "__main__":
    typer.run(main)
