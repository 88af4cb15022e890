"""`hwmodel cost-table`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hwmodel.cli.inputs import check_output, setting, traced_model
from hwmodel.cli.options import Attention, EnergyScope, ImageSize, Mode, Model, RecipeFile, Settings, SparseKernel
from hwmodel.cli.printing import print_line, print_wide
from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from hwmodel.exploration.costs import CostTable
    from hwmodel.ir.trace import Trace

_SHOWN = 5
"""Densities in the table that is printed."""
_MOST_VALUES = 100_000


def cost_table(
    model: Model,
    *,
    device: Annotated[str, typer.Option("--device", help="device name or card file")],
    density: Annotated[str, typer.Option("--density", help="kept fractions: 0:1:0.05 (ends included), or 0.25,0.5")],
    output: Annotated[str, typer.Option("-o", "--output", help="costs.parquet, .csv or .json")],
    block: Annotated[str, typer.Option("--block", help="weight blocks OUTxIN, such as 32x32,64x64")] = "32x32",
    tokens: Annotated[str | None, typer.Option("--tokens", help="patch tokens that enter every encoder block: 96:196:20")] = None,
    heads: Annotated[str | None, typer.Option("--heads", help="heads of every encoder block: 6,9,12")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="images per forward pass: 1,8,64 (default 1)")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="number formats: fp16,int8 (default: the card's)")] = None,
    layers: Annotated[list[str] | None, typer.Option("--layers", help="glob of layer names; may be repeated")] = None,
    expect: Annotated[str, typer.Option("--expect", help="how blocks lie: uniform, row-clustered or tile-clustered")] = "uniform",
    mode: Mode = None,
    recipe: RecipeFile = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    attention: Attention = "source",
    sparse_kernel: SparseKernel = "auto",
    scope: EnergyScope = "board",
    nested: Annotated[
        str | None, typer.Option("--nested", help="write {layer: {WIDTH: cost}} as JSON: kept_blocks, density, tokens, heads")
    ] = None,
    quantity: Annotated[str, typer.Option("--quantity", help="the cost that --nested writes")] = "latency_s",
) -> None:
    """Tabulate what each layer and encoder block costs on a device, over density, block shape, tokens, heads, batch and dtype."""
    from hwmodel.backends.cards import load_card
    from hwmodel.exploration.cost_files import ENDINGS, save_cost_table, save_nested
    from hwmodel.exploration.cost_table import cost_table as tabulate

    check_output(output, ENDINGS if nested is None else (".json",))
    card = load_card(device)
    axes: dict[str, Any] = {
        "density": numbers("--density", density),
        "block": shapes(block),
        "tokens": None if tokens is None else counts("--tokens", tokens),
        "heads": None if heads is None else counts("--heads", heads),
        "dtype": None if dtype is None else [name.strip() for name in dtype.split(",") if name.strip()],
    }
    batches = [None] if batch is None else counts("--batch", batch)
    traces: list[Trace] = [traced_model(model, one, image_size, None, recipe) for one in batches]
    table = tabulate(
        traces, device=card, layers=layers or "*", mode=mode, overrides=dict(map(setting, settings or [])),
        expect=expect, attention=attention, sparse_kernel=sparse_kernel, scope=scope, **axes,  # type: ignore[arg-type]
    )  # fmt: skip
    if nested is None:
        save_cost_table(table, output)
    else:
        save_nested(table.nested(quantity, width=nested), output)  # type: ignore[arg-type]
    _tell(table, output)


def numbers(option: str, text: str) -> list[float]:
    """``FROM:TO:STEP``, both ends included, or values separated by commas; the two may be mixed."""
    try:
        return [value for part in text.split(",") for value in _span([float(end) for end in part.split(":")])]
    except ValueError as error:
        raise HwmodelError(f"{option} {text}: expected values such as 0.25,0.5 or a range FROM:TO:STEP such as 0:1:0.05") from error


def _span(ends: list[float]) -> list[float]:
    """The values of one part; raises ValueError for anything but a value or an ascending range."""
    if len(ends) == 1:
        return ends
    first, last, step = ends
    if not (first <= last and step > 0 and (last - first) / step < _MOST_VALUES):
        raise ValueError
    return [round(first + step * number, 9) for number in range(int((last - first) / step + 1e-9) + 1)]


def counts(option: str, text: str) -> list[int]:
    """:func:`numbers` that are whole and at least 1."""
    found = numbers(option, text)
    if any(value < 1 or value != int(value) for value in found):
        raise HwmodelError(f"{option} {text}: expected whole numbers of at least 1")
    return [int(value) for value in found]


def shapes(text: str) -> list[tuple[int, int]]:
    """``32x32,64x64`` as (out, in) pairs."""
    try:
        return [(int(out), int(depth)) for out, depth in (part.split("x") for part in text.split(","))]
    except ValueError as error:
        raise HwmodelError(f"--block {text}: expected OUTxIN, or several separated by commas, such as 32x32,64x64") from error


def _tell(table: CostTable, output: str) -> None:
    """Latency by role at some densities and the break-even, then how far layers may be added up."""
    print_wide(_roles(table))
    apart = table.interaction()
    shares = (apart.latency_s.abs() / apart.model_latency_s).fillna(0.0).groupby(apart.density).max()
    worst = f", at most {shares.max():.1%} at density {shares.idxmax():g}" if shares.max() >= 5e-4 else ""
    print_line(f"layers and the rest add up to the model's latency: median error {shares.median():.1%}{worst}")
    size = f"{len(table.rows)} rows, {len(table.layers)} layers, {len(table.encoder_blocks)} encoder blocks"
    print_line(f"{output}: {size}; latency {table.rows.latency_fidelity.iloc[0]}, energy {table.rows.energy_fidelity.iloc[0]}")


def _roles(table: CostTable) -> Any:
    """Latency of all layers of a role at some densities, one row per role and point of the other axes."""
    from hwmodel.exploration.costs import plain_values
    from hwmodel.reporting.tables import new_table, plain_row
    from hwmodel.reporting.units import si

    about, rows = table.about, table.rows[table.rows.group == "layer"]
    known = np.sort(rows.density.unique())
    densities = known[np.unique(np.linspace(0, len(known) - 1, _SHOWN).round().astype(int))]
    title = f"{about['model']} on {about['device']}, {about['mode']}; latency of all layers of a role, by density"
    columns = ["role", "dtype", "block", "batch", "tokens", "heads", "layers", *(f"{one:g}" for one in densities), "break-even"]
    shown = new_table(title, columns, left=2)
    keys = ["role", "dtype", "block_out", "block_in", "batch", "tokens", "heads"]
    for _, group in rows.groupby(keys, sort=False, dropna=False):
        by_density = group.groupby("density").latency_s.sum()
        role, dtype, out, depth, *axes = (plain_values(group[key].head(1))[0] for key in keys)
        point = (f"{out}x{depth}", *("-" if value is None else str(value) for value in axes))
        times = (si(float(by_density[density]), "s") for density in densities)
        plain_row(shown, role or "-", dtype, *point, str(group.name.nunique()), *times, _limits(group.break_even_density))
    return shown


def _limits(densities: Any) -> str:
    """The break-even densities of some layers: one, or the least and the largest."""
    from hwmodel.reporting.units import percent

    return " to ".join(dict.fromkeys(percent(end) for end in (densities.min(), densities.max())))
