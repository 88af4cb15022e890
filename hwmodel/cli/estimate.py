"""`hwmodel estimate`."""

from __future__ import annotations

import sys

from hwmodel.cli.inputs import traced_model
from hwmodel.cli.options import (
    AsCsv,
    AsJson,
    Attention,
    Batch,
    Devices,
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
    traced = traced_model(model, batch, image_size, dtype, recipe)
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
