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

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from hwmodel.backends.base import AttentionChoice, Scope, SparseChoice
from hwmodel.errors import HwmodelError
from hwmodel.exploration.axes import STRICT, Axis, Text, Texts, Value, as_block, as_tuple
from hwmodel.ir.masks import Rule

DENSE = "dense"
RUN_KNOBS = ("batch", "image_size", "dtype", "attention", "sparse_kernel")
PRUNING_KNOBS = ("density", "block", "expect", "heads", "mlp", "tokens", "keep")


class StudyError(HwmodelError):
    """A study that does not validate, or that no machine or model fits: every problem at once, each with its path."""


Block = Annotated[str, BeforeValidator(as_block), Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelChoice(BaseModel):
    """A model and the recipes to try on it."""

    model_config = STRICT

    name: Text
    label: Text | None = None
    recipes: Texts = (DENSE,)

    @property
    def title(self) -> str:
        """What the dataset calls it."""
        return self.label or Path(self.name).stem


class DeviceChoice(BaseModel):
    """A card, its modes, and fields replaced at every point."""

    model_config = STRICT

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

    model_config = STRICT

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


class Term(BaseModel):
    """``weight`` times the product of some columns."""

    model_config = STRICT

    weight: float = 1.0
    of: Texts


class Proxy(BaseModel):
    """A quantity of the user's own, such as an area: a sum of :class:`Term`."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    terms: Annotated[tuple[Term, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class Constraint(BaseModel):
    """Bounds of a quantity, both ends included."""

    model_config = STRICT

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

    model_config = STRICT

    quantity: Text
    goal: Literal["min", "max"] | None = None


class Accuracy(BaseModel):
    """A CSV file of the user's: one column of accuracies, the others named like columns of the dataset."""

    model_config = STRICT

    file: Text
    column: Text = "accuracy"


class Search(BaseModel):
    """How a space too large to enumerate is searched."""

    model_config = STRICT

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

    model_config = STRICT

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
    models: Annotated[tuple[ModelChoice, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    devices: Annotated[tuple[DeviceChoice, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    pruning: Annotated[tuple[Pruning, ...], BeforeValidator(as_tuple)] = ()
    vary: Annotated[tuple[Axis, ...], BeforeValidator(as_tuple)] = ()
    proxies: Annotated[tuple[Proxy, ...], BeforeValidator(as_tuple)] = ()
    constraints: Annotated[tuple[Constraint, ...], BeforeValidator(as_tuple)] = ()
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
