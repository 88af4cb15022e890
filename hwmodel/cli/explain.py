"""`hwmodel explain`."""

from __future__ import annotations

import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING

from hwmodel.cli.inputs import pruned_by, traced_model, unpruned_model
from hwmodel.cli.options import (
    AsJson,
    Attention,
    Batch,
    Block,
    Checkpoint,
    Devices,
    Dtype,
    EnergyScope,
    ImageSize,
    Mode,
    Model,
    RecipeFile,
    Settings,
    SparseKernel,
    Workers,
)
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from hwmodel.ir.trace import Trace
    from hwmodel.reporting.explain import Explanation

_WIDTH = 110


def explain(
    model: Model,
    *,
    device: Devices,
    recipe: RecipeFile = None,
    checkpoint: Checkpoint = None,
    block: Block = None,
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
    """Say in words what limits a model, why pruning did or did not help on this machine, and which change would."""
    from hwmodel.ir.storage import is_trace_file
    from hwmodel.reporting.explain import explain as tell
    from hwmodel.reporting.explain import without_masks

    plan = Plan(device, mode, settings, dtype, workers, attention=attention, sparse_kernel=sparse_kernel, scope=scope)

    @cache
    def versions(images: int | None) -> tuple[Trace, Trace]:
        """The dense model and the version to explain."""
        given = unpruned_model(model, images, image_size, dtype, [] if recipe is None else [recipe])
        present = given if recipe is None else pruned_by(given, recipe)
        if checkpoint is not None or block is not None:
            present = traced_model(model, images, image_size, dtype, recipe, checkpoint=checkpoint, block=block)
        return without_masks(given), present

    dense, present = versions(batch)
    at_batch = None if is_trace_file(model) else versions

    def told(place: int) -> Explanation:
        now, before = (plan.estimate(trace, place) for trace in (present, dense))
        return tell(now, before, lambda trace: plan.estimate(trace, place), at_batch=at_batch)

    found = [told(place) for place in range(len(plan.cards))]
    if as_json:
        print_json([one.document() for one in found])
        return
    for place, one in enumerate(found):
        _print(one, first=place == 0)


def _print(found: Explanation, *, first: bool) -> None:
    if not first:
        print_line("")
    for place, (lead, text) in enumerate(found.lines()):
        body = textwrap.fill(f"{lead}: {text}", _WIDTH, initial_indent="" if place == 0 else "- ", subsequent_indent="  ")
        print_line(body)
    for warning in found.comparison.case.estimate.warnings:
        sys.stderr.write(f"hwmodel: warning: {found.comparison.case.card.name}: {warning}\n")
