"""Closing the loop on real data: does knowing what a machine's energy really is make a pruned ViT better? Negative answers too.

A small ViT on scikit-learn's digits, with all tokens or with a schedule that drops them, is pruned in weight blocks to equal
FLOPs by several solvers, and to equal *energy* on our four machines (scaled to the model, see ``loop_machines``) in three ways:

* ``FLOPs-aware``: blocks chosen as if energy were FLOPs, with the largest FLOPs budget whose true energy meets the energy budget;
* ``power term``: the same block-by-block ranking, allocated on the machine's own energy curves;
* ``whole units``: where the machine skips units larger than a block, also ranked so that whole units empty.

Then 3 epochs of fine-tuning under the masks. Budgets are shares of what the linear layers of the encoder take when dense (their
weights are all that is pruned). Every energy is a true mask priced by a backend.

    python analysis/loop_digits.py -o loop_digits.svg --results loop_digits.csv
    python analysis/loop_digits.py --data imagenet --model deit_small_patch16_224 --checkpoint deit_small.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, get_args

import digits_vit
import loop_machines
import loop_results
import typer
from loop_machines import Choices, Priced, Site
from loop_results import AWARE, EQUAL_FLOPS, FLOPS, LAGRANGIAN, POWER, Row
from loop_subjects import SAMPLES, Case, Masks, Subject, digest, digits_subject, own_subject

from hwmodel.allocation.loop.curve_layers import prunable
from hwmodel.allocation.problem import Allocation, InfeasibleError
from hwmodel.errors import HwmodelError
from hwmodel.files import check_writable, write_file
from hwmodel.pruning.blocks.curves import Curves
from hwmodel.pruning.blocks.masking import apply_masks

BLOCK, SHARES = 8, (0.5, 0.35, 0.25)
OTHER_BLOCKS, OTHER_SHARES = (4, 16), (0.35, 0.25)
TOKEN_SITES = ("ViTA 8x8", "TPU 16x16")
"""Machines on which the token-pruned variant is priced too."""


def digits_cases() -> list[Case]:
    """Block sizes with budgets."""
    return [*((BLOCK, share) for share in SHARES), *((block, share) for block in OTHER_BLOCKS for share in OTHER_SHARES)]


def equal_energy(subject: Subject, site: Site, cases: Sequence[Case], curves: Mapping[int, Curves]) -> Iterator[Row]:
    """Every way to meet the energy budgets of one machine."""
    priced = Priced(site, subject.structure(site.batch, site.widen))
    for block in dict.fromkeys(block for block, _ in cases):
        single = priced.choices(curves[block], whole_units=False)
        units = priced.choices(curves[block], whole_units=True) if priced.coarse(block) else None
        for case in (case for case in cases if case[0] == block):
            for method, choose in _methods(single, units, case[1]).items():
                try:
                    chosen = choose()
                except InfeasibleError as error:
                    yield subject.row(site.name, case, method, reason=str(error))
                    continue
                yield subject.row(site.name, case, method, masks=priced.masks(chosen), energy=priced.spent(chosen))


def _methods(single: Choices, units: Choices | None, share: float) -> dict[str, Callable[[], Allocation]]:
    found = {FLOPS: lambda: single.by_flops(share), POWER: lambda: single.within(single.energy, share)}
    return found if units is None else found | {AWARE: lambda: units.within(units.energy, share)}


def equal_flops(subject: Subject, cases: Sequence[Case], curves: Mapping[int, Curves]) -> Iterator[Row]:
    """Every solver at equal FLOPs, on Gauss-Newton distortions; the paper's also on its own."""
    site = loop_machines.proportional_site(min(curves))
    priced = Priced(site, subject.structure(site.batch, site.widen))
    printed = subject.curves(list(curves), of_loss=True)
    for block, share in cases:
        choices, its_own = (priced.choices(one[block], whole_units=False) for one in (curves, printed))
        for method, choose in _solvers(choices, its_own, share).items():
            try:
                yield subject.row(EQUAL_FLOPS, (block, share), method, masks=choose())
            except InfeasibleError as error:
                yield subject.row(EQUAL_FLOPS, (block, share), method, reason=str(error))


