"""The command line. Each command parses, calls public functions and prints; bad input is one line and exit status 2."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from hwmodel.cli.allocate import allocate
from hwmodel.cli.calibrate import calibrate
from hwmodel.cli.cost_table import cost_table
from hwmodel.cli.devices import devices
from hwmodel.cli.diff import diff
from hwmodel.cli.estimate import estimate
from hwmodel.cli.explain import explain
from hwmodel.cli.explore import explore
from hwmodel.cli.explore_ui import explore_ui
from hwmodel.cli.export_scalesim import export_scalesim
from hwmodel.cli.measure import measure
from hwmodel.cli.printing import print_line
from hwmodel.cli.recipe import recipe
from hwmodel.cli.report import report
from hwmodel.cli.timeline import timeline
from hwmodel.cli.trace import trace
from hwmodel.cli.validate import validate
from hwmodel.errors import HwmodelError


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print_line(f"hwmodel {version('hwmodel')}")
        raise typer.Exit


app = typer.Typer(
    help="What does this pruned Vision Transformer really cost on that machine?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False
) -> None:
    """Show the commands where none is named."""


app.command("devices")(devices)
app.command("trace")(trace)
app.command("estimate")(estimate)
app.command("report")(report)
app.command("recipe")(recipe)
app.command("explain")(explain)
app.command("diff")(diff)
app.command("timeline")(timeline)
app.command("cost-table")(cost_table)
app.command("allocate")(allocate)
app.command("export-scalesim")(export_scalesim)
app.command("explore")(explore)
app.command("explore-ui")(explore_ui)
app.command("measure")(measure)
app.command("calibrate")(calibrate)
app.command("validate")(validate)

_OBJECTS = 50_000
"""Made between two searches for garbage."""
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of the parser's own errors (ClickException), which typer no longer exports under a public name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit status 0, 2 with one line for bad input, 1 for our own failures."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _rare_collections():
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


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage rarely: as often as Python does, it takes a seventh of `hwmodel report`, for the objects torch brings."""
    usual = gc.get_threshold()
    gc.set_threshold(_OBJECTS, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _fail(message: str) -> None:
    sys.stderr.write("hwmodel: error: " + " ".join(message.split()) + "\n")
    sys.exit(2)
