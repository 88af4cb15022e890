"""Pictures of block masks (the LSP paper's Figure 4): which blocks of a weight are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.reporting.breakdown import kept_weights, layers
from hwmodel.reporting.style import colour, new_figure, themed
from hwmodel.reporting.units import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BoolArray = npt.NDArray[np.bool_]
_PER_ROW = 4
_PIXELS = 400
_LABELS = 0.78
"""Inches above and below a picture."""
_WIDTH = 9.2
"""Inches for the pictures of a row."""


def pictured(trace: Trace) -> list[Operator]:
    """A few layers worth a picture: those of the first and the last encoder block that have masks, else any four."""
    masked = [operator for operator in layers(trace) if operator.mask is not None]
    blocks = [operator.block for operator in masked if operator.block is not None]
    ends = [operator for operator in masked if blocks and operator.block in {min(blocks), max(blocks)}]
    return (ends or masked)[: 2 * _PER_ROW]


@themed
def mask_pictures(operators: Sequence[Operator]) -> Figure:
    """One picture per layer, the longer side of the weight across; a flat shade where only the density is known."""
    lines = [operators[at : at + _PER_ROW] for at in range(0, len(operators), _PER_ROW)]
    widths = [_panel_widths(line) for line in lines]
    heights = [_LABELS + _WIDTH * _tallest(line, across) / sum(across) for line, across in zip(lines, widths, strict=True)]
    figure = new_figure(sum(heights))
    strips = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=heights)[:, 0]
    for strip, line, across in zip(strips, lines, widths, strict=True):
        panels = strip.subplots(1, len(line), squeeze=False, width_ratios=across)
        for axes, operator in zip(panels[0], line, strict=True):
            _picture(axes, operator)
    return figure


def _panel_widths(line: Sequence[Operator]) -> list[float]:
    """Widths in elements, small pictures wide enough for their labels."""
    widths = [max(_picture_size(operator)) for operator in line]
    return [max(width, max(widths) / 3) for width in widths]


def _tallest(line: Sequence[Operator], widths: Sequence[float]) -> float:
    """Height of the tallest picture where each fills its width, in the units of ``widths``."""
    sizes = [_picture_size(operator) for operator in line]
    return max(width * down / across for (across, down), width in zip(sizes, widths, strict=True))


def _picture_size(operator: Operator) -> tuple[int, int]:
    """Elements (across, down) of the picture: the longer side of the weight lies across."""
    return max(operator.n, operator.k), min(operator.n, operator.k)


def _picture(axes: Axes, operator: Operator) -> None:
    mask = operator.mask
    if mask is None:
        raise ValueError(f"{operator.name} has no mask to draw")
    across, down = _picture_size(operator)
    turned = operator.n > operator.k
    if isinstance(mask, BlockMask):
        kept, block = (mask.kept.T, mask.block[::-1]) if turned else (mask.kept, mask.block)
        _draw_blocks(axes, kept, block)
        word = "kept"
    else:
        axes.axhspan(0, down, facecolor=colour("mask"), alpha=max(mask.kept_fraction, 0.03))
        word = "expected"
    axes.set_xlim(0, across)
    axes.set_ylim(down, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour("muted"), linewidth=0.7)
    place = "" if operator.block is None else f"block {operator.block} "
    axes.set_title(f"{place}{operator.name.rpartition('.')[2]}", fontsize=8.5)
    sides = f"{'out' if turned else 'in'} {across} × {'in' if turned else 'out'} {down}"
    axes.set_xlabel(f"{percent(kept_weights(operator), 1)} {word}\n{sides}", loc="left", fontsize=7.5)


def _draw_blocks(axes: Axes, kept: BoolArray, block: tuple[int, int]) -> None:
    """The grid as an image of one pixel per block; the last row and column are cut where they are ragged."""
    from matplotlib.colors import to_rgb

    shade = _pooled(kept)
    pixels = np.empty((*shade.shape, 4))
    pixels[..., :3] = to_rgb(colour("mask"))
    pixels[..., 3] = shade
    whole = (0, kept.shape[1] * block[1], kept.shape[0] * block[0], 0)
    axes.imshow(pixels, extent=whole, interpolation="none", aspect="equal")


def _pooled(kept: BoolArray) -> npt.NDArray[np.float64]:
    """The grid, or the kept fraction of groups of blocks where it has more than :data:`_PIXELS` on a side."""
    shade = kept.astype(np.float64)
    for axis, length in enumerate(kept.shape):
        group = -(-length // _PIXELS)
        starts = np.arange(0, length, group)
        sizes = np.diff([*starts.tolist(), length])
        shade = np.add.reduceat(shade, starts, axis=axis) / (sizes[:, None] if axis == 0 else sizes)
    return shade


def caption(operators: Sequence[Operator]) -> str:
    """How to read the pictures of these layers."""
    certain = [isinstance(operator.mask, BlockMask) for operator in operators]
    read = "Blue blocks are kept, one picture element per block; the first of the two sides lies across."
    flat = "Only the density is known, not which blocks are kept: an expected mask is drawn as a flat shade of that density."
    return read if all(certain) else f"{read} {flat}" if any(certain) else flat
