"""From a measured file and a card to a new card: what was fitted, on what, and how far off it is on held-out rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.backends.base import BoolArray
from hwmodel.backends.cards import Card, Score, card_from_document
from hwmodel.backends.estimates import estimate
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.files import check_writable, write_file
from hwmodel.validation.calibration.fields import Free, fields_by_default, fields_named
from hwmodel.validation.calibration.fitting import fit
from hwmodel.validation.calibration.observations import (
    LEAST_FIT_ROWS,
    WHOLE_MODEL,
    Observations,
    check_dtypes,
    check_plausible,
    check_separable,
    observations,
    read_rows,
)
from hwmodel.validation.measured import MeasuredRow
from hwmodel.validation.statistics import Distribution, Errors, distribution_of, errors_of


@dataclass(frozen=True, kw_only=True)
class Side:
    """Errors on one side of the split, before and after."""

    before: Errors
    after: Errors
    spread_before: Distribution
    spread_after: Distribution


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What :func:`calibrate` found. ``models``: whole-model rows before and after, None where the file has none."""

    card: Card
    mode: str
    free: tuple[Free, ...]
    values: Mapping[str, float]
    fit: Side
    held_out: Side
    models: Side | None

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        fields = [asdict(one) | {"value": self.values[one.path]} for one in self.free]
        sides = {"fit": self.fit, "held_out": self.held_out, "models": self.models}
        return {"card": self.card.name, "mode": self.mode, "fields": fields} | {
            name: None if side is None else asdict(side) for name, side in sides.items()
        }


def calibrate(
    path: str | Path,
    card: Card,
    *,
    name: str | None = None,
    mode: str | None = None,
    fields: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
) -> Calibration:
    """Fit a card to the operator latencies of a measured file.

    Parameters
    ----------
    path : a file in the layout of :mod:`hwmodel.validation.measured`
    name : of the new card; the old one's with "-calibrated" where None
    mode : execution and power mode the rows were taken in; ``kernel`` where the backend has it, else the card's default
    fields : what may move (FIELD or FIELD.KEY); by default what is called calibrated or assumed and latency depends on
    dtype, device : rows to use, all of them where None

    Raises
    ------
    HwmodelError
        A file, a format, a field or a mode that cannot be used, or too few rows.
    """
    mode = mode or _operator_mode(card)
    power_mode = card.split_mode(mode)[1]
    rows = read_rows(path, dtype=dtype, device=device)
    found = observations(rows, card, path)
    check_separable(found, card, mode)
    check_plausible(found, card, mode, path)
    free = fields_named(card, power_mode, fields) if fields else fields_by_default(card, mode, found)
    fit_rows = int((~found.held_out).sum())
    if fit_rows < max(LEAST_FIT_ROWS, 2 * len(free)):
        raise HwmodelError(f"{path}: {fit_rows} rows cannot fit {len(free)} numbers; measure more shapes or name fewer with --fit")
    values = fit(found, card, mode, free)
    origin = f"hwmodel calibrate: {fit_rows} rows of {Path(path).name} (sha256 {_digest(path)}), mode {mode}"
    changed = _changed(card, name or f"{card.name}-calibrated", mode, values, origin)
    result = Calibration(
        card=changed,
        mode=mode,
        free=tuple(free),
        values=values,
        fit=_side(found, ~found.held_out, (card, changed), mode),
        held_out=_side(found, found.held_out, (card, changed), mode),
        models=_models(rows, (card, changed), path),
    )
    return replace(result, card=changed.model_copy(update={"scores": _scores(result, found.dtypes, rows, Path(path).name)}))


def _scores(result: Calibration, dtypes: list[str], rows: Sequence[MeasuredRow], file: str) -> list[Score]:
    """Lines for the new card: operators held out, and whole models, which give estimates their error band."""
    execution, _ = result.card.split_mode(result.mode)
    scores = [_score(result.held_out.after, execution, dtypes, f"operators held out of {file}", band=False)]
    if result.models is not None:
        whole = sorted({row.dtype for row in rows if row.shape.startswith(WHOLE_MODEL)})
        default, _ = result.card.split_mode(None)
        scores.append(_score(result.models.after, default, whole, f"whole models of {file}", band=True))
    return scores


