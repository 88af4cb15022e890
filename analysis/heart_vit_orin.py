"""HEART-ViT's headline on our AGX Orin and A100: what 49.4 % fewer FLOPs of ViT-B/16 and DeiT-B/16 are worth there.

The abstract (Uddin, Seymour and Baidya, arXiv 2512.20120) claims up to -49.4 % FLOPs, -36 % latency and +46 % throughput. Its
device tables are not public: power mode, precision, batch and runtime are unknown, and so are the tokens and heads kept in each
layer. Nothing of that is invented here. Schedules that give the same cut are priced by our cards (Orin: time analytic, energy
assumed, no ViT measured; A100: time calibrated), so the question is which of them could look like the claim, and where.

    python analysis/heart_vit_orin.py -o heart_vit_orin.svg
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.extraction.whatif.recipes import EncoderRule
from hwmodel.extraction.whatif.token_rules import Selection, TokenCounts
from hwmodel.files import check_writable, write_file
from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed
from hwmodel.reporting.tables import band_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS = ("vit_base_patch16_224", "deit_base_patch16_224")
BATCHES = (1, 8, 32)
ORIN, A100 = "agx-orin-64gb", "a100-40gb-sxm"
DTYPE = "fp16"

CLAIMED_MACS, CLAIMED_LATENCY, CLAIMED_THROUGHPUT = -0.494, -0.36, 0.46
IMPLIED_LATENCY = 1 / (1 + CLAIMED_THROUGHPUT) - 1
DEPTH, HEADS, PATCHES = 12, 12, 196
TOKENS_OF_CLAIM = round(0.6 * PATCHES)
"""40 % token pruning, the one ratio that the abstract names."""
PLACES = (3, 6, 9)
"""Blocks at which the asymmetric schedules drop tokens, a common choice; HEART-ViT's own is not public."""
LATE_HEADS = (12, 10, 8)
"""Heads in each third of the asymmetric schedules, a choice too."""
SPREAD = (0.75, 1.0, 1.25)
"""Tokens of an easy, a mean and a hard image over the mean, equally likely: an assumption, no distribution is published."""

Rules = list[EncoderRule]


@dataclass(frozen=True)
class Schedule:
    """One way to prune; ``told`` holds the number that was searched to meet the claimed cut."""

    name: str
    rules: Rules
    told: str


@dataclass(frozen=True)
class Point:
    """One schedule on one device: means over the images where tokens depend on them. Seconds and joules for the batch.

    ``trust`` names the fidelity of the dense model's latency and energy, and their error on measured rows.
    """

    schedule: str
    device: str
    mode: str
    batch: int
    dense_s: float
    dense_j: float
    latency_s: float
    energy_j: float
    gate_s: float
    trust: str

    @property
    def latency(self) -> float:
        """Change of latency against the dense model."""
        return self.latency_s / self.dense_s - 1

    @property
    def throughput(self) -> float:
        """Change of images per second in a steady loop."""
        return self.dense_s / self.latency_s - 1

    @property
    def energy(self) -> float:
        """Change of energy."""
        return self.energy_j / self.dense_j - 1

    @property
    def gate(self) -> float:
        """Part of the pruned model's time that choosing tokens takes."""
        return self.gate_s / self.latency_s

    @property
    def place(self) -> str:
        """Device and mode in few words."""
        return f"{'Orin' if self.device == ORIN else 'A100'} {self.mode.removeprefix('engine+')}"


def passes(dense: hw.Trace, rules: Rules) -> list[tuple[float, hw.Trace]]:
    """What the pruned model executes, each with its probability; a batch whose counts depend on the image pays its longest."""
    asked = hw.Recipe(model=MODELS[0], source="analysis/heart_vit_orin.py", encoder=tuple(rules))
    if not any(isinstance(rule.tokens, TokenCounts) for rule in rules):
        return [(1.0, hw.prune(dense, asked))]
    family = hw.prune_family(dense, asked)
    return list(zip(family.distribution.probability, family.traces, strict=True))


def change(dense: hw.Trace, rules: Rules) -> float:
    """Change of total MACs, attention's products among them."""
    return sum(share * trace.kept_macs for share, trace in passes(dense, rules)) / dense.macs - 1


