"""`hwmodel estimate`."""

from __future__ import annotations

import sys

from hwmodel.cli.dead_work import living
from hwmodel.cli.families import depends_on_image, families, print_families
from hwmodel.cli.inputs import traced_model
from hwmodel.cli.options import (
    AsCsv,
    AsJson,
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
    RecipeFile,
    Settings,
    SparseKernel,
    Workers,
)
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_json, print_table
from hwmodel.errors import HwmodelError


def estimate(
    model: Model,
    *,
    device: Devices,
    batch: Batch = None,
    dtype: Dtype = None,
    mode: Mode = None,
    recipe: RecipeFile = None,
    checkpoint: Checkpoint = None,
    block: Block = None,
    drop_dead: DropDead = False,
    image_size: ImageSize = None,
    settings: Settings = None,
    attention: Attention = "source",
    sparse_kernel: SparseKernel = "auto",
    scope: EnergyScope = "board",
    workers: Workers = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Price a model, or a saved trace, on one or more devices."""
    if as_json and as_csv:
        raise HwmodelError("--json and --csv: choose one")
    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    if recipe is not None and depends_on_image(recipe):
        if drop_dead:
            raise HwmodelError(f"--drop-dead: not for a distribution of token counts; {recipe} has one")
        print_families(families(model, batch, image_size, dtype, recipe), plan, as_json=as_json, as_csv=as_csv)
        return
    traced = living(traced_model(model, batch, image_size, dtype, recipe, checkpoint=checkpoint, block=block), drop_dead)
    found = plan.estimates(traced)
    if as_json:
        print_json([one.document() for one in found])
    elif as_csv:
        from hwmodel.reporting.report import csv_text

        sys.stdout.write(csv_text(found))
    else:
        from hwmodel.reporting.tables import estimates_table

        print_table(estimates_table(found))
    for one in found:
        for warning in one.warnings:
            sys.stderr.write(f"hwmodel: warning: {one.device}: {warning}\n")
