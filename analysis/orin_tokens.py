"""Power modes of the AGX Orin 64 GB against token pruning of DeiT-B, with block pruning beside it.

No measured ViT backs these rows: the card's fidelity is analytic (time) and assumed (energy).

    python analysis/orin_tokens.py -o orin_tokens.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import hwmodel as hw
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.study_figures import log_scale
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

STUDY = Path(__file__).parent / "studies" / "orin_tokens.toml"
FASTEST, SLOWEST = "engine+maxn", "engine+15w"
MODES = {FASTEST: "o", "engine+50w": "s", "engine+30w": "D", SLOWEST: "^"}


def value(frame: pd.DataFrame, quantity: str, mode: str, batch: int, *, keep: float = 1.0, density: float = 1.0) -> float:
    """One quantity of one point."""
    own = frame[(frame["mode"] == mode) & (frame.batch == batch) & (frame.keep == keep) & (frame.density == density)]
    return float(own[quantity].iloc[0])


def gain(frame: pd.DataFrame, mode: str, batch: int, density: float = 1.0) -> float:
    """Speed with half of the patch tokens over all of them."""
    return value(frame, "latency_s", mode, batch, density=density) / value(
        frame, "latency_s", mode, batch, keep=0.5, density=density
    )


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the study says, from its own numbers."""
    tokens, blocks, both = (
        value(frame, "latency_s", FASTEST, 1) / value(frame, "latency_s", FASTEST, 1, keep=keep, density=density)
        for keep, density in ((0.5, 1.0), (1.0, 0.2), (0.5, 0.2))
    )
    half_j, slow_j = value(frame, "energy_j", FASTEST, 8, keep=0.5) / 8, value(frame, "energy_j", SLOWEST, 8) / 8
    frugal = min(MODES, key=lambda mode: value(frame, "energy_j", mode, 8))
    gains = {(mode, batch): gain(frame, mode, batch) for mode in (FASTEST, SLOWEST) for batch in (1, 8)}
    return [
        f"Half of the patch tokens from block 3 on make DeiT-B {gains[FASTEST, 1]:.2f} times as fast at batch 1 under maxn and "
        f"{gains[SLOWEST, 1]:.2f} times under 15 W ({gains[FASTEST, 8]:.2f} and {gains[SLOWEST, 8]:.2f} at batch 8): the slow "
        f"chip is "
        f"bound by arithmetic, which falls with tokens, the fast one at batch 1 largely by reading weights and launching "
        f"kernels.",
        f"The two kinds of pruning devalue each other: at batch 1 under maxn, tokens alone gain {tokens:.2f} times, 64x64 blocks "
        f"at density 0.2 alone {blocks:.2f} times, both together {both:.2f} times; independent gains would give "
        f"{tokens * blocks:.2f}.",
        f"Fewer tokens save more energy than a slower mode: at batch 8, half of the tokens under maxn take {half_j * 1e3:.0f} "
        f"mJ an "
        f"image, all tokens under 15 W {slow_j * 1e3:.0f} mJ; the most frugal mode for the whole model is "
        f"{frugal.removeprefix('engine+')}.",
    ]


@themed
def as_figure(frame: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """Energy per image against latency per image, one line per power mode through the kept share of tokens."""
    batches = sorted(frame.batch.unique())
    figure = new_figure(4.6, 11.0)
    for axes, batch in zip(figure.subplots(1, len(batches), sharey=True), batches, strict=True):
        for number, (mode, marker) in enumerate(MODES.items()):
            for density, line in ((1.0, "-"), (0.2, ":")):
                own = frame[(frame["mode"] == mode) & (frame.batch == batch) & (frame.density == density)].sort_values("keep")
                label = mode.removeprefix("engine+") + ("" if density == 1.0 else f", blocks at density {density:g}")
                axes.plot(
                    own.latency_s / batch * 1e3, own.energy_j / batch * 1e3, line, marker=marker, markersize=4,
                    color=colour(device_token(number)), label=label,
                )  # fmt: skip
        axes.set(title=f"batch {batch}", xlabel="latency per image (ms)")
        log_scale(axes, "x", frame.latency_s[frame.batch == batch] / batch * 1e3)
        axes.grid(axis="both", which="major")
    figure.axes[0].set_ylabel("energy per image (mJ)")
    kept = sorted(frame.keep.unique())
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
        title=f"points from left to right: {kept[0]:.0%} to {kept[-1]:.0%} of the patch tokens kept from block 3 on",
    )  # fmt: skip
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
