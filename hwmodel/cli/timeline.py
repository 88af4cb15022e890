"""`hwmodel timeline`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.inputs import check_output
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
from hwmodel.cli.printing import print_line
from hwmodel.cli.versions import versions_of


def timeline(
    model: Model,
    *,
    device: Devices,
    output: Annotated[str, typer.Option("-o", "--output", help="the trace-event file to write, .json")],
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
    """Draw what runs when, dense above pruned, as a file that Perfetto (ui.perfetto.dev) or chrome://tracing opens."""
    from hwmodel.files import write_file
    from hwmodel.reporting.timeline import timeline as draw
    from hwmodel.reporting.timeline import timeline_text
    from hwmodel.reporting.variants import Case

    check_output(output, (".json",))
    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    versions = versions_of(
        model, batch, image_size, dtype, recipe or [], checkpoint=checkpoint, block=block, drop_dead=drop_dead
    )  # fmt: skip
    priced = [(label, plan.estimates(version)) for label, version in versions]
    cases = [Case(label, estimates[place]) for place in range(len(plan.cards)) for label, estimates in priced]
    write_file(output, timeline_text(draw(cases)))
    print_line(f"{output}: {len(cases)} processes, one per device and version; open it at ui.perfetto.dev or chrome://tracing")