def uniform(tokens: int, heads: int = DEPTH * HEADS) -> Rules:
    """So many patch tokens in every block, and so many heads in all, the first blocks one more where they do not divide."""
    least, more = divmod(heads, DEPTH)
    kept = [(f"0-{more - 1}", least + 1)] * (more > 0) + [(f"{more}-{DEPTH - 1}", least)]
    return [EncoderRule(blocks=f"0-{DEPTH - 1}", tokens=tokens), *(EncoderRule(blocks=where, heads=count) for where, count in kept)]


def falling(share: float, select: Selection = "given") -> Rules:
    """``share`` of the patch tokens present stays at each of the places, and fewer heads in each third of the blocks."""
    third = DEPTH // len(LATE_HEADS)
    thirds = [EncoderRule(blocks=f"{at * third}-{(at + 1) * third - 1}", heads=heads) for at, heads in enumerate(LATE_HEADS)]
    drops = zip(PLACES, counts(share), strict=True)
    return thirds + [EncoderRule(blocks=str(block), tokens=count, select=select) for block, count in drops]


def counts(share: float) -> list[int]:
    """Patch tokens after each place."""
    return [max(1, round(PATCHES * share**place)) for place in range(1, len(PLACES) + 1)]


def varying(share: float) -> Rules:
    """As :func:`falling`, with counts that depend on the image, which is easy, mean or hard at every place alike."""
    likely = (1 / len(SPREAD),) * len(SPREAD)

    def spread(rule: EncoderRule) -> EncoderRule:
        if not isinstance(rule.tokens, int):
            return rule
        values = tuple(min(PATCHES, max(1, round(rule.tokens * factor))) for factor in SPREAD)
        return rule.model_copy(update={"tokens": TokenCounts(values, likely)})

    return [spread(rule) for rule in falling(share, "threshold")]


def nearest(dense: hw.Trace, rules: Callable[[int], Rules], most: int) -> int:
    """The number up to ``most`` whose cut is nearest the claimed one; cuts shrink as numbers grow."""
    numbers = range(1, most + 1)
    place = bisect_left(numbers, CLAIMED_MACS, key=lambda number: change(dense, rules(number)))
    near = numbers[max(place - 1, 0) : place + 1]
    return min(near, key=lambda number: abs(change(dense, rules(number)) - CLAIMED_MACS))


def nearest_share(dense: hw.Trace, rules: Callable[[float], Rules]) -> float:
    """The same over shares in thousandths."""
    return nearest(dense, lambda kept: rules(kept / 1000), 1000) / 1000


def schedules(dense: hw.Trace) -> list[Schedule]:
    """Five ways to the claimed cut."""
    tokens = nearest(dense, uniform, PATCHES)
    heads = nearest(dense, lambda kept: uniform(TOKENS_OF_CLAIM, DEPTH - 1 + kept), DEPTH * (HEADS - 1) + 1) + DEPTH - 1
    found = [
        Schedule("tokens only", uniform(tokens), f"{tokens} of {PATCHES} patch tokens in every block"),
        Schedule(
            "40 % tokens + heads", uniform(TOKENS_OF_CLAIM, heads),
            f"{TOKENS_OF_CLAIM} of {PATCHES} patch tokens in every block, {heads} of {DEPTH * HEADS} heads",
        ),
    ]  # fmt: skip
    late = f"{'/'.join(map(str, LATE_HEADS))} heads by thirds"
    varied = f"for the mean image, {', '.join(f'{part:.0%}' for part in SPREAD)} of that equally likely (assumed)"
    for name, rules, how in (
        ("asymmetric, static", falling, "positions fixed after calibration, nothing scored at inference"),
        ("asymmetric, top-k per input", lambda share: falling(share, "attention"), "scored image by image behind attention"),
        ("asymmetric, count per input", varying, f"{varied}, scored against a threshold behind attention"),
    ):
        share = nearest_share(dense, rules)
        left, at = ", ".join(map(str, counts(share))), ", ".join(map(str, PLACES))
        found.append(Schedule(name, rules(share), f"{left} patch tokens from blocks {at} on, {late}; {how}"))
    return found


