"""Studies: a TOML file that says what varies, on which machines, and what to look for.

The schema, by example (every table but ``[[models]]`` and ``[[devices]]`` may be left out)::

    schema_version = 1
    name = "array-and-bandwidth"             # letters, digits, "-"
    title = "Array size and HBM bandwidth for pruned DeiT"
    method = "grid"                          # every point; or "search" (Optuna)
    batch = 1                                # fixed for all points unless varied; also image_size, dtype, attention, scope
    limit = 1_000_000                        # more points than this need --yes

    [[models]]
    name = "deit_base_patch16_224"           # timm name, or a trace file
    label = "DeiT-B"
    recipes = ["dense", "deit_base_lsp_b32x32"]   # "dense", shipped names, files

    [[devices]]
    name = "tpu-v3"                          # card name or file; label = "..." where one card stands twice
    modes = ["device"]                       # execution and power modes; the card's default where left out
    set = { cores = 1 }                      # card fields replaced at every point

    [[pruning]]                              # what is pruned on top of the recipe; values here are fixed unless varied
    block = "32x32"                          # (out, in)
    density = 1.0                            # kept fraction of blocks
    layers = ["blocks.*.mlp.fc?"]            # globs; qkv, proj, fc1 and fc2 of the encoder where left out
    blocks = "3-11"                          # encoder blocks that heads, mlp, tokens and keep apply to; all where left out
    # name = "mlp"                           # several [[pruning]] tables have names: their knobs are "mlp.density", ...

    [[vary]]
    knob = "density"                         # density, block, expect, heads, mlp, tokens, keep (of [[pruning]]);
    values = [0.25, 0.5, 1.0]                # batch, image_size, dtype, attention, sparse_kernel; or "card.FIELD"

    [[vary]]
    knob = ["card.array_rows", "card.array_cols"]   # fields that move together
    label = "array side"                     # name of the column; the knob without "card." where left out
    values = [64, 128, 256]

    [[vary]]
    knob = ["card.product_hbm_bytes_per_s", "card.vector_hbm_bytes_per_s"]
    label = "HBM bandwidth"
    from = 0.25
    to = 4.0
    count = 9                                # or step = 0.5; search takes a range without either
    spacing = "log"                          # or "linear"; whole = true rounds to integers
    relative = true                          # times the card's own value

    [[proxies]]                              # a quantity of your own: sum of weight times a product of columns
    name = "multipliers"
    terms = [{ weight = 1.0, of = ["card.array_rows", "card.array_cols", "card.mxus"] }]

    [[constraints]]
    quantity = "average_power_w"             # any quantity, proxy, knob or card field
    max = 300.0                              # and, or, min

    [accuracy]                               # your own figures: a CSV with a column of accuracies and columns of knobs
    file = "accuracy.csv"
    column = "top1"

    objectives = ["latency_s", "energy_j", { quantity = "multipliers", goal = "min" }]     # at the top of the file

    [search]
    sampler = "nsga2"                        # or "tpe"
    trials = 1000
    batch = 50                               # trials asked for at once
    seed = 0
    storage = "sqlite:///search.db"          # any URL that Optuna takes; beside the results where left out

A field that only some of the cards have varies on those and is left empty (null) on the others. Quantities are those of
:data:`hwmodel.exploration.quantities.QUANTITIES`. Paths are relative to the study's own file.

From Python: ``hw.explore(hw.load_study("study.toml"), "results")`` returns :class:`hwmodel.exploration.results.Results`
with ``frame()``, ``front()`` and ``knees()``; ``Study.model_validate({...})`` makes a study without a file.
"""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from hwmodel.backends.base import AttentionChoice, Scope, SparseChoice
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import Rule

DENSE = "dense"
CARD = "card."
RUN_KNOBS = ("batch", "image_size", "dtype", "attention", "sparse_kernel")
PRUNING_KNOBS = ("density", "block", "expect", "heads", "mlp", "tokens", "keep")

Value = str | bool | int | float
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class StudyError(HwmodelError):
    """A study that does not validate, or that no machine or model fits: every problem at once, each with its path."""


