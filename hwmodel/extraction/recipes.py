"""Recipes: how a dense model is pruned, as plain checked values. Knows no torch and no files.

``recipe_files`` reads and writes them, ``pruning`` applies them to a trace. Densities are the fraction *kept*; blocks
are ``(out, in)``; counts of tokens are patch tokens (class, distillation and register tokens always stay).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hwmodel.errors import HwmodelError, RecipeError, suggestion
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.masks import BlockMask, ExpectedMask, Rule, Shape

SCHEMA_VERSION = 1
_DIGITS = 9
"""Decimals of ``keep * patches`` that count: beyond them is binary rounding (0.07 * 100 is a little more than 7)."""

_RANGES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


class MaskSource(Protocol):
    """Gives the mask behind a reference in a recipe file."""

    def read(self, reference: str, sha256: object, block: Shape | None) -> BlockMask: ...


@dataclass(frozen=True)
class _Reference:
    """``mask = "masks.npz#name"`` with its ``sha256``, not yet read."""

    text: str
    sha256: object


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python number it is; everything else as it came."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def _as_tuple(value: Any) -> Any:
    """A list (all that TOML knows) as a tuple, numpy scalars as numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list")
    return tuple(_plain(item) for item in value)


def _mask(value: Any, info: ValidationInfo) -> BlockMask | ExpectedMask | None:
    """A mask as it is, or the one a reference in a file points to."""
    if value is None or isinstance(value, BlockMask | ExpectedMask):
        return value
    if not isinstance(value, _Reference) or info.context is None:
        raise ValueError('expected a BlockMask, or "FILE.npz#NAME" in a recipe file')
    source: MaskSource = info.context
    return source.read(value.text, value.sha256, info.data.get("block"))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _heads(value: Any) -> int | tuple[int, ...] | None:
    """A count of heads, or the indices of those kept."""
    plain = _plain(value)
    if plain is None or (_is_index(plain) and plain > 0):
        return None if plain is None else int(plain)
    kept: tuple[int, ...] = _as_tuple(plain) if isinstance(plain, list | tuple) else ()
    if not kept or not all(_is_index(item) for item in kept) or len(set(kept)) != len(kept):
        raise ValueError("expected a count of at least 1, or a list of distinct head indices")
    return kept


def _published(value: Any) -> Any:
    """Informational figures: plain values by name, with their source."""
    if not isinstance(value, dict) or not all(isinstance(item, str | int | float) for item in value.values()):
        raise ValueError("expected a table of numbers and texts")
    if not isinstance(value.get("source"), str) or not value["source"]:
        raise ValueError("needs source = a text that says where the figures are printed")
    return value


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, BeforeValidator(_plain), Field(ge=1)]
Fraction = Annotated[float, BeforeValidator(_plain), Field(ge=0, le=1)]
Globs = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
BlockShape = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_as_tuple)]
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class LayerRule(BaseModel):
    """One ``[[layers]]`` entry: which operators, how sparse, in which number format.

    Parameters
    ----------
    match : globs over operator names; ``*`` also crosses dots
    block : (out, in) elements of one weight block; taken from ``mask`` where that is given
    density : fraction of blocks kept, in [0, 1]
    mask : the mask itself, in place of a density
    expect : how the kept blocks are expected to lie where only a density is known; "uniform" where None
    dtype : number format of the matched operators

    Raises
    ------
    pydantic.ValidationError
        Fields that contradict each other, or lie outside their range.
    """

    model_config = _STRICT

    match: Globs
    block: BlockShape | None = None
    density: Fraction | None = None
    mask: Annotated[BlockMask | ExpectedMask | None, PlainValidator(_mask)] = Field(default=None, validate_default=False)
    expect: Rule | None = None
    dtype: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _join_reference(cls, data: Any) -> Any:
        """Put the reference of a file and its ``sha256`` together; a mask in memory brings its block along."""
        if not isinstance(data, dict):
            return data
        mask = data.get("mask")
        if isinstance(mask, str):
            rest = {name: value for name, value in data.items() if name != "sha256"}
            return rest | {"mask": _Reference(mask, data.get("sha256"))}
        if isinstance(mask, BlockMask | ExpectedMask):
            return {"block": mask.block} | data
        return data

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str | None) -> str | None:
        try:
            return None if dtype is None else check_dtype(dtype)
        except HwmodelError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.density is not None and self.mask is not None:
            raise ValueError("density and mask exclude each other")
        if not self.prunes and self.dtype is None:
            raise ValueError("says nothing: expected block with density or mask, or dtype")
        if self.prunes != (self.block is not None):
            raise ValueError("block = [out, in] and density (or mask) belong together")
        if self.expect is not None and self.density is None:
            raise ValueError("expect says how blocks lie where only a density is known; there is none")
        if self.mask is not None and self.mask.block != self.block:
            raise ValueError(f"block is {self.block}, the mask's is {self.mask.block}")
        return self

    @property
    def prunes(self) -> bool:
        """Whether the entry sets a density or a mask; otherwise it only sets a dtype."""
        return self.density is not None or self.mask is not None


