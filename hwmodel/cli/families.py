"""`hwmodel estimate` with a recipe whose token counts depend on the image."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hwmodel.cli.inputs import unpruned_model
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_json, print_wide

if TYPE_CHECKING:
    from hwmodel.backends.families import FamilyEstimate
    from hwmodel.ir.token_counts import TraceFamily


def depends_on_image(recipe: str) -> bool:
    """Whether a recipe gives token counts as a distribution."""
    from hwmodel.extraction.whatif.recipe_files import load_recipe
    from hwmodel.extraction.whatif.token_rules import distributed

    return bool(distributed(load_recipe(recipe).encoder))


def families(model: str, batch: int | None, image_size: int | None, dtype: str | None, recipe: str) -> list[TraceFamily]:
    """One image alone, then the padded batch where several images are asked for; a saved trace has its own batch only."""
    from hwmodel.extraction.families import prune_family
    from hwmodel.ir.storage import is_trace_file

    batches = [batch] if is_trace_file(model) or batch in {None, 1} else [1, batch]
    return [prune_family(unpruned_model(model, one, image_size, dtype, [recipe]), recipe) for one in batches]


def print_families(found: Sequence[TraceFamily], plan: Plan, *, as_json: bool, as_csv: bool) -> None:
    """Price families on all devices of a plan and print mean, p95 and worst."""
    from hwmodel.backends.families import FamilyEstimate

    priced: list[FamilyEstimate] = []
    for family in found:
        by_trace = [plan.estimates(trace) for trace in family.traces]
        priced += [FamilyEstimate(family, estimates) for estimates in zip(*by_trace, strict=True)]
    priced.sort(key=lambda one: [card.name for card in plan.cards].index(one.estimates[0].device))
    if as_json:
        print_json([one.document() for one in priced])
    elif as_csv:
        _print_csv(priced)
    else:
        from hwmodel.reporting.tables import families_table

        print_wide(families_table(priced))
    for one in priced:
        for warning in one.document()["warnings"]:
            sys.stderr.write(f"hwmodel: warning: {one.estimates[0].device}: {warning}\n")


def _print_csv(priced: Sequence[FamilyEstimate]) -> None:
    """A line per device, batch and row of counts ("100 50"), then one each for mean, p95 and worst, which have no probability."""
    from hwmodel.backends.families import SPREAD_OF

    place = ("model", "device", "mode", "batch", "dtype")
    writer = csv.DictWriter(sys.stdout, [*place, "tokens", "probability", *SPREAD_OF], lineterminator="\n")
    writer.writeheader()
    for one in priced:
        summary = one.summary()
        shared: dict[str, Any] = {name: summary[name] for name in place}
        for row in one.rows():
            writer.writerow(shared | row | {"tokens": " ".join(map(str, row["tokens"]))})
        for statistic in ("mean", "p95", "worst"):
            writer.writerow(shared | {"tokens": statistic} | {name: summary[name][statistic] for name in SPREAD_OF})
