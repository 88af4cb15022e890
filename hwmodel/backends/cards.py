"""Cards: machines described in TOML, checked at the file boundary, resolved to the plain numbers a backend uses.

Every number of ``[parameters]`` carries its source and how far to trust it::

    clock_hz = { value = 1.41e9, fidelity = "published", source = "NVIDIA A100 data sheet" }

``[power_modes.NAME]`` holds the same kind of entries and replaces some of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hwmodel.backends.base import Backend, FloatArray, Parameters
from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.content import content_folder
from hwmodel.errors import CardError, HwmodelError, UnknownNameError
from hwmodel.ir.dtypes import BITS, check_dtype

Fidelity = Literal["measured", "calibrated", "analytic", "assumed"]
Provenance = Literal["published", "measured", "calibrated", "derived", "assumed"]
Text = Annotated[str, Field(min_length=1)]
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Sourced(BaseModel):
    """One number (or table of numbers by dtype) with where it comes from, and a sensible range where it is assumed."""

    model_config = _STRICT

    value: float | str | bool | dict[str, float | str] | list[float]
    fidelity: Provenance
    source: Text
    range: list[float] | None = Field(default=None, min_length=2, max_length=2)

    @field_validator("range")
    @classmethod
    def _ascends(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and not bounds[0] <= bounds[1]:
            raise ValueError("must be [least, greatest]")
        return bounds


class ModeFidelity(BaseModel):
    """How far to trust latency and energy in one mode, and why."""

    model_config = _STRICT

    latency: Fidelity
    energy: Fidelity
    reason: Text


class Score(BaseModel):
    """One line of the scoreboard: predictions against measured rows that were not fitted. Errors are fractions."""

    model_config = _STRICT

    quantity: Literal["latency", "energy", "power"]
    mode: Text
    dtypes: list[str]
    against: Text
    rows: Annotated[int, Field(ge=1)]
    median: NotNegative
    mean: NotNegative
    p90: NotNegative
    max: NotNegative
    bias: Annotated[float, Field(allow_inf_nan=False)]
    rank: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Spearman's rank correlation of predictions and measurements; None for fewer than three rows."""
    band: bool
    """Whether whole-model estimates of this mode take their error band from this line."""


class _Scoreboard(BaseModel):
    model_config = _STRICT

    scores: list[Score] = []


class Card(BaseModel):
    """A machine. Read one with :func:`load_card`."""

    model_config = _STRICT

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    aliases: list[str] = []
    title: Text
    backend: str
    dtypes: Annotated[list[str], Field(min_length=1)]
    default_dtype: str
    default_mode: str
    parameters: dict[str, Sourced]
    power_modes: dict[str, dict[str, Sourced]] = {}
    fidelity: dict[str, ModeFidelity]
    scores: list[Score] = []

    def split_mode(self, mode: str | None) -> tuple[str, str | None]:
        """(execution mode, power mode) of a request such as "engine", "30w" or "engine+30w"; gaps from the default.

        Raises
        ------
        UnknownNameError
            A part that this device does not have, or two of one sort.
        """
        backend = get_backend(self.backend)
        default = self.default_mode if self.default_mode in backend.modes else self.default_mode.partition("+")[0]
        power = self.default_mode.rpartition("+")[2] if self.power_modes else None
        if mode is None or mode in backend.modes:
            return mode or default, power
        known = [*backend.modes, *self.power_modes]
        parts = mode.split("+")
        execution = [part for part in parts if part in backend.modes]
        powers = [part for part in parts if part in self.power_modes]
        if len(execution) > 1 or len(powers) > 1 or len(execution) + len(powers) != len(parts):
            stranger = next((part for part in parts if part not in known), mode)
            raise UnknownNameError(f"mode for {self.name}", stranger, known)
        return (execution or [default])[0], (powers[0] if powers else power)

    def check_dtype(self, dtype: str) -> None:
        """Raise :class:`UnknownNameError` where this device does not compute in ``dtype``."""
        if dtype not in self.dtypes:
            raise UnknownNameError(f"dtype for {self.name}", dtype, self.dtypes)

    def values(self, power_mode: str | None = None) -> dict[str, Any]:
        """Parameter values by name, the power mode's in place of the card's own."""
        entries = self.parameters | (self.power_modes[power_mode] if power_mode else {})
        return {name: entry.value for name, entry in entries.items()}

    def resolve(self, mode: str | None = None, overrides: Mapping[str, Any] | None = None) -> Parameters:
        """The frozen numbers a backend computes with.

        Parameters
        ----------
        mode : execution and power mode; the default where None
        overrides : field (dotted inside a table: "macs_per_cycle.fp16") to a value, or to an array of shape
            (designs, 1) or (designs,) for a sweep

        Raises
        ------
        UnknownNameError, CardError
            A field the backend does not have, or a value outside its range.
        """
        _, power_mode = self.split_mode(mode)
        return _apply(get_backend(self.backend), self.name, self.values(power_mode), overrides or {})


