"""The command line. Each command parses, calls public functions and prints; bad input is one line and exit status 2."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import HwmodelError, suggestion

if TYPE_CHECKING:
    from hwmodel.backends.cards import Card
    from hwmodel.backends.estimates import Estimate
    from hwmodel.ir.trace import Trace

app = typer.Typer(
    help="What does this pruned Vision Transformer really cost on that machine?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(help="timm model name, or a trace file (.json, .parquet)")]
Devices = Annotated[str, typer.Option("--device", help="device names or card files, separated by commas")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="images per forward pass (default 1)")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="image height and width in pixels")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="number format: fp32, tf32, fp16, bf16, amp-fp16, amp-bf16, int8, int4")]
Mode = Annotated[str | None, typer.Option("--mode", help="execution and power mode, for all devices or as DEVICE=MODE,...")]
RecipeFile = Annotated[str | None, typer.Option("--recipe", help="how the model is pruned: a shipped recipe's name or a file")]
RecipeFiles = Annotated[list[str] | None, typer.Option("--recipe", help="how the model is pruned; may be repeated")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE or DEVICE:FIELD=VALUE replaces a card's field")]
Attention = Annotated[str, typer.Option("--attention", help="source, math or fused")]
SparseKernel = Annotated[str, typer.Option("--sparse-kernel", help="auto or always")]
EnergyScope = Annotated[str, typer.Option("--scope", help="energy of the board (idle included); dynamic and lsp subtract idle")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="SCALE-Sim processes at once (default: the cores)")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print CSV, one row per operator")]


@app.callback()
def _root() -> None:
    """Show the commands where none is named."""


@app.command()
def devices(*, as_json: AsJson = False) -> None:
    """List the machines that hwmodel knows."""
    from hwmodel.backends.cards import listed_cards

    cards = listed_cards()
    if as_json:
        _print_json([_device_summary(card) for card in cards])
        return
    from hwmodel.reporting.tables import devices_table

    _print_table(devices_table(cards))


@app.command()
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
        _check_output(output, (".json", ".parquet"))
    traced = _traced(model, batch, image_size, dtype, recipe)
    if output is not None:
        save_trace(traced, output)
    if as_json:
        totals = {"macs": traced.macs, "kept_macs": traced.kept_macs}
        document = trace_to_document(traced) | totals
        for row, operator in zip(document["operators"], traced.operators, strict=True):
            row |= {"macs": operator.macs, "kept_macs": operator.kept_macs}
        _print_json(document)
        return
    from hwmodel.reporting.tables import trace_table

    _print_table(trace_table(traced))


@app.command()
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
    plan = _Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    traced = _traced(model, batch, image_size, dtype, recipe)
    found = plan.estimates(traced)
    if as_json:
        _print_json([one.document() for one in found])
    elif as_csv:
        from hwmodel.reporting.report import csv_text

        sys.stdout.write(csv_text(found))
    else:
        from hwmodel.reporting.tables import estimates_table

        _print_table(estimates_table(found))


@app.command()
def report(
    model: Model,
    *,
    device: Devices,
    output: Annotated[str, typer.Option("-o", "--output", help="the HTML file to write")],
    recipe: RecipeFiles = None,
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

    _check_output(output, (".html", ".htm"))
    plan = _Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    with _progress() as step:
        step(f"reading {model}")
        dense = _unpruned(model, batch, image_size, dtype, recipe or [])
        variants = []
        for name in [None, *(recipe or [])]:
            label = "dense" if name is None else Path(name).stem
            pruned = dense if name is None else _pruned(dense, name)
            step(f"pricing {label} on {len(plan.cards)} devices")
            variants.append(Variant(label=label, trace=pruned, estimates=tuple(plan.estimates(pruned))))
        write_report(variants, output, progress=step)
    labels = [variant.label for variant in variants for _ in variant.estimates]
    _print_table(estimates_table([one for variant in variants for one in variant.estimates], labels=labels))
    _print_line(f"report written to {output}")


@app.command("export-scalesim")
def export_scalesim(
    model: Model,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="the folder to write into; it must exist")],
    device: Annotated[str, typer.Option("--device", help="a card with a systolic array")] = "tpu-v3",
    recipe: RecipeFile = None,
    batch: Batch = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    method: Annotated[str, typer.Option("--method", help="how kept tiles are written: joined, columns or tiles")] = "joined",
) -> None:
    """Write the files with which SCALE-Sim's own command line gives the cycles of modes systolic and scale-sim."""
    from hwmodel.backends.scale_sim_export import FILES, check_export, export

    overrides = dict(_setting(text) for text in settings or [])
    check_export(output, device=device, overrides=overrides, method=method)
    lines = export(_traced(model, batch, image_size, None, recipe), output, device=device, overrides=overrides, method=method)
    cycles = sum(line.runs * line.cycles for line in lines)
    _print_line(
        f"{len(FILES)} files written to {output}: {len({line.product for line in lines})} distinct products, {cycles} cycles"
    )


