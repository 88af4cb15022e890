"""`hwmodel allocate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.cli.inputs import block_shape, check_output
from hwmodel.cli.options import (
    AsJson,
    Attention,
    Batch,
    Devices,
    Dtype,
    EnergyScope,
    ImageSize,
    Mode,
    Settings,
    SparseKernel,
    Workers,
)
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_json, print_line, print_wide, progress
from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwmodel.allocation.loop.outcome import ClosedLoop


def allocate(
    model: Annotated[str, typer.Argument(help="timm model name")],
    *,
    device: Devices,
    budget: Annotated[
        list[str], typer.Option("--budget", help="flops=0.5, flops-total=60%, latency=2ms, energy=0.6, power=10W; may be repeated")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="recipe.toml, or a folder to write it into; the rest goes beside it")
    ],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="the model's weights (.safetensors, .pt); else random")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="folder of images, a sub-folder per class; else random images")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="images to calibrate on")] = 64,
    block: Annotated[str, typer.Option("--block", help="OUTxIN of the weight blocks")] = "32x32",
    layers: Annotated[list[str] | None, typer.Option("--layers", help="glob of layer names; may be repeated")] = None,
    solver: Annotated[str, typer.Option("--solver", help="lagrangian, exact, knapsack or paper")] = "lagrangian",
    heads: Annotated[str | None, typer.Option("--heads", help="also remove heads: part to keep (0.75) or loss=0.02")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="also drop patch tokens: part kept per stage (0.7) or loss=0.02")
    ] = None,
    floor: Annotated[list[str] | None, typer.Option("--floor", help="least part of blocks a layer keeps: 0.1, or GLOB=0.1")] = None,
    cap: Annotated[list[str] | None, typer.Option("--cap", help="largest part of blocks a layer keeps: 0.9, or GLOB=0.9")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="of the devices, for a budget on their mean: 0.7,0.3")] = None,
    delta: Annotated[str | None, typer.Option("--delta", help="distortion: gauss-newton, squared or paper")] = None,
    score: Annotated[str | None, typer.Option("--score", help="block order: gauss-newton, fisher, taylor or magnitude")] = None,
    probes: Annotated[int, typer.Option("--probes", min=1, help="random output combinations per image")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="of pruning, reading back and rebuilding costs, at most")] = 4,
    steps: Annotated[int, typer.Option("--steps", min=1, help="towards the budget, sensitivities made anew at each")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="of random weights, images and probes")] = 0,
    save_model: Annotated[str | None, typer.Option("--save-model", help="write the pruned weights, pruned.safetensors")] = None,
    report: Annotated[bool, typer.Option(help="write the report")] = True,
    static: Annotated[bool, typer.Option("--static", help="a report with figures as SVG only")] = False,
    batch: Batch = None,
    dtype: Dtype = None,
    mode: Mode = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    attention: Attention = "source",
    sparse_kernel: SparseKernel = "auto",
    scope: EnergyScope = "board",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model so that it meets a budget on real machines, and check what its saved and reloaded checkpoint costs."""
    from hwmodel.allocation.loop.allocate import allocate as run

    files = _Files.of(output, save_model)
    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    forms: dict[str, Any] = {"delta": delta, "score": score}
    with progress() as step:
        found = run(
            model, data, device=[partial(plan.estimate, place=place) for place in range(len(plan.cards))], budget=budget,
            block=block_shape(block) or (32, 32), layers=layers, heads=heads, tokens=tokens, checkpoint=checkpoint,
            samples=samples, **forms, probes=probes, seed=seed, batch=batch or 1, image_size=image_size,
            folder=files.recipe.parent, progress=step, solver=solver, floor=_bounds("--floor", floor), cap=_bounds("--cap", cap),
            weights=_weights(weights), rounds=rounds, steps=steps,
        )  # fmt: skip
        if report:
            _write_report(found, plan, files.report, step, static=static)
        found.save(files.recipe, weights=files.weights, log=files.log)
    written = [*([files.weights] if files.weights else []), *([files.report] if report else []), files.log, files.recipe]
    _warn(found)
    if as_json:
        print_json(found.document() | {"files": [str(path) for path in written]})
        return
    _tell(found)
    masks = f", masks in {files.recipe.with_suffix('.npz').name}" if found.masks else ""
    print_line(f"written: {', '.join(map(str, written))}{masks}")