def _apply(backend: Backend, where: str, values: dict[str, Any], overrides: Mapping[str, Any]) -> Parameters:
    """Validate scalars through the backend's model; check arrays at both ends, then put them in place."""
    arrays: dict[str, Any] = {}
    for path, value in overrides.items():
        field, _, key = path.partition(".")
        if field not in backend.parameters.model_fields:
            raise UnknownNameError(f"field of {where}", field, backend.parameters.model_fields)
        scalar = value.item() if isinstance(value, np.generic) else value
        if np.ndim(value) and not isinstance(values.get(field), list):
            arrays[path], least, scalar = _swept(where, path, value)
            _validated(backend, where, _with(values, field, key, least))
        values = _with(values, field, key, scalar)
    designs = {path: len(array) for path, array in arrays.items() if len(array) > 1}
    if len(set(designs.values())) > 1:
        listed = ", ".join(f"{path} has {count}" for path, count in designs.items())
        raise HwmodelError(f"{where}: all swept fields need as many designs: {listed}")
    parameters = _validated(backend, where, values)
    for path, array in arrays.items():
        field, _, key = path.partition(".")
        whole = {**getattr(parameters, field), key: array} if key else array
        parameters = parameters.model_copy(update={field: whole})
    return parameters


def _swept(where: str, path: str, value: Any) -> tuple[FloatArray, Any, Any]:
    """A swept field as a column of designs, with its least and greatest value."""
    given = np.asarray(value)
    if given.size == 0 or given.dtype.kind not in "iuf":
        raise HwmodelError(f"{where}: {path}: only numbers can be swept, found {value!r}; estimate other choices one by one")
    return given.astype(np.float64).reshape(-1, 1), given.min().item(), given.max().item()


def _with(values: dict[str, Any], field: str, key: str, value: Any) -> dict[str, Any]:
    if not key:
        return {**values, field: value}
    table = values.get(field)
    if not isinstance(table, dict):
        raise HwmodelError(f"{field}.{key}: {field} is no table; set {field} itself")
    if table.keys() <= BITS.keys():
        check_dtype(key)
    return {**values, field: {**table, key: value}}


def _validated(backend: Backend, where: str, values: Mapping[str, Any]) -> Parameters:
    try:
        return backend.parameters.model_validate(values)
    except ValidationError as error:
        raise CardError(f"{where}: " + "; ".join(_problems(error, backend, ""))) from error


def _problems(error: ValidationError, backend: Backend | None, prefix: str) -> list[str]:
    """Every problem as "path: what was found and expected"."""
    told = []
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            fields = backend.parameters.model_fields if backend and prefix else Card.model_fields
            near = get_close_matches(parts[-1], fields, n=1)
            text = "unknown field" + (f"; did you mean {near[0]!r}?" if near else "")
        elif item["type"] == "missing":
            text = "missing"
        else:
            text = f"{text}, found {item['input']!r}"
        told.append(f"{prefix}{'.'.join(parts)}: {text}")
    return list(dict.fromkeys(told))


def card_from_document(document: Mapping[str, Any], where: str) -> Card:
    """Check a parsed card and return it.

    Raises
    ------
    CardError
        Lists every problem at once, each with the field's path.
    """
    problems: list[str] = []
    card = None
    try:
        card = Card.model_validate(document)
    except ValidationError as error:
        problems += _problems(error, None, "")
    name = document.get("backend")
    if name not in backend_names():
        problems.append(f"backend: {UnknownNameError('backend', str(name), backend_names())}")
    else:
        problems += _parameter_problems(document, get_backend(name))
        problems += [] if card is None else _consistency_problems(card, get_backend(name))
    if problems or card is None:
        raise CardError(f"{where}: " + "; ".join(dict.fromkeys(problems)))
    return card