def _operator_mode(card: Card) -> str:
    return "kernel" if "kernel" in get_backend(card.backend).modes else card.default_mode


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def _side(found: Observations, chosen: BoolArray, cards: tuple[Card, Card], mode: str) -> Side:
    of, measured = found.of[chosen], found.measured_s[chosen]
    before, after = (found.predict(card, mode)[of] for card in cards)
    return _compared(before, after, measured)


def _compared(before: Any, after: Any, measured: Any) -> Side:
    errors = [errors_of(predicted, measured) for predicted in (before, after)]
    assert errors[0] is not None and errors[1] is not None, "sides are checked to have rows"
    return Side(
        before=errors[0],
        after=errors[1],
        spread_before=distribution_of(before, measured),
        spread_after=distribution_of(after, measured),
    )


def _models(rows: Sequence[MeasuredRow], cards: tuple[Card, Card], path: str | Path) -> Side | None:
    """Whole-model rows, predicted in each card's default mode; no constant is fitted on them."""
    whole = [row for row in rows if row.shape.startswith(WHOLE_MODEL)]
    if not whole:
        return None
    from hwmodel.extraction.models import trace

    check_dtypes(whole, cards[0], path)
    predicted = np.zeros((2, len(whole)))
    for place, row in enumerate(whole):
        traced = trace(row.model_or_op, batch=row.batch, image_size=int(row.shape.removeprefix(WHOLE_MODEL)))
        predicted[:, place] = [estimate(traced, device=card, dtype=row.dtype).latency_s for card in cards]
    return _compared(predicted[0], predicted[1], np.array([row.value for row in whole]))


def _score(errors: Errors, mode: str, dtypes: list[str], against: str, *, band: bool) -> Score:
    figures = {name: round(getattr(errors, name), 4) for name in ("median", "mean", "p90", "max", "bias")}
    return Score(quantity="latency", mode=mode, dtypes=dtypes, against=against, rows=errors.rows, band=band, **figures)


def _changed(card: Card, name: str, mode: str, values: Mapping[str, float], origin: str) -> Card:
    """The card with the fitted values in it, each with its provenance."""
    execution, power_mode = card.split_mode(mode)
    document = card.model_dump(exclude_none=True)
    document |= {"name": name, "aliases": [], "title": f"{card.title}, calibrated", "scores": []}
    document["fidelity"][execution] |= {"latency": "calibrated", "reason": origin}
    by_field: dict[str, dict[str, float]] = {}
    for path, value in values.items():
        field, _, key = path.partition(".")
        by_field.setdefault(field, {})[key] = value
    for field, entries in by_field.items():
        table = document["power_modes"].get(power_mode, {}) if power_mode else {}
        home = table if field in table else document["parameters"]
        home[field] = _entry(home.get(field), entries, origin)
    return card_from_document(document, name)


def _entry(old: dict[str, Any] | None, entries: Mapping[str, float], origin: str) -> dict[str, Any]:
    """One calibrated entry; its source tells what it was before."""
    if old is None:
        return {"value": entries[""], "fidelity": "calibrated", "source": f"{origin}; was the backend's default"}
    value = {**old["value"], **entries} if isinstance(old["value"], dict) else entries[""]
    first = re.sub(r"^hwmodel calibrate: .*?; was ", "", old["source"])
    told = f"{origin}; was {old['value']} ({old['fidelity']}): {first}".replace("'", "")
    return old | {"value": value, "fidelity": "calibrated", "source": told}


def check_card_output(path: str | Path) -> None:
    """Raise :class:`HwmodelError` where a card cannot be written, or would be read with another card's scores."""
    target = check_writable(path)
    if target.suffix != ".toml":
        raise HwmodelError(f"{path}: expected a file name that ends in .toml")
    if target.with_name("scores.toml").is_file():
        raise HwmodelError(f"{path}: the scores.toml beside it would be read in place of the new scores; choose another folder")


def write_card(found: Calibration, path: str | Path) -> None:
    """Write the new card as TOML; it reads back equal."""
    import tomlkit

    check_card_output(path)
    write_file(path, tomlkit.dumps(found.card.model_dump(exclude_none=True)))


def name_from(path: str | Path, card: Card) -> str:
    """Name of a card written to ``path``: the file's, unless it is a bare "card" or cannot be a name."""
    stem = Path(path).stem
    usable = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", stem) is not None and stem != "card"
    return stem if usable else f"{card.name}-calibrated"