def study(batches: Sequence[int] = BATCHES) -> tuple[list[Schedule], list[Point]]:
    """Every schedule in every power mode of the Orin and in two execution modes of the A100, at every batch."""
    ways = schedules(hw.trace(MODELS[0]))
    places = [*((ORIN, f"engine+{mode}") for mode in load_card(ORIN).power_modes), (A100, "engine"), (A100, "compiled")]
    points = []
    for batch in batches:
        dense = hw.trace(MODELS[0], batch=batch)
        run = {way.name: passes(dense, way.rules) for way in ways}
        points += [priced(dense, name, traces, device, mode) for device, mode in places for name, traces in run.items()]
    return ways, points


def priced(dense: hw.Trace, name: str, traces: Sequence[tuple[float, hw.Trace]], device: str, mode: str) -> Point:
    """One schedule on one device, its gate told apart."""
    was = hw.estimate(dense, device=device, mode=mode, dtype=DTYPE)
    now = [(share, hw.estimate(trace, device=device, mode=mode, dtype=DTYPE)) for share, trace in traces]
    return Point(
        schedule=name, device=device, mode=mode, batch=dense.batch, dense_s=float(was.latency_s), dense_j=float(was.energy_j),
        latency_s=sum(share * float(one.latency_s) for share, one in now),
        energy_j=sum(share * float(one.energy_j) for share, one in now),
        gate_s=sum(share * gate_s(one) for share, one in now), trust=trust(was),
    )  # fmt: skip


def trust(estimate: hw.Estimate) -> str:
    """Fidelity and measured error in a few words."""
    return ", ".join(f"{name} {estimate.fidelity[name]} ({band_text(estimate.error_band(name))})" for name in ("latency", "energy"))


def gate_s(estimate: hw.Estimate) -> float:
    """Seconds that choosing tokens takes: the rows that score and pick, and attention that has to show its weights for it."""
    fused = hw.estimate(estimate.trace, device=estimate.card, mode=estimate.mode, dtype=DTYPE, attention="fused")
    rows = fused.frame()
    picking = float(rows.latency_s[rows.index.str.contains(".select.", regex=False)].sum())
    return float(estimate.latency_s) - float(fused.latency_s) + picking


def arithmetic() -> list[str]:
    """What the abstract's three figures say about each other."""
    faster, ideal = 1 / (1 + CLAIMED_LATENCY), 1 / (1 + CLAIMED_MACS)
    return [
        f"A latency of {CLAIMED_LATENCY:+.0%} is {faster:.2f} times as fast, {faster - 1:+.0%} throughput; a throughput of "
        f"{CLAIMED_THROUGHPUT:+.0%} is {IMPLIED_LATENCY:+.1%} latency. At one batch size they cannot be one configuration.",
        f"Time in proportion to FLOPs would be {ideal:.2f} times as fast: the claimed latency gets {faster / ideal:.0%} of that.",
    ]


def sentences(points: Sequence[Point]) -> list[str]:
    """What the study says, from its own numbers."""
    orin = [point for point in points if point.device == ORIN]
    between = [point for point in orin if CLAIMED_LATENCY <= point.latency <= IMPLIED_LATENCY]
    listed = [f"{point.schedule} at {point.place}, batch {point.batch}" for point in between]
    return [
        *(_of_batch([point for point in orin if point.batch == batch]) for batch in sorted({point.batch for point in orin})),
        f"Between the two claims, latency {CLAIMED_LATENCY:.0%} to {IMPLIED_LATENCY:.1%}, lie {len(between)} of {len(orin)} Orin "
        f"points: {'; '.join(listed) or 'none'}.",
        _gate(orin),
        _server(points),
        *(f"{place}: {told}." for place, told in dict.fromkeys((point.place, point.trust) for point in points)),
    ]


def _of_batch(own: Sequence[Point]) -> str:
    low, high = (choose(own, key=lambda point: point.latency) for choose in (min, max))
    met = sum(point.latency <= CLAIMED_LATENCY for point in own)
    return (
        f"Orin, batch {low.batch}: latency {low.latency:+.0%} ({low.schedule}, {low.place}) to {high.latency:+.0%} "
        f"({high.schedule}, {high.place}); {met} of {len(own)} schedules and modes reach {CLAIMED_LATENCY:.0%}."
    )