def _parameter_problems(document: Mapping[str, Any], backend: Backend) -> list[str]:
    """Problems of the parameters themselves, for the card as it stands and under each power mode."""
    base, power_modes = document.get("parameters"), document.get("power_modes", {})
    if not isinstance(base, dict) or not isinstance(power_modes, dict):
        return []
    problems = _entry_problems(backend, "parameters.", base)
    for mode, changes in power_modes.items():
        if isinstance(changes, dict):
            known = {text.removeprefix("parameters.") for text in problems}
            prefix = f"power_modes.{mode}."
            found = _entry_problems(backend, prefix, base | changes)
            problems += [text for text in found if text.removeprefix(prefix) not in known]
    return problems


def _entry_problems(backend: Backend, prefix: str, entries: Mapping[str, Any]) -> list[str]:
    """What the backend says about the values; entries that are no table with a value are told by :class:`Card`."""
    values = {name: entry["value"] for name, entry in entries.items() if isinstance(entry, dict) and "value" in entry}
    try:
        backend.parameters.model_validate(values)
    except ValidationError as error:
        told = {f"{prefix}{name}: missing" for name in entries.keys() - values.keys()}
        return [text for text in _problems(error, backend, prefix) if text not in told]
    return []


def _consistency_problems(card: Card, backend: Backend) -> list[str]:
    """Names that must agree with each other."""
    problems = [f"dtypes: unknown dtype {dtype!r}" for dtype in card.dtypes if dtype not in BITS]
    if card.default_dtype not in card.dtypes:
        problems.append(f"default_dtype: {card.default_dtype!r} is not among dtypes")
    try:
        card.split_mode(card.default_mode)
    except UnknownNameError as error:
        problems.append(f"default_mode: {error}")
    if card.power_modes and card.default_mode.rpartition("+")[2] not in card.power_modes:
        problems.append("default_mode: must name a power mode after '+', for this card has some")
    problems += [f"fidelity.{mode}: missing" for mode in backend.modes if mode not in card.fidelity]
    problems += [f"fidelity.{mode}: the backend has no such mode" for mode in card.fidelity if mode not in backend.modes]
    return problems


def read_card(path: str | Path) -> Card:
    """Read and check one card file, and the scoreboard ``scores.toml`` beside it where there is one.

    Raises
    ------
    CardError
        A file that cannot be read, is not TOML (a repeated key is an error there), or does not validate.
    """
    return _with_scores(card_from_document(_read_toml(Path(path)), str(path)), Path(path))


def _with_scores(card: Card, path: Path) -> Card:
    beside = path.with_name("scores.toml")
    if not beside.is_file():
        return card
    try:
        return card.model_copy(update={"scores": _Scoreboard.model_validate(_read_toml(beside)).scores})
    except ValidationError as error:
        raise CardError(f"{beside}: " + "; ".join(_problems(error, None, ""))) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: not valid TOML: {error}") from error


def listed_cards() -> list[Card]:
    """The cards that come with hwmodel, for showing what there is: backends and parameters are not looked at, which is quick.

    Raises
    ------
    CardError
        A card whose own fields do not validate.
    """
    return [_listed(path) for path in _card_files()]


def _listed(path: Path) -> Card:
    try:
        return _with_scores(Card.model_validate(_read_toml(path)), path)
    except ValidationError as error:
        raise CardError(f"{path}: " + "; ".join(_problems(error, None, ""))) from error


def _card_files() -> list[Path]:
    return sorted(content_folder("simulators").glob("*/card.toml"))


@cache
def shipped_cards() -> Mapping[str, Card]:
    """All cards that come with hwmodel, by name."""
    cards = (read_card(path) for path in _card_files())
    return {card.name: card for card in cards}


def load_card(device: str | Path) -> Card:
    """The card of a device name, an alias, or a path to a card file.

    Raises
    ------
    UnknownNameError
        No such name; the nearest are suggested.
    CardError
        A file that does not validate.
    """
    text = str(device)
    if text.endswith(".toml") or "/" in text:
        return read_card(device)
    cards = shipped_cards()
    named = {**cards} | {alias: card for card in cards.values() for alias in card.aliases}
    if text not in named:
        raise UnknownNameError("device", text, named)
    return named[text]
