"""`hwmodel trace`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.inputs import check_output, traced_model
from hwmodel.cli.options import AsJson, Batch, Dtype, ImageSize, Model, RecipeFile
from hwmodel.cli.printing import print_json, print_table


def trace(
    model: Model,
    *,
    batch: Batch = None,
    recipe: RecipeFile = None,
    image_size: ImageSize = None,
    dtype: Dtype = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="trace.json or trace.parquet")] = None,
    as_json: AsJson = False,
) -> None:
    """Write down every operator of a model, pruned by a recipe where one is given."""
    from hwmodel.ir.storage import save_trace, trace_to_document

    if output is not None:
        check_output(output, (".json", ".parquet"))
    traced = traced_model(model, batch, image_size, dtype, recipe)
    if output is not None:
        save_trace(traced, output)
    if as_json:
        totals = {"macs": traced.macs, "kept_macs": traced.kept_macs}
        document = trace_to_document(traced) | totals
        for row, operator in zip(document["operators"], traced.operators, strict=True):
            row |= {"macs": operator.macs, "kept_macs": operator.kept_macs}
        print_json(document)
        return
    from hwmodel.reporting.tables import trace_table

    print_table(trace_table(traced))
