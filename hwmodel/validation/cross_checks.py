"""Refits that expose fitting: constants fitted on some rows, scored on rows of another machine, shape or level.

Nothing found here goes into a card. A model that knows why keeps its error where it was not fitted; one that was bent to
its rows does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hwmodel.backends.base import AttentionChoice, BoolArray, FloatArray, IntArray
from hwmodel.backends.cards import Card, load_card
from hwmodel.backends.estimates import estimate
from hwmodel.content import content_folder
from hwmodel.ir.trace import Trace
from hwmodel.validation.calibration.fields import Free, fields_by_default
from hwmodel.validation.calibration.fitting import fit
from hwmodel.validation.calibration.observations import Latencies, observed, read_rows
from hwmodel.validation.gpu_pairs import engine_rows, engine_trace, traced, whole_vits
from hwmodel.validation.measured import MeasuredRow, timed
from hwmodel.validation.statistics import Errors, errors_of


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """Errors on ``device``'s rows with the constants that ship, and with those refitted on other rows alone.

    ``moved``: the refitted constants, by the field's path.
    """

    question: str
    device: str
    fitted_on: str
    scored_on: str
    shipped: Errors
    refitted: Errors
    moved: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"shipped": self.shipped.document(), "refitted": self.refitted.document()}


@dataclass(frozen=True, eq=False)
class _Models:
    """Latencies of whole models, priced one by one; none is held out. Arrays have shape (n_rows,)."""

    traces: Sequence[Trace]
    dtypes: Sequence[str]
    measured_s: FloatArray
    attention: AttentionChoice

    @cached_property
    def held_out(self) -> BoolArray:
        return np.zeros(len(self.traces), dtype=np.bool_)

    @cached_property
    def of(self) -> IntArray:
        return np.arange(len(self.traces))

    def predict(self, card: Card, mode: str, overrides: Mapping[str, Any] | None = None) -> FloatArray:
        """Seconds of each model: (n_rows,), or (designs, n_rows) where ``overrides`` holds arrays (designs,)."""
        found = [
            estimate(trace, device=card, mode=mode, dtype=dtype, overrides=overrides or None, attention=self.attention).latency_s
            for trace, dtype in zip(self.traces, self.dtypes, strict=True)
        ]
        return np.stack(np.broadcast_arrays(*found), axis=-1)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Some measured rows of one card and the mode that prices them; ``what`` names them for a reader."""

    card: str
    what: str
    keep: Callable[[MeasuredRow], bool] = lambda row: True
    mode: str = "kernel"

    def latencies(self) -> Latencies:
        card = load_card(self.card)
        rows = [row for row in read_rows(content_folder("simulators") / self.card / "measured.csv") if self.keep(row)]
        return observed(rows, card, held_out=np.zeros(len(rows), dtype=np.bool_))


@dataclass(frozen=True, kw_only=True)
class _WholeVits(_Rows):
    """Every third of timm's whole ViTs: reading a model takes a second."""

    def latencies(self) -> Latencies:
        path = content_folder("simulators") / self.card / "vit_throughput.csv"
        rows = [row for row in whole_vits(read_rows(path), "timm eager") if self.keep(row)][::3]
        traces = [traced(row.model_or_op, batch=row.batch) for row in rows]
        return _Models(traces, [row.dtype for row in rows], np.array([row.value for row in rows]), "source")


@dataclass(frozen=True, kw_only=True)
class _Engines(_Rows):
    """FasterTransformer's whole ViTs, whose attention was not fused."""

    def latencies(self) -> Latencies:
        rows = [
            row for row in engine_rows(read_rows(content_folder("simulators") / self.card / "vit_engines.csv")) if self.keep(row)
        ]
        return _Models(
            [engine_trace(row) for row in rows], [row.dtype for row in rows], np.array([row.value for row in rows]), "math"
        )


