"""`hwmodel measure`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hwmodel.cli.inputs import check_output, traced_model
from hwmodel.cli.options import Attention, Batch, Dtype, ImageSize, RecipeFile
from hwmodel.cli.printing import print_line, progress
from hwmodel.errors import HwmodelError

POWER_S = 1.0


def measure(
    model: Annotated[str | None, typer.Argument(help="timm model name, or a trace file; its distinct operators are timed")] = None,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="measured.csv; a file that exists is resumed")],
    grid: Annotated[str | None, typer.Option("--grid", help='products, "m=197,394 k=192 n=192:768:192 batch=1"')] = None,
    whole: Annotated[bool, typer.Option("--whole", help="time the whole model as well")] = False,
    batch: Batch = None,
    dtype: Dtype = None,
    image_size: ImageSize = None,
    recipe: RecipeFile = None,
    attention: Attention = "source",
    device: Annotated[str | None, typer.Option("--device", help="the card of this machine; rows are kept under its name")] = None,
    on: Annotated[str | None, typer.Option("--on", help="cpu, cuda or cuda:1 (default: CUDA where there is one)")] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="CUDA only: graph (replayed; the default) or events (L2 flushed)")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, max=60, help="time spent on each operator")] = 0.3,
    power: Annotated[
        float | None,
        typer.Option("--power", min=0, max=60, help="CUDA only: seconds of steady loop for power by NVML, 0: none (default: 1)"),
    ] = None,
) -> None:
    """Time operators on the machine at hand: each is kept as soon as it is done, and a rerun goes on where this one stopped."""
    from hwmodel.backends.cards import load_card
    from hwmodel.backends.estimates import check_choices
    from hwmodel.validation.measuring.machines import machine
    from hwmodel.validation.measuring.session import measure as run
    from hwmodel.validation.measuring.tasks import tasks_of_grid, tasks_of_trace, whole_model

    check_output(output, (".csv",))
    check_choices(attention=attention)
    card = None if device is None else load_card(device)
    traced = None if model is None else traced_model(model, batch, image_size, dtype, recipe)
    if traced is None and grid is None:
        raise HwmodelError("nothing to measure: give a model, a trace file, or --grid")
    if whole and (traced is None or recipe or traced.model != model):
        raise HwmodelError("--whole: only an unpruned model given by name can be run as a whole")
    tasks = [] if traced is None else tasks_of_trace(traced, dtype=dtype, attention_choice=attention)
    tasks += [] if grid is None else tasks_of_grid(grid, dtype=dtype or "fp32")
    if whole and traced is not None:
        tasks.append(whole_model(traced.model, batch=traced.batch, pixels=traced.input_shape[-1], dtype=dtype or "fp32"))
    for used in sorted({task.dtype for task in tasks}) if card else []:
        card.check_dtype(used)  # type: ignore[union-attr]
    with progress() as step:
        title = card.name if card else None
        timer = machine(on, protocol)
        if power and not timer.meters_power:
            raise HwmodelError(
                f"--power {power:g}: nothing measures power here; it needs an NVIDIA GPU, its driver and nvidia-ml-py"
            )
        power_s = POWER_S if power is None else power
        done = run(tasks, output, timer, title=title, seconds=seconds, power_s=power_s, progress=step)
    for reason in done.left_out:
        sys.stderr.write(f"hwmodel: left out: {reason}\n")
    counts = f"{done.measured} operators measured, {done.known} known before, {len(done.left_out)} left out"
    print_line(f"{counts}; {done.rows} rows in {output}")