def _solvers(choices: Choices, its_own: Choices, share: float) -> dict[str, Callable[[], Masks]]:
    return {
        "uniform": lambda: choices.uniform(share),
        "paper, its own distortion": lambda: its_own.within(its_own.flops, share, "paper").masks,
        "paper": lambda: choices.within(choices.flops, share, "paper").masks,
        "paper without power": lambda: choices.within(choices.flops, share, "paper", beta=0.0).masks,
        LAGRANGIAN: lambda: choices.within(choices.flops, share).masks,
    }


def identical(subject: Subject, cases: Sequence[Case], curves: Mapping[int, Curves]) -> list[bool]:
    """Whether FLOPs-aware and energy-aware masks are the same where energy is proportional to FLOPs."""
    found = []
    for block, share in cases:
        site = loop_machines.proportional_site(block)
        choices = Priced(site, subject.structure(site.batch, site.widen)).choices(curves[block], whole_units=False)
        by_flops, by_energy = (choices.within(cost, share).masks for cost in (choices.flops, choices.energy))
        found.append(digest(by_flops) == digest(by_energy))
    return found


def delivered_gap(subject: Subject, site: Site, curves: Curves) -> float:
    """Part by which the energy of a pruned model, saved, reloaded and extracted afresh, misses what its cost curves promised.

    The budget is halfway between the dense model and the least that can be reached.
    """
    priced = Priced(site, subject.structure(site.batch, site.widen))
    choices = priced.choices(curves, whole_units=True)
    chosen = choices.within(choices.energy, 0.5 + 0.5 * choices.least_energy)
    with TemporaryDirectory() as place:
        checkpoint = Path(place) / "pruned.safetensors"
        subject.live.holding(apply_masks(subject.live.module, chosen.masks)).save(checkpoint)
        found = Priced(site, subject.live.reloaded(checkpoint)).machine.dense.frame()
    return float(found.energy_j[list(prunable(priced.trace))].sum()) / choices.energy.total(chosen.points) - 1


@dataclass(frozen=True)
class Found:
    """All rows, and the checks that go with them.

    Parameters
    ----------
    rows : one per allocation
    dense : top-1 of every dense model
    same : for each allocation on the synthetic card, whether FLOPs and energy chose the same masks
    gaps : part by which models extracted afresh miss the promised energy, by machine and model
    """

    rows: list[Row]
    dense: list[tuple[str, int, float]]
    same: list[bool]
    gaps: dict[str, float]


def run(pairs: Iterable[tuple[Subject, Sequence[Site]]], cases: Sequence[Case], *, solvers: Sequence[str] = ("plain",)) -> Found:
    """The whole experiment, each model on its machines; solvers are compared on the models named in ``solvers``."""
    found = Found([], [], [], {})
    for subject, sites in pairs:
        told = f"{subject.name}, seed {subject.seed}"
        found.dense.append((subject.name, subject.seed, digits_vit.accuracy(subject.live.module, subject.test)))
        curves = subject.curves(sorted({block for block, _ in cases}))
        for site in sites:
            print(f"{told}: {site.name}", file=sys.stderr)
            found.rows.extend(equal_energy(subject, site, cases, curves))
            key = f"{site.name}, {subject.name}"
            if site.widen == 1 and key not in found.gaps:
                found.gaps[key] = delivered_gap(subject, site, curves[cases[0][0]])
        found.same.extend(identical(subject, cases, curves))
        if subject.name in solvers:
            print(f"{told}: {EQUAL_FLOPS}", file=sys.stderr)
            found.rows.extend(equal_flops(subject, [case for case in cases if case[0] == cases[0][0]], curves))
    return found


