"""`hwmodel recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwmodel.cli.inputs import check_output, checkpoint_model, unpruned_model
from hwmodel.cli.options import Block, ImageSize
from hwmodel.cli.printing import print_line, print_wide


def recipe(
    checkpoint: Annotated[str, typer.Argument(help="the pruned model's weights: .safetensors, or .pt as torch.save writes it")],
    *,
    model: Annotated[str, typer.Option("--model", help="timm name of the dense model")],
    output: Annotated[str, typer.Option("-o", "--output", help="recipe.toml; masks go into recipe.npz beside it")],
    block: Block = None,
    image_size: ImageSize = None,
) -> None:
    """Write down how a checkpoint is pruned, so that others can price it without its weights."""
    from hwmodel.extraction.whatif.found_recipes import recipe_of
    from hwmodel.extraction.whatif.recipe_files import save_recipe
    from hwmodel.reporting.findings_table import findings_table

    check_output(output, (".toml",))
    pruned = checkpoint_model(model, None, image_size, None, checkpoint=checkpoint, block=block)
    dense = unpruned_model(model, None, image_size, None, [])
    found = recipe_of(pruned, dense, source=f"found in {Path(checkpoint).name}", image_size=image_size)
    save_recipe(found, output)
    print_wide(findings_table(pruned))
    print_line(f"{len(found.layers)} layers and {len(found.encoder)} structural rules written to {output}")