def _gate(points: Sequence[Point]) -> str:
    scored = [point for point in points if "per input" in point.schedule]
    least, most = (choose(scored, key=lambda point: point.gate) for choose in (min, max))
    return (
        f"Choosing tokens image by image takes {least.gate:.1%} ({least.place}, batch {least.batch}) to {most.gate:.1%} "
        f"({most.place}, batch {most.batch}) of the pruned model's time on the Orin, with class attention as the score. "
        f"HEART-ViT's own score takes a label and a Hessian-vector product, two backward passes: per image it would cost more than "
        f"it saves."
    )


def _server(points: Sequence[Point]) -> str:
    batches = sorted({point.batch for point in points})
    cuts = {
        batch: [point.latency for point in points if (point.device, point.mode, point.batch) == (A100, "engine", batch)]
        for batch in (batches[0], batches[-1])
    }
    told = [f"{min(own):+.0%} to {max(own):+.0%} at batch {batch}" for batch, own in cuts.items()]
    return f"A100, engine: latency {', '.join(told)}."


def as_table(points: Sequence[Point]) -> Table:
    """Every point beside the dense model."""
    columns = ("schedule", "device", "batch", "dense ms", "ms", "latency", "throughput", "mJ/image", "energy", "gate")
    table = Table(*columns, title=f"{CLAIMED_MACS:.1%} MACs, {DTYPE}")
    for one in points:
        milliseconds = (f"{seconds * 1e3:.2f}" for seconds in (one.dense_s, one.latency_s))
        changes = (f"{one.latency:+.0%}", f"{one.throughput:+.0%}", f"{one.energy_j / one.batch * 1e3:.0f}", f"{one.energy:+.0%}")
        table.add_row(one.schedule, one.place, str(one.batch), *milliseconds, *changes, f"{one.gate:.1%}")
    return table


@themed
def as_figure(points: Sequence[Point], suffix: str = ".svg") -> bytes:
    """Change of latency and of energy by device and mode, one column a batch, beside what is claimed."""
    batches = sorted({point.batch for point in points})
    figure = new_figure(5.2, 11.0)
    panels = figure.subplots(2, len(batches), sharey=True, sharex=True, squeeze=False)
    for column, batch in zip(panels.T, batches, strict=True):
        own = [point for point in points if point.batch == batch]
        for axes, quantity in zip(column, ("latency", "energy"), strict=True):
            _changes(axes, own, quantity)
        column[0].axhspan(
            100 * CLAIMED_LATENCY,
            100 * IMPLIED_LATENCY,
            color=colour("rest"),
            alpha=0.25,
            lw=0,
            label="claimed speed",
        )
        column[0].set_title(f"batch {batch}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure_file(figure, suffix)


def _changes(axes: Axes, points: Sequence[Point], quantity: str) -> None:
    names, places = (list(dict.fromkeys(getattr(point, what) for point in points)) for what in ("schedule", "place"))
    for number, name in enumerate(names):
        own = [point for point in points if point.schedule == name]
        beside = 0.12 * (number - (len(names) - 1) / 2)
        x, y = [places.index(point.place) + beside for point in own], [100 * getattr(point, quantity) for point in own]
        axes.plot(x, y, "o", markersize=4, color=colour(device_token(number)), label=name)
    axes.axhline(100 * CLAIMED_MACS, color=colour("untouched"), lw=0.8, ls=":", label="FLOPs")
    axes.set_xticks(range(len(places)), places, rotation=30, ha="right")
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(f"change of {quantity} (%)")


def main(output: Annotated[Path | None, typer.Option("-o", help="figure to write (.svg, .png, .pdf)")] = None) -> None:
    """Run the study, print table and sentences, and draw it where asked."""
    if output is not None:
        check_writable(output)
    first, second = (hw.trace(model) for model in MODELS)
    ways, points = study()
    console = Console(width=150)
    console.print(as_table(points))
    same = "have equal operators, so every figure here holds for both" if first.operators == second.operators else "differ"
    print(f"- {MODELS[0]} and {MODELS[1]} {same}; {first.macs / 1e9:.2f} GMAC.")
    for way in ways:
        print(f"- {way.name}: {way.told}; {change(first, way.rules):+.1%} of all MACs.")
    for sentence in [*arithmetic(), *sentences(points)]:
        print(f"- {sentence}")
    if output is not None:
        write_file(output, as_figure(points, output.suffix))


if __name__ == "__main__":
    typer.run(main)