@app.command()
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
    protocol: Annotated[str, typer.Option("--protocol", help="CUDA: graph (replayed) or events (L2 flushed)")] = "graph",
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, max=60, help="time spent on each operator")] = 0.3,
    power: Annotated[
        float, typer.Option("--power", min=0, max=60, help="CUDA: seconds of steady loop for power by NVML, 0: none")
    ] = 1.0,
) -> None:
    """Time operators on the machine at hand: each is kept as soon as it is done, and a rerun goes on where this one stopped."""
    from hwmodel.backends.cards import load_card
    from hwmodel.backends.estimates import check_choices
    from hwmodel.validation.measuring.machines import machine
    from hwmodel.validation.measuring.session import measure as run
    from hwmodel.validation.measuring.tasks import tasks_of_grid, tasks_of_trace, whole_model

    _check_output(output, (".csv",))
    check_choices(attention=attention)
    card = None if device is None else load_card(device)
    traced = None if model is None else _traced(model, batch, image_size, dtype, recipe)
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
    with _progress() as step:
        title = card.name if card else None
        done = run(tasks, output, machine(on, protocol), title=title, seconds=seconds, power_s=power, progress=step)
    for reason in done.left_out:
        sys.stderr.write(f"hwmodel: left out: {reason}\n")
    counts = f"{done.measured} operators measured, {done.known} known before, {len(done.left_out)} left out"
    _print_line(f"{counts}; {done.rows} rows in {output}")