def cross_checks(cards: Sequence[Card], progress: Callable[[str], None] | None = None) -> list[CrossCheck]:
    """The cross-checks whose scored device is among ``cards``; ``progress`` is told what is being refitted."""
    names = {card.name for card in cards}
    found = []
    for question, learnt, scored in _PLANS:
        if scored.card in names:
            if progress is not None:
                progress(f"cross-check: {question}")
            found.append(_run(question, learnt, scored))
    return found


def _run(question: str, learnt: _Rows, scored: _Rows) -> CrossCheck:
    """Fit the constants of one card on some rows, and score another card, or other rows, with them."""
    source, card = load_card(learnt.card), load_card(scored.card)
    seen, unseen = learnt.latencies(), scored.latencies()
    free = [one for one in fields_by_default(source, learnt.mode, seen) if source is card or _is_shared(one, source, card)]
    moved = fit(seen, source, learnt.mode, free)
    shipped, refitted = (_errors(unseen, unseen.predict(card, scored.mode, overrides)) for overrides in (None, moved))
    return CrossCheck(
        question=question, device=card.name, moved=moved, shipped=shipped, refitted=refitted,
        fitted_on=f"{len(seen.of)} {learnt.what} of {source.name}", scored_on=f"{scored.what} of {card.name}",
    )  # fmt: skip


def _is_shared(one: Free, source: Card, card: Card) -> bool:
    """Whether neither card states the number itself: it is the family's, and what is learnt on one holds for the other."""
    field = one.path.partition(".")[0]
    return field not in source.parameters and field not in card.parameters


def _errors(rows: Latencies, predicted_s: FloatArray) -> Errors:
    errors = errors_of(predicted_s.reshape(-1)[rows.of], rows.measured_s)
    assert errors is not None, "every plan scores rows that ship"
    return errors


def _is_wide(row: MeasuredRow) -> bool:
    return "xN3072x" in row.shape


def _is_product(row: MeasuredRow) -> bool:
    return "xK" in row.shape


def _is_other_product(row: MeasuredRow) -> bool:
    return _is_product(row) and not _is_wide(row)


def _is_wide_and_long(row: MeasuredRow) -> bool:
    return _is_wide(row) and timed(row).operator.m >= 192


_KERNELS = _Rows(card="a100-80gb-pcie", what="fp16 products", keep=_is_product)
_OTHER_KERNELS = _Rows(card="a100-80gb-pcie", what="fp16 products, none with n = 3072,", keep=_is_other_product)

_PLANS: tuple[tuple[str, _Rows, _Rows], ...] = (
    ("shapes: n = 3072 dropped", _OTHER_KERNELS, _Rows(card="a100-80gb-pcie", what="fp16 products with n = 3072", keep=_is_wide)),
    ("shapes and boards: n = 3072 dropped", _OTHER_KERNELS,
     _Rows(card="a100-80gb-sxm", what="bf16 token sweep, n = 3072, M >= 192,", keep=_is_wide_and_long)),
    ("shapes: n = 3072 dropped", _Rows(card="a100-40gb-pcie", what="fp32 products, none with n = 3072,", keep=_is_other_product),
     _Rows(card="a100-40gb-pcie", what="fp32 products with n = 3072", keep=_is_wide)),
    ("boards: A100 fitted, A40 scored", _KERNELS, _Rows(card="a40", what="fp16 products", keep=_is_product)),
    ("levels: kernels fitted, whole models scored", _KERNELS,
     _Engines(card="a100-40gb-sxm", mode="engine", what="whole ViT-B/L, fp16,", keep=lambda row: row.dtype == "fp16")),
    ("generations: RTX 3090 fitted, RTX 4090 scored", _WholeVits(card="rtx-3090", mode="eager", what="whole ViTs"),
     _WholeVits(card="rtx-4090", mode="eager", what="whole ViTs, eager,")),
)  # fmt: skip
"""(question, rows fitted, rows scored)"""
