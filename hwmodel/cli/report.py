"""`hwmodel report`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwmodel.cli.dead_work import living
from hwmodel.cli.families import depends_on_image
from hwmodel.cli.inputs import check_output, checkpoint_model, pruned_by, unpruned_model
from hwmodel.cli.options import (
    AsCsv,
    Attention,
    Batch,
    Block,
    Checkpoint,
    Devices,
    DropDead,
    Dtype,
    EnergyScope,
    ImageSize,
    Mode,
    Model,
    RecipeFiles,
    Settings,
    SparseKernel,
    Workers,
)
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_line, print_table, progress
from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from hwmodel.ir.trace import Trace


def report(
    model: Model,
    *,
    device: Devices,
    output: Annotated[str, typer.Option("-o", "--output", help="the HTML file to write")],
    recipe: RecipeFiles = None,
    checkpoint: Checkpoint = None,
    block: Block = None,
    drop_dead: DropDead = False,
    batch: Batch = None,
    dtype: Dtype = None,
    mode: Mode = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    attention: Attention = "source",
    sparse_kernel: SparseKernel = "auto",
    scope: EnergyScope = "board",
    workers: Workers = None,
    static: Annotated[bool, typer.Option("--static", help="figures as SVG only: a small file, nothing to hover over")] = False,
    figures: Annotated[str | None, typer.Option("--figures", help="a folder to write every figure into, for a paper")] = None,
    figure_format: Annotated[str | None, typer.Option("--format", help="of --figures: pdf (the default), png or svg")] = None,
    as_csv: AsCsv = False,
) -> None:
    """Compare a dense model and its pruned versions on several devices, as one HTML file that needs no network."""
    from hwmodel.reporting import helpers
    from hwmodel.reporting.report import FigureFolder, Variant, report_csv, write_report
    from hwmodel.reporting.tables import estimates_table

    check_output(output, (".html", ".htm"))
    if figure_format is not None and figures is None:
        raise HwmodelError(f"--format {figure_format}: for the files of --figures; name a folder for them")
    folder = None if figures is None else FigureFolder(Path(figures), figure_format or "pdf")
    helped = workers != 1 and (os.cpu_count() or 1) > 1
    if helped:
        helpers.warm_up()
    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    with progress() as step:
        step(f"reading {model}")
        variants = []
        found = _recipes(model, batch, image_size, dtype, recipe or [])
        if checkpoint is not None or block is not None:
            stored = checkpoint_model(model, batch, image_size, dtype, checkpoint=checkpoint, block=block)
            found.append((Path(checkpoint or "checkpoint").stem, stored))
        for label, version in _numbered(found):
            pruned = living(version, drop_dead, label)
            step(f"pricing {label} on {len(plan.cards)} devices")
            variants.append(Variant(label=label, trace=pruned, estimates=tuple(plan.estimates(pruned))))
        write_report(variants, output, step, static=static, figures=folder, helped=helped)
    if as_csv:
        sys.stdout.write(report_csv(variants))
        sys.stderr.write(f"hwmodel: report written to {output}\n")
        return
    labels = [variant.label for variant in variants for _ in variant.estimates]
    print_table(estimates_table([one for variant in variants for one in variant.estimates], labels=labels))
    print_line(f"report written to {output}")


def _recipes(
    model: str, batch: int | None, image_size: int | None, dtype: str | None, recipes: Sequence[str]
) -> list[tuple[str, Trace]]:
    """The dense model and what the recipes make of it, each with what a reader calls it."""
    for recipe in recipes:
        if depends_on_image(recipe):
            raise HwmodelError(f"{recipe}: its token counts depend on the image; `hwmodel estimate` prices their distribution")
    dense = unpruned_model(model, batch, image_size, dtype, recipes)
    return [("dense", dense), *((Path(recipe).stem, pruned_by(dense, recipe)) for recipe in recipes)]


def _numbered(versions: Sequence[tuple[str, Trace]]) -> list[tuple[str, Trace]]:
    """Names that repeat get a number."""
    names = [name for name, _ in versions]
    numbers = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    return [(name if number == 1 else f"{name} #{number}", trace) for number, (name, trace) in zip(numbers, versions, strict=True)]
