"""`hwmodel export-scalesim`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.inputs import setting, traced_model
from hwmodel.cli.options import Batch, ImageSize, Model, RecipeFile, Settings
from hwmodel.cli.printing import print_line


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

    overrides = dict(setting(text) for text in settings or [])
    check_export(output, device=device, overrides=overrides, method=method)
    lines = export(traced_model(model, batch, image_size, None, recipe), output, device=device, overrides=overrides, method=method)
    cycles = sum(line.runs * line.cycles for line in lines)
    print_line(
        f"{len(FILES)} files written to {output}: {len({line.product for line in lines})} distinct products, {cycles} cycles"
    )
