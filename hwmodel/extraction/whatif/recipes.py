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
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hwmodel.errors import HwmodelError, RecipeError, suggestion
from hwmodel.extraction.whatif.token_rules import Selection, TokenCounts, check_tokens, counts_document, token_counts
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.masks import BlockMask, ExpectedMask, Rule, Shape

SCHEMA_VERSION = 1
_SCALE_BITS = 16

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


def _pattern(value: Any) -> Any:
    """A text as it is: a number here was most likely meant as a density."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f'expected a pattern such as "2:4", found {value!r}; density says which part is kept')
    return value


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
Parts = Annotated[tuple[Literal["attention", "mlp"], ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Pattern = Annotated[str, BeforeValidator(_pattern), Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")]
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
    sparsity : pattern "N:M" in place of blocks: N of every M neighbouring inputs are kept
    dtype : number format of the matched operators
    weight_dtype : number format of their weights where it differs
    group : neighbouring weights of a row that share one scale; more than a row where one scale serves several
    scale_bits : bits of a scale and its zero point together; 16 where None

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
    sparsity: Pattern | None = None
    dtype: str | None = None
    weight_dtype: str | None = None
    group: Count | None = None
    scale_bits: Count | None = None

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

    @field_validator("dtype", "weight_dtype")
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
        if self.sparsity is not None and (self.density is not None or self.mask is not None or self.block is not None):
            raise ValueError("sparsity is a pattern in place of blocks; leave block, density and mask out")
        if not self.prunes and not self.formats:
            raise ValueError("says nothing: expected block with density or mask, sparsity, dtype or weight_dtype")
        if self.group is not None and not self.formats:
            raise ValueError("group says how quantised weights are scaled; there is no dtype or weight_dtype")
        if self.scale_bits is not None and self.group is None:
            raise ValueError("scale_bits says how large the scale of a group is; there is no group")
        if (self.prunes and self.sparsity is None) != (self.block is not None):
            raise ValueError("block = [out, in] and density (or mask) belong together")
        if self.expect is not None and self.density is None:
            raise ValueError("expect says how blocks lie where only a density is known; there is none")
        if self.mask is not None and self.mask.block != self.block:
            raise ValueError(f"block is {self.block}, the mask's is {self.mask.block}")
        return self

    @property
    def prunes(self) -> bool:
        """Whether the entry sets a density, a mask or a pattern; otherwise it only sets number formats."""
        return self.density is not None or self.mask is not None or self.sparsity is not None

    @property
    def formats(self) -> bool:
        """Whether the entry sets number formats."""
        return self.dtype is not None or self.weight_dtype is not None

    def scale_bytes(self, n: int, k: int) -> int:
        """Bytes of the scales of an (n, k) weight."""
        if self.group is None:
            return 0
        scales = n * ceil(k / self.group) if self.group <= k else ceil(n * k / self.group)
        return ceil(scales * (self.scale_bits or _SCALE_BITS) / 8)


class EncoderRule(BaseModel):
    """One ``[[encoder]]`` entry: structural pruning of some encoder blocks.

    Parameters
    ----------
    blocks : indices of encoder blocks, "4-11" or "0,2,4-6"
    heads : attention heads that stay, as a count or as their indices
    qk, v : width of one head that stays, of its queries and keys, and of its values
    mlp : hidden width of the MLP that stays
    remove : "attention", "mlp" or both: gone with their normalisation and their residual addition
    identity : the same, replaced by ``nn.Identity``: normalisation and addition stay
    tokens : patch tokens that enter these blocks, and all after them; or {values = [...], probability = [...]}
    keep : the same as a fraction of the model's patch tokens, rounded up; of those present where ``select`` scores them
    select : "given" (default): nothing here says which tokens stay; "attention": by the class token's attention, behind
        that of the block, as ``topk_tokens`` does; "threshold": as ``threshold_tokens`` does
    fused : add one token, the weighted sum of those that ``select = "attention"`` drops
    merge : pairs of patch tokens that each of these blocks merges, as ``merge_tokens`` does; where fewer are left, those
    """

    model_config = _STRICT

    blocks: str
    heads: Annotated[int | tuple[int, ...] | None, PlainValidator(_heads)] = None
    qk: Count | None = None
    v: Count | None = None
    mlp: Count | None = None
    remove: Parts | None = None
    identity: Parts | None = None
    tokens: Annotated[int | TokenCounts | None, PlainValidator(token_counts), PlainSerializer(counts_document)] = None
    keep: Annotated[Fraction, Field(gt=0)] | None = None
    select: Selection | None = None
    fused: bool | None = None
    merge: Count | None = None

    @field_validator("blocks")
    @classmethod
    def _ranges(cls, blocks: str) -> str:
        text = blocks.replace(" ", "")
        if not _RANGES.fullmatch(text) or any(last < first for first, last in _spans(text)):
            raise ValueError('expected block indices such as "4-11" or "0,2,4-6"')
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_tokens(self)
        if all(getattr(self, field) is None for field in type(self).model_fields if field != "blocks"):
            raise ValueError("says nothing: expected heads, qk, v, mlp, remove, identity, tokens, keep or merge")
        return self

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks meant, ascending, each once."""
        return tuple(sorted({index for first, last in _spans(self.blocks) for index in range(first, last + 1)}))


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
    classes : outputs of the classifier, where they are not the model's own
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
    classes: Count | None = None
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
