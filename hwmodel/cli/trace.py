"""`hwmodel trace`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.cli.coverage import AllModels, Family, Workers, print_coverage
from hwmodel.cli.dead_work import further_savings, living
from hwmodel.cli.inputs import check_output, traced_model
from hwmodel.cli.options import AsJson, Batch, Block, Checkpoint, DropDead, Dtype, ImageSize, OptionalModel, RecipeFile
from hwmodel.cli.printing import print_json, print_line, print_table, print_wide
from hwmodel.cli.reconcile import Reconcile, print_reconciliation
from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from hwmodel.ir.trace import Trace


def trace(
    model: OptionalModel = None,
    *,
    batch: Batch = None,
    recipe: RecipeFile = None,
    checkpoint: Checkpoint = None,
    block: Block = None,
    image_size: ImageSize = None,
    dtype: Dtype = None,
    drop_dead: DropDead = False,
    output: Annotated[str | None, typer.Option("-o", "--output", help="trace.json or trace.parquet")] = None,
    all_models: AllModels = False,
    family: Family = None,
    workers: Workers = None,
    reconcile: Reconcile = False,
    as_json: AsJson = False,
) -> None:
    """Write down every operator of a model, pruned by a recipe or as sparse as its checkpoint is, where one is given."""
    of_one_trace: dict[str, object] = {
        "--recipe": recipe,
        "--checkpoint": checkpoint,
        "--block": block,
        "--dtype": dtype,
        "--drop-dead": drop_dead,
    }
    if all_models or family is not None:
        _refuse(
            "--all" if all_models else "--family",
            {"MODEL": model, "--reconcile": reconcile, "--batch": batch, "--image-size": image_size} | of_one_trace,
        )
        print_coverage(family, output, workers, as_json=as_json)
        return
    if workers is not None:
        raise HwmodelError("--workers is for --all or --family; leave it out")
    if model is None:
        raise HwmodelError("name a model, for example 'hwmodel trace deit_tiny_patch16_224', or give --all")
    if reconcile:
        _refuse("--reconcile", {"--output": output} | of_one_trace)
        print_reconciliation(model, batch, image_size, as_json)
        return
    from hwmodel.ir.storage import save_trace

    if output is not None:
        check_output(output, (".json", ".parquet"))
    traced = living(traced_model(model, batch, image_size, dtype, recipe, checkpoint=checkpoint, block=block), drop_dead)
    if output is not None:
        save_trace(traced, output)
    if as_json:
        print_json(_document(traced))
    else:
        _print_tables(traced)


def _document(traced: Trace) -> dict[str, Any]:
    """The trace as it is saved, with the sums that readers would compute first."""
    from hwmodel.ir.storage import FINDING_SUMS, trace_to_document

    document = trace_to_document(traced) | {"macs": traced.macs, "kept_macs": traced.kept_macs}
    for row, operator in zip(document["operators"], traced.operators, strict=True):
        row |= {"macs": operator.macs, "kept_macs": operator.kept_macs}
    for row, finding in zip(document.get("findings", []), traced.findings, strict=True):
        row |= {name: getattr(finding, name) for name in FINDING_SUMS}
    return document


def _print_tables(traced: Trace) -> None:
    from hwmodel.reporting.tables import trace_table

    print_table(trace_table(traced))
    if traced.findings:
        from hwmodel.reporting.findings_table import findings_table

        print_wide(findings_table(traced))
    savings = further_savings(traced)
    if savings:
        print_line(savings)


def _refuse(option: str, others: Mapping[str, object]) -> None:
    """Refuse what ``option`` would ignore."""
    given = [name for name, value in others.items() if value]
    if given:
        raise HwmodelError(f"{option} does not go together with {', '.join(given)}; leave one out")