def report(found: Found, sites: Sequence[Site]) -> list[str]:
    """Tables and sentences."""
    frame = loop_results.frame_of(found.rows)
    lines = [f"{site.name}: {site.told}." for site in sites]
    for name in dict.fromkeys(name for name, _, _ in found.dense):
        tops = [top for known, _, top in found.dense if known == name]
        lines.append(f"Dense {name}: top-1 {', '.join(f'{top:.1%}' for top in tops)} (one per seed).")
    lines += ["", loop_results.energy_table(frame), "", loop_results.solver_table(frame), ""]
    lines += [f"- {sentence}" for sentence in loop_results.sentences(frame)]
    lines.append(
        f"- Energy proportional to FLOPs (synthetic card): same masks in {sum(found.same)} of {len(found.same)} allocations."
    )
    lines += [
        f"- {key}: extracted afresh, the pruned model's energy is {gap:+.3%} off what was promised."
        for key, gap in found.gaps.items()
    ]
    return lines


def main(
    *,
    output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None,
    results: Annotated[Path | None, typer.Option(help="every row, to write as CSV")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps trained digits models for the next run")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="number of seeds")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="of training on the digits")] = digits_vit.EPOCHS,
    tune: Annotated[int, typer.Option(min=0, help="epochs of fine-tuning under the masks")] = digits_vit.TUNING_EPOCHS,
    data: Annotated[
        Path | None, typer.Option(help="images of your own, one sub-folder a class, or train and val with them")
    ] = None,
    model: Annotated[str | None, typer.Option(help="timm model for them")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="its weights; random ones where left out")] = None,
    block: Annotated[int, typer.Option(min=1, help="side of its weight blocks")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="calibration images")] = SAMPLES,
    most: Annotated[int | None, typer.Option(min=1, help="images of the folder at most, to tune with and to test on each")] = None,
) -> None:
    """Run the experiment on the digits, or on a model and images of your own; print tables and sentences."""
    try:
        _check_outputs([path for path in (output, results) if path is not None], cache)
        _check_inputs(data, model, checkpoint)
        if data is not None and model is not None:
            sites: Sequence[Site] = loop_machines.full_size_sites(block)
            own = (
                (own_subject(data, model, checkpoint, seed, tune_epochs=tune, samples=samples, most=most), sites)
                for seed in range(seeds)
            )  # fmt: skip
            found = run(own, [(block, share) for share in SHARES], solvers=(model,))
        else:
            sites = loop_machines.digits_sites()
            few = [site for site in sites if site.name in TOKEN_SITES]
            digits = (
                (digits_subject(seed, variant, epochs=epochs, tune_epochs=tune, cache=cache), sites if variant == "plain" else few)
                for seed in range(seeds) for variant in get_args(digits_vit.Variant)
            )  # fmt: skip
            found = run(digits, digits_cases())
    except HwmodelError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    if data is not None and checkpoint is None:
        print(f"{model} has random weights: its accuracies and distortions say nothing, its costs do.")
    print("\n".join(report(found, sites)))
    frame = loop_results.frame_of(found.rows)
    if results is not None:
        write_file(results, frame.to_csv(index=False))
    if output is not None:
        write_file(output, loop_results.as_figure(frame, output.suffix))


def _check_outputs(files: Sequence[Path], cache: Path | None) -> None:
    """Refuse what would fail at the end, before the work begins."""
    for path in files:
        check_writable(path)
    if cache is not None and not cache.is_dir():
        raise HwmodelError(f"{cache}: not a folder; expected one that exists")


def _check_inputs(data: Path | None, model: str | None, checkpoint: Path | None) -> None:
    if (data is None) != (model is None):
        raise HwmodelError("--data and --model go together: a folder of images, and the timm model that is to be pruned on them")
    if checkpoint is not None and model is None:
        raise HwmodelError("--checkpoint holds the weights of a model; name it with --model, and its images with --data")


if __name__ == "__main__":
    typer.run(main)