class EncoderRule(BaseModel):
    """One ``[[encoder]]`` entry: structural pruning of some encoder blocks.

    Parameters
    ----------
    blocks : indices of encoder blocks, "4-11" or "0,2,4-6"
    heads : attention heads that stay, as a count or as their indices
    mlp : hidden width of the MLP that stays
    tokens : patch tokens that enter these blocks, and all after them
    keep : the same as a fraction of the model's patch tokens, rounded up
    """

    model_config = _STRICT

    blocks: str
    heads: Annotated[int | tuple[int, ...] | None, PlainValidator(_heads)] = None
    mlp: Count | None = None
    tokens: Count | None = None
    keep: Annotated[Fraction, Field(gt=0)] | None = None

    @field_validator("blocks")
    @classmethod
    def _ranges(cls, blocks: str) -> str:
        text = blocks.replace(" ", "")
        if not _RANGES.fullmatch(text) or any(last < first for first, last in _spans(text)):
            raise ValueError('expected block indices such as "4-11" or "0,2,4-6"')
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tokens is not None and self.keep is not None:
            raise ValueError("tokens and keep exclude each other")
        if self.heads is None and self.mlp is None and self.tokens is None and self.keep is None:
            raise ValueError("says nothing: expected heads, mlp, tokens or keep")
        return self

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks meant, ascending, each once."""
        return tuple(sorted({index for first, last in _spans(self.blocks) for index in range(first, last + 1)}))

    def patch_tokens(self, patches: int) -> int | None:
        """Patch tokens that stay of ``patches``; None where the entry drops none."""
        if self.keep is not None:
            return ceil(round(self.keep * patches, _DIGITS))
        return self.tokens


def _spans(text: str) -> list[tuple[int, int]]:
    """(first, last) of every part of "0,2,4-6"."""
    pairs = [part.partition("-") for part in text.split(",")]
    return [(int(first), int(last or first)) for first, _, last in pairs]


class VitaDesign(BaseModel):
    """``[vita]``: the processing element that the pruned model is meant for, in MACs, "out x in"."""

    model_config = _STRICT

    pe: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}$")]


class Recipe(BaseModel):
    """How one dense model is pruned.

    Parameters
    ----------
    model : timm name of the dense model
    source : where the recipe comes from
    remarks : what a reader should know, such as contradictions of the source
    image_size : pixels of the square input that the figures belong to, where it is not the model's own
    vita : design point of the ViTA accelerator
    published : figures printed by the source, for information; ``source`` among them
    layers : sparsity and formats of single operators; later entries win
    encoder : structural pruning of encoder blocks; later entries win

    Raises
    ------
    pydantic.ValidationError
        Fields that are missing, unknown or out of range. :meth:`from_document` tells it as a RecipeError.
    """

    model_config = _STRICT

    schema_version: Literal[1] = 1
    model: Text
    source: Text
    remarks: Text | None = None
    image_size: Count | None = None
    vita: VitaDesign | None = None
    published: Annotated[dict[str, str | int | float], BeforeValidator(_published)] | None = None
    layers: Annotated[tuple[LayerRule, ...], BeforeValidator(_as_tuple)] = ()
    encoder: Annotated[tuple[EncoderRule, ...], BeforeValidator(_as_tuple)] = ()

    @property
    def design(self) -> dict[str, dict[str, str]]:
        """Design points by backend, as :class:`hwmodel.Trace` carries them."""
        return {} if self.vita is None else {"vita": {"pe": self.vita.pe}}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], where: str | Path, masks: MaskSource | None = None) -> Recipe:
        """Check a parsed recipe file.

        Raises
        ------
        RecipeError
            One line with ``where`` and every problem, each with the field's path.
        """
        problems = [] if "schema_version" in document else [f"schema_version: missing, expected {SCHEMA_VERSION}"]
        try:
            recipe = cls.model_validate(document, context=masks)
        except ValidationError as error:
            problems += _problems(error)
        if problems:
            raise RecipeError(f"{where}: " + "; ".join(problems))
        return recipe

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, model: str, source: str = "what-if") -> Recipe:
        """A recipe from operator name (or glob) to a mask, or to the fields of a ``[[layers]]`` entry.

        ``{"blocks.*.mlp.fc?": {"block": (64, 64), "density": 0.2}, "head": mask}``; later entries win.

        Raises
        ------
        RecipeError
            Every problem, each with the entry and the field.
        """
        rules, problems = [], []
        for name, value in mapping.items():
            fields = {"mask": value} if isinstance(value, BlockMask | ExpectedMask) else value
            if not isinstance(fields, Mapping) or "match" in fields:
                problems.append(f"{name}: expected a mask, or a mapping with block, density, mask, expect, dtype; found {value!r}")
                continue
            try:
                rules.append(LayerRule.model_validate({"match": [name], **fields}))
            except ValidationError as error:
                problems += _problems(error, prefix=name)
        if problems:
            raise RecipeError("recipe: " + "; ".join(problems))
        return cls(model=model, source=source, layers=tuple(rules))


_PARTS: dict[str, type[BaseModel]] = {"layers": LayerRule, "encoder": EncoderRule, "vita": VitaDesign}


def _problems(error: ValidationError, prefix: str = "") -> list[str]:
    """Every problem as "path: what was expected, what was found"."""
    told = []
    for item in error.errors():
        parts = [prefix] * bool(prefix) + [str(part) for part in item["loc"]]
        told.append(f"{'.'.join(parts)}: {_problem(item, LayerRule if prefix else _part(parts))}")
    return list(dict.fromkeys(told))


def _part(parts: list[str]) -> type[BaseModel]:
    """The table a path leads into."""
    return _PARTS.get(parts[0], Recipe) if len(parts) > 1 else Recipe


def _problem(item: Any, part: type[BaseModel]) -> str:
    found = item["input"]
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        if part is LayerRule and key == "sha256":
            return "belongs to a mask, and the entry has none"
        return f"unknown key; {suggestion(key, [*part.model_fields, *(['sha256'] if part is LayerRule else [])])}"
    if item["type"] == "missing":
        return "missing"
    text = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    text = text if item["type"] == "value_error" else f"expected {text}"
    if isinstance(found, dict | _Reference | BaseModel):
        return text
    return f"{text}, found {found!r}"