@app.command()
def calibrate(
    measured: Annotated[str, typer.Argument(help="a file that `hwmodel measure` wrote, or one in its layout")],
    *,
    device: Annotated[str, typer.Option("--device", help="the card to start from: a name or a file")],
    output: Annotated[str, typer.Option("-o", "--output", help="the new card, NAME.toml")],
    fields: Annotated[
        str | None, typer.Option("--fit", help="FIELD or FIELD.KEY,... (default: what is calibrated or assumed)")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="mode the rows were taken in")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="only rows in this number format")] = None,
    rows_of: Annotated[str | None, typer.Option("--rows-of", help="only rows of this device, where the file has several")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a card's free constants to measured operators and write a new card, with its error on rows that were held out."""
    from hwmodel.backends.cards import load_card
    from hwmodel.validation.calibration.calibrate import calibrate as run
    from hwmodel.validation.calibration.calibrate import check_card_output, name_from, write_card

    check_card_output(output)
    card = load_card(device)
    names = [name.strip() for name in (fields or "").split(",") if name.strip()]
    found = run(measured, card, name=name_from(output, card), mode=mode, fields=names, dtype=dtype, device=rows_of)
    write_card(found, output)
    if as_json:
        _print_json(found.document())
        return
    from hwmodel.validation.tables import fields_table, sides_table

    _print_wide(fields_table(found), sides_table(found))
    _print_line(f"card {found.card.name} written to {output}")


@app.command()
def validate(
    *,
    device: Annotated[str | None, typer.Option("--device", help="device names, separated by commas (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict every measured row that hwmodel ships, next to the naive roofline and to a fitted two-parameter baseline."""
    from hwmodel.backends.cards import load_card, shipped_cards
    from hwmodel.validation.comparison import compare

    names = [name.strip() for name in (device or "").split(",") if name.strip()]
    found = compare([load_card(name) for name in names] if names else list(shipped_cards().values()))
    if as_json:
        _print_json(found.document())
        return
    from hwmodel.validation.tables import groups_table, left_out_table, scores_table

    _print_wide(groups_table(found), scores_table(found), left_out_table(found))
    if not (found.groups or found.scores or found.left_out):
        _print_line(f"no measured rows are shipped for {device}")


class _Plan:
    """What `estimate` and `report` were asked to price on, checked before any long work."""

    def __init__(
        self, device: str, mode: str | None, settings: Sequence[str] | None, dtype: str | None, workers: int | None, **choices: str
    ) -> None:
        from hwmodel.backends.cards import load_card
        from hwmodel.backends.estimates import check_choices

        names = [name.strip() for name in device.split(",") if name.strip()]
        if not names:
            raise HwmodelError("--device: expected at least one device; `hwmodel devices` lists them")
        self.cards = [load_card(name) for name in names]
        self._asked = dict(zip(names, self.cards, strict=True))
        self._modes = self._by_device("--mode", (mode or "").split(","), "=")
        self._overrides = self._by_device("--set", settings or [], ":")
        self._dtype, self._workers, self._choices = dtype, workers, choices
        check_choices(**choices)
        for card in self.cards:
            card.split_mode(self._mode(card))
            card.resolve(self._mode(card), self._fields(card))
            _check_single(card, self._fields(card))
            if dtype is not None:
                card.check_dtype(dtype)

    def _by_device(self, option: str, texts: Sequence[str], mark: str) -> list[tuple[Card | None, str]]:
        """Split "DEVICE<mark>TEXT" where a device is named; None stands for every device."""
        found: list[tuple[Card | None, str]] = []
        for text in filter(None, (text.strip() for text in texts)):
            name, marked, rest = text.partition(mark)
            if marked and name not in self._asked and "=" not in name:
                raise HwmodelError(f"{option} {text}: {name!r} is not among the devices; {suggestion(name, self._asked)}")
            found.append((self._asked[name], rest) if marked and name in self._asked else (None, text))
        return found

    def _mode(self, card: Card) -> str | None:
        chosen = [mode for owner, mode in self._modes if owner is None or owner is card]
        return chosen[-1] if chosen else None

    def _fields(self, card: Card) -> dict[str, Any]:
        return dict(_setting(text) for owner, text in self._overrides if owner is None or owner is card)

    def estimates(self, traced: Trace) -> list[Estimate]:
        """One estimate per device, in the order asked for."""
        from hwmodel.backends.estimates import estimate as price

        with _simulation_progress(self._workers):
            return [
                price(traced, device=card, mode=self._mode(card), dtype=self._dtype, overrides=self._fields(card), **self._choices)  # type: ignore[arg-type]
                for card in self.cards
            ]


@contextmanager
def _simulation_progress(workers: int | None) -> Iterator[None]:
    """A progress bar on standard error while SCALE-Sim runs; none where everything comes from closed forms or the cache."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from hwmodel.backends import scale_sim

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("SCALE-Sim", start=False, visible=False, total=None)

    def show(done: int, total: int) -> None:
        if not bar.tasks[task].visible:
            bar.start()
            bar.start_task(task)
        bar.update(task, completed=done, total=total, visible=True)

    try:
        with scale_sim.settings(workers=workers, progress=show):
            yield
    finally:
        if bar.live.is_started:
            bar.stop()


def _check_single(card: Card, fields: dict[str, Any]) -> None:
    """Refuse a list where the card has one number: that is a sweep, which has no single table to print."""
    for field, value in fields.items():
        if isinstance(value, list) and not isinstance(card.values().get(field), list):
            raise HwmodelError(f"--set {field}={value}: expected one value; run the command once for each")


def _setting(text: str) -> tuple[str, Any]:
    """``FIELD=VALUE`` with the value as TOML reads it, or as text where TOML cannot ("64x64")."""
    field, equals, value = text.partition("=")
    if not equals or not field or not value:
        raise HwmodelError(f"--set {text}: expected FIELD=VALUE, for example clock_hz=1.2e9")
    try:
        return field, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return field, value


def _traced(model: str, batch: int | None, image_size: int | None, dtype: str | None, recipe: str | None) -> Trace:
    """Extract a model, or load a saved trace, and prune it where a recipe is given."""
    dense = _unpruned(model, batch, image_size, dtype, [] if recipe is None else [recipe])
    return dense if recipe is None else _pruned(dense, recipe)


def _unpruned(model: str, batch: int | None, image_size: int | None, dtype: str | None, recipes: Sequence[str]) -> Trace:
    """Extract a model, at the image size its recipes ask for where none is given, or load a saved trace as it is."""
    from hwmodel.ir.storage import is_trace_file, load_trace

    if not is_trace_file(model):
        from hwmodel.extraction.models import trace as extract

        return extract(model, batch=batch or 1, image_size=image_size or _image_size(recipes), dtype=dtype)
    traced = load_trace(model)
    if batch not in (None, traced.batch):
        raise HwmodelError(f"{model}: traced at batch {traced.batch}, not {batch}; trace the model again with --batch {batch}")
    if image_size is not None:
        raise HwmodelError(f"{model}: a saved trace has its own image size; trace the model again with --image-size {image_size}")
    return traced if dtype is None else traced.replace(dtype=dtype)


def _image_size(recipes: Sequence[str]) -> int | None:
    """The image size that the recipes ask for, None where none does."""
    from hwmodel.extraction.recipe_files import load_recipe

    asked = {size for recipe in recipes if (size := load_recipe(recipe).image_size) is not None}
    if len(asked) > 1:
        listed = ", ".join(str(size) for size in sorted(asked))
        raise HwmodelError(f"--recipe: the recipes are for different image sizes ({listed}); report them apart")
    return asked.pop() if asked else None


def _pruned(traced: Trace, recipe: str) -> Trace:
    from hwmodel.extraction.pruning import prune

    return prune(traced, recipe)


def _device_summary(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "aliases": card.aliases,
        "title": card.title,
        "backend": card.backend,
        "modes": list(card.fidelity),
        "power_modes": list(card.power_modes),
        "default_mode": card.default_mode,
        "dtypes": card.dtypes,
        "default_dtype": card.default_dtype,
        "scores": [score.model_dump() for score in card.scores],
    }


def _check_output(path: str, endings: tuple[str, ...]) -> None:
    from hwmodel.files import check_writable

    if Path(path).suffix not in endings:
        raise HwmodelError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    check_writable(path)


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


def _print_wide(*tables: Any) -> None:
    """Tables of many columns: as wide as they need to be where nobody watches, and where the terminal is wide enough."""
    from rich.console import Console

    console = Console()
    for table in tables:
        if table.row_count:
            (console if console.is_terminal else Console(width=200)).print(table)


def _print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


class _progress:  # noqa: N801  (used like a function)
    """Tell on standard error what is being done, as a spinner on a terminal and as plain lines elsewhere."""

    def __enter__(self) -> Callable[[str], None]:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._step

    def _step(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(f"hwmodel: {text}", highlight=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of the parser's own errors (ClickException), which typer no longer exports under a public name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit status 0, 2 with one line for bad input, 1 for our own failures."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app).main(args=given or ["--help"], prog_name="hwmodel", standalone_mode=False)
    except _UsageError as error:
        _fail(error.format_message())  # type: ignore[attr-defined]
    except HwmodelError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'output'}: {error.strerror}")


def _fail(message: str) -> None:
    sys.stderr.write("hwmodel: error: " + " ".join(message.split()) + "\n")
    sys.exit(2)
