"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="timm model name, or a trace file (.json, .parquet)")]
OptionalModel = Annotated[str | None, typer.Argument(help="timm model name, or a trace file (.json, .parquet)")]
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
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="processes at once: SCALE-Sim, figures (default: the cores)")]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="the model's weights, read for their sparsity: .safetensors, .pt")
]
Block = Annotated[str | None, typer.Option("--block", help="OUTxIN of the weight blocks pruned whole (default: detected)")]
DropDead = Annotated[bool, typer.Option("--drop-dead", help="drop what the masks make useless: heads, units, branches")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print CSV, one row per operator")]