@dataclass(frozen=True)
class _Files:
    """Where everything goes, checked before any long work."""

    recipe: Path
    weights: Path | None

    @classmethod
    def of(cls, output: str, save_model: str | None) -> _Files:
        recipe = Path(output) / "recipe.toml" if Path(output).is_dir() else Path(output)
        files = cls(recipe, None if save_model is None else Path(save_model))
        check_output(str(recipe), (".toml",))
        for path in (recipe.with_suffix(".npz"), files.report, files.log):
            check_output(str(path), (path.suffix,))
        if save_model is not None:
            check_output(save_model, (".safetensors",))
        return files

    @property
    def report(self) -> Path:
        return self.recipe.with_suffix(".html")

    @property
    def log(self) -> Path:
        return self.recipe.with_suffix(".log.jsonl")


def _bounds(option: str, texts: Sequence[str] | None) -> dict[str, float] | None:
    """``0.1`` for all layers, ``GLOB=0.1`` for some; later ones win."""
    found: dict[str, float] = {}
    for text in texts or []:
        pattern, equals, value = text.rpartition("=")
        found[pattern if equals else "*"] = _number(option, text, value)
    return found or None


def _weights(text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(_number("--weights", text, part) for part in text.split(","))


def _number(option: str, text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise HwmodelError(f"{option} {text}: expected a number, found {value!r}") from error


def _write_report(found: ClosedLoop, plan: Plan, path: Path, step: Callable[[str], None], *, static: bool) -> None:
    """Dense beside pruned, with kept density by layer and mask pictures (the LSP paper's Figures 3 and 4)."""
    from hwmodel.reporting.report import Variant, write_report

    dense = found.origin.structure
    variants = [
        Variant(label="dense", trace=dense, estimates=tuple(plan.estimates(dense))),
        Variant(label=found.goal.told, trace=found.trace, estimates=found.estimates),
    ]
    write_report(variants, path, step, static=static)


def _warn(found: ClosedLoop) -> None:
    """What a reader must not overlook, on standard error."""
    notes = []
    if found.synthetic:
        notes.append(
            "the sensitivities are of random weights or images: costs are real, but WHICH blocks go says nothing about accuracy"
        )
    if not found.closing.converged:
        worst = max(found.checks, key=lambda check: check.gap)
        notes.append(
            f"not within {found.goal.tolerance:.0%} after {len(found.closing.rounds)} rounds: {worst.name} is off by "
            f"{worst.gap:.1%}, budgets are exceeded by {found.closing.chosen.excess:.1%}"
        )
    if not found.settled:
        notes.append(f"heads and tokens still moved after {len(found.turns)} turns; the one whose blocks distort least counts")
    for note in notes:
        sys.stderr.write(f"hwmodel: warning: {note}\n")


def _tell(found: ClosedLoop) -> None:
    """Promised beside delivered, layers, then budgets and the gap to the least possible."""
    from hwmodel.reporting.tables import new_table, plain_row
    from hwmodel.reporting.units import percent, si

    costs = new_table(
        "Promised before pruning, delivered by the reloaded checkpoint",
        ["cost", "dense", "promised", "delivered", "apart", "source"],
        left=1,
    )
    for check in found.checks:
        values = (si(value, check.unit, 4) for value in (check.dense, check.promised, check.delivered))
        plain_row(costs, check.name, *values, percent(check.gap, 2), check.source)
    print_wide(costs, _layers(found))
    if found.turn.structure.heads or found.turn.structure.tokens:
        print_line(str(found.turn.structure))
    print_line(str(found.allocation))


def _layers(found: ClosedLoop) -> Any:
    """Kept blocks, distortion, and how far Eq. 7 is from each device's energy."""
    from hwmodel.reporting.tables import new_table, plain_row
    from hwmodel.reporting.units import percent, significant

    labels = [f"Eq. 7 off by, {machine.label}" for machine in found.closing.machines]
    table = new_table("Layers", ["layer", "blocks", "kept", "distortion", *labels], left=1)
    for name, row in found.allocation.frame().iterrows():
        shown = (percent(told[str(name)].largest if name in told else None, 1) for told in found.turn.departures)
        plain_row(table, str(name), f"{row.blocks:.0f}", percent(row.density, 1), significant(row.delta), *shown)
    return table