def _listed(value: Any) -> Any:
    """One thing as a list of one."""
    return (value,) if isinstance(value, str) else _tuple(value)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _block(value: Any) -> Any:
    """``[32, 64]`` as "32x64", the form that is written down."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value):
        return f"{value[0]}x{value[1]}"
    return value


def _values(given: Any) -> Any:
    return tuple(_block(value) for value in given) if isinstance(given, list | tuple) else given


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
Block = Annotated[str, BeforeValidator(_block), Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelChoice(BaseModel):
    """A model and the recipes to try on it."""

    model_config = _STRICT

    name: Text
    label: Text | None = None
    recipes: Texts = (DENSE,)

    @property
    def title(self) -> str:
        """What the dataset calls it."""
        return self.label or Path(self.name).stem


class DeviceChoice(BaseModel):
    """A card, its modes, and fields replaced at every point."""

    model_config = _STRICT

    name: Text
    label: Text | None = None
    modes: Texts | None = None
    set: dict[str, Value] = {}

    @property
    def title(self) -> str:
        """What tells it from the study's other devices."""
        return self.label or self.name


class Pruning(BaseModel):
    """Settings of one group of layers and encoder blocks; what is None stays as the recipe leaves it."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] | None = None
    layers: Texts | None = None
    blocks: Text | None = None
    block: Block | None = None
    density: Fraction | None = None
    expect: Rule | None = None
    heads: Count | None = None
    mlp: Count | None = None
    tokens: Count | None = None
    keep: Annotated[Fraction, Field(gt=0)] | None = None

    def knob(self, field: str) -> str:
        """Name under which ``field`` of this group varies."""
        return f"{self.name}.{field}" if self.name else field


class Axis(BaseModel):
    """One thing that varies: a knob (or several that move together) and its values, listed or as a range."""

    model_config = _STRICT

    knob: Texts
    label: Text | None = None
    values: Annotated[tuple[Value, ...] | None, BeforeValidator(_values)] = None
    low: Annotated[float | None, Field(alias="from")] = None
    high: Annotated[float | None, Field(alias="to")] = None
    count: Annotated[int, Field(ge=1)] | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    spacing: Literal["linear", "log"] = "linear"
    whole: bool = False
    relative: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ranged = self.low is not None or self.high is not None
        if (self.values is not None) == ranged:
            raise ValueError("expected values = [...], or a range from, to")
        if self.values is not None and (self.count or self.step):
            raise ValueError("count and step belong to a range from, to")
        if self.relative and not all(knob.startswith(CARD) for knob in self.knob):
            raise ValueError("relative multiplies a card's own value; the knob is no card field")
        return self._checked_range() if ranged else self._checked_values()

    def _checked_values(self) -> Self:
        if not self.values:
            raise ValueError("values is empty, which leaves an empty grid")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError("values has entries twice")
        if self.relative and not self.numeric:
            raise ValueError("relative takes numbers, which multiply the card's own")
        return self

    def _checked_range(self) -> Self:
        if self.low is None or self.high is None:
            raise ValueError("a range needs both from and to; without one end it is infinite")
        if self.low >= self.high:
            raise ValueError(f"from = {self.low:g} must be below to = {self.high:g}; the range is empty")
        if self.spacing == "log" and self.low <= 0:
            raise ValueError(f"log spacing needs from > 0, found {self.low:g}")
        if self.count is not None and self.step is not None:
            raise ValueError("count and step exclude each other")
        if self.step is not None and self.spacing == "log":
            raise ValueError("step is for linear spacing; give count")
        return self

    @property
    def title(self) -> str:
        """Name of its column."""
        return self.label or "+".join(knob.removeprefix(CARD) for knob in self.knob)

    @property
    def enumerable(self) -> bool:
        """Whether it has a finite number of values."""
        return self.values is not None or self.count is not None or self.step is not None

    @property
    def numeric(self) -> bool:
        """Whether all its values are numbers."""
        return self.values is None or all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def samples(self) -> tuple[Value, ...]:
        """All values, or both ends of a range that has no count."""
        if self.enumerable:
            return self.points()
        assert self.low is not None and self.high is not None
        return (ceil(self.low), floor(self.high)) if self.whole else (self.low, self.high)

    def points(self) -> tuple[Value, ...]:
        """Its values, in order: as listed, or ascending along a range, both ends included where ``count`` is given."""
        if self.values is not None:
            return self.values
        assert self.low is not None and self.high is not None
        if self.count is not None:
            spread = np.geomspace if self.spacing == "log" else np.linspace
            found = spread(self.low, self.high, self.count).tolist() if self.count > 1 else [self.low]
        else:
            steps = int(np.floor((self.high - self.low) / self.step + 1e-9))  # type: ignore[operator]
            found = [round(self.low + number * self.step, 12) for number in range(steps + 1)]  # type: ignore[operator]
        return tuple(dict.fromkeys(round(value) if self.whole else value for value in found))


class Term(BaseModel):
    """``weight`` times the product of some columns."""

    model_config = _STRICT

    weight: float = 1.0
    of: Texts


class Proxy(BaseModel):
    """A quantity of the user's own, such as an area: a sum of :class:`Term`."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    terms: Annotated[tuple[Term, ...], BeforeValidator(_tuple), Field(min_length=1)]


