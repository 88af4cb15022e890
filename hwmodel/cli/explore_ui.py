"""`hwmodel explore-ui`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hwmodel.cli.printing import print_line, progress
from hwmodel.errors import HwmodelError

_DEFAULT_MODELS = ["deit_base_patch16_224", "deit_small_patch16_224", "deit_tiny_patch16_224"]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def explore_ui(
    models: Annotated[list[str] | None, typer.Argument(help="timm model names, or trace files (.json, .parquet)")] = None,
    *,
    device: Annotated[str, typer.Option("--device", help="the device to start with, a name or a card file")] = "vita",
    host: Annotated[
        str, typer.Option("--host", help="where to listen; anything else than this machine lets others in")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port to listen at; 0 takes a free one")] = 8050,
) -> None:
    """Serve a page on this machine that moves pruning and machine, and shows what each state costs."""
    try:
        from hwmodel.ui.server import serve
    except ModuleNotFoundError as error:
        if error.name not in {"dash", "flask", "werkzeug", "plotly"}:
            raise
        raise HwmodelError(f"the page needs {error.name}: pip install 'hwmodel[ui]'") from error
    from hwmodel.ui.workbench import Workbench

    bench = Workbench(tuple(dict.fromkeys(models or _DEFAULT_MODELS)), device)
    with progress() as step:
        for name in models or _DEFAULT_MODELS[:1]:
            step(f"reading {name}")
            bench.models.get(name)
    if host not in _LOOPBACK:
        sys.stderr.write(f"hwmodel: {host} can be reached from other machines: anyone there can open the page\n")
    try:
        serve(bench, host, port, lambda address: print_line(f"hwmodel explorer at {address} (Ctrl-C ends it)"))
    except KeyboardInterrupt:
        print_line("stopped")
