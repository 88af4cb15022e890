"""`hwmodel report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwmodel.cli.dead_work import living
from hwmodel.cli.inputs import check_output, checkpoint_model, pruned_by, unpruned_model
from hwmodel.cli.options import (
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
) -> None:
    """Compare a dense model and its pruned versions on several devices, as one HTML file that needs no network."""
    from hwmodel.reporting.report import Variant, write_report
    from hwmodel.reporting.tables import estimates_table

    check_output(output, (".html", ".htm"))
    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    with progress() as step:
        step(f"reading {model}")
        dense = unpruned_model(model, batch, image_size, dtype, recipe or [])
        versions = [("dense", dense), *((Path(name).stem, pruned_by(dense, name)) for name in recipe or [])]
        if checkpoint is not None or block is not None:
            found = checkpoint_model(model, batch, image_size, dtype, checkpoint=checkpoint, block=block)
            versions.append((Path(checkpoint or "checkpoint").stem, found))
        variants = []
        for label, version in versions:
            pruned = living(version, drop_dead, label)
            step(f"pricing {label} on {len(plan.cards)} devices")
            variants.append(Variant(label=label, trace=pruned, estimates=tuple(plan.estimates(pruned))))
        write_report(variants, output, progress=step)
    labels = [variant.label for variant in variants for _ in variant.estimates]
    print_table(estimates_table([one for variant in variants for one in variant.estimates], labels=labels))
    print_line(f"report written to {output}")