class Constraint(BaseModel):
    """Bounds of a quantity, both ends included."""

    model_config = _STRICT

    quantity: Text
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected min or max")
        return self

    def __str__(self) -> str:
        low = "" if self.min is None else f"{self.min:g} <= "
        high = "" if self.max is None else f" <= {self.max:g}"
        return f"{low}{self.quantity}{high}"


class Objective(BaseModel):
    """A quantity to minimise or maximise; ``goal`` may be left out where it is plain."""

    model_config = _STRICT

    quantity: Text
    goal: Literal["min", "max"] | None = None


class Accuracy(BaseModel):
    """A CSV file of the user's: one column of accuracies, the others named like columns of the dataset."""

    model_config = _STRICT

    file: Text
    column: Text = "accuracy"


class Search(BaseModel):
    """How a space too large to enumerate is searched."""

    model_config = _STRICT

    sampler: Literal["nsga2", "tpe"] = "nsga2"
    trials: Count = 1000
    batch: Count = 50
    seed: Annotated[int, Field(ge=0)] = 0
    storage: Text | None = None


def _objectives(given: Any) -> Any:
    return (
        tuple({"quantity": item} if isinstance(item, str) else item for item in given) if isinstance(given, list | tuple) else given
    )


class Study(BaseModel):
    """What varies, where, and what to look for; the module's text shows the file."""

    model_config = _STRICT

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    title: str = ""
    method: Literal["grid", "search"] = "grid"
    batch: Count | None = None
    image_size: Count | None = None
    dtype: Text | None = None
    attention: AttentionChoice = "source"
    sparse_kernel: SparseChoice = "auto"
    scope: Scope = "board"
    limit: Count = 1_000_000
    models: Annotated[tuple[ModelChoice, ...], BeforeValidator(_tuple), Field(min_length=1)]
    devices: Annotated[tuple[DeviceChoice, ...], BeforeValidator(_tuple), Field(min_length=1)]
    pruning: Annotated[tuple[Pruning, ...], BeforeValidator(_tuple)] = ()
    vary: Annotated[tuple[Axis, ...], BeforeValidator(_tuple)] = ()
    proxies: Annotated[tuple[Proxy, ...], BeforeValidator(_tuple)] = ()
    constraints: Annotated[tuple[Constraint, ...], BeforeValidator(_tuple)] = ()
    objectives: Annotated[tuple[Objective, ...], BeforeValidator(_objectives), Field(min_length=1)] = (
        Objective(quantity="latency_s"),
        Objective(quantity="energy_j"),
    )
    accuracy: Accuracy | None = None
    search: Search = Search()

    @field_validator("vary", "models", "devices", "proxies", "pruning")
    @classmethod
    def _distinct(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [entry.name if isinstance(entry, Proxy | Pruning) else entry.title for entry in entries]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two entries are called {', '.join(twice)}; give each a name or label of its own")
        return entries

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        endless = [axis.title for axis in self.vary if not axis.enumerable]
        if self.method == "grid" and endless:
            raise ValueError(
                f"{', '.join(endless)}: a range without count or step is an infinite grid; give one, or method = 'search'"
            )
        return self
