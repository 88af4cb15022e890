"""What varies in a study: a knob, or several that move together, and its values, listed or as a range."""

from __future__ import annotations

from math import ceil, floor
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

CARD = "card."
Value = str | bool | int | float
"""What a knob can be set to."""
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)
"""Of every table of a study file."""


def _listed(value: Any) -> Any:
    """One thing as a list of one."""
    return (value,) if isinstance(value, str) else as_tuple(value)


def as_tuple(value: Any) -> Any:
    """A list, as TOML has it, as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def as_block(value: Any) -> Any:
    """``[32, 64]`` as "32x64", the form that is written down."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value):
        return f"{value[0]}x{value[1]}"
    return value


def _values(given: Any) -> Any:
    return tuple(as_block(value) for value in given) if isinstance(given, list | tuple) else given


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]


class Axis(BaseModel):
    """One thing that varies: a knob (or several that move together) and its values, listed or as a range."""

    model_config = STRICT

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
