"""Final names: the module path, made unique."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from hwmodel.extraction.recording.graph import Record, Recording
from hwmodel.extraction.recording.roles import Attention, Structure

_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
_STEMS = re.compile(r"^q?weight(_orig|_g|_v|_q|_?int[48])?$")


def names(recording: Recording, structure: Structure) -> list[str]:
    """One unique name per row.

    A row with a weight is named after the module that owns it ("blocks.3.attn.qkv"), a row that is all its module
    does after the module ("blocks.3.norm1"), any other by module and what it is ("blocks.3.attn.softmax").
    """
    owners = [owner_of(record.weight) if record.weight else "" for record in recording.records]
    spelled = {attention.softmax for attention in structure.attentions if _owns_softmax(recording, attention)}
    sole = _principals(recording.records, owners, recording.classes) - spelled
    wanted = [
        owner or (record.module if index in sole else _below(record, structure.roles.get(index, "")))
        for index, (record, owner) in enumerate(zip(recording.records, owners, strict=True))
    ]
    return _unique(wanted)


def _owns_softmax(recording: Recording, attention: Attention) -> bool:
    """Whether the module that multiplies takes the softmax too, so that the module's name is not the softmax's."""
    return recording.records[attention.softmax].module == attention.module


def owner_of(parameter: str) -> str:
    """Path of the layer a parameter belongs to, "" for the model itself.

    >>> owner_of("blocks.0.attn.qkv.weight"), owner_of("layers.0.self_attn.in_proj_weight")
    ('blocks.0.attn.qkv', 'layers.0.self_attn.in_proj')
    """
    path, _, last = _PARAMETRIZED.sub(r"\1", parameter).rpartition(".")
    if _STEMS.match(last):
        return path
    return f"{path}.{last}".strip(".").removesuffix("_weight")


def _principals(records: Sequence[Record], owners: Sequence[str], classes: Mapping[str, str]) -> frozenset[int]:
    """Rows that stand for their whole module: the only sort of row of a leaf module that no weight names."""
    parents = {path.rpartition(".")[0] for path in classes}
    named = set(owners)
    rows: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.module and record.module not in parents and record.module not in named:
            rows[record.module].append(index)
    return frozenset(index for group in rows.values() for index in _main_rows(group, records))


def _main_rows(group: list[int], records: Sequence[Record]) -> list[int]:
    """Rows of the one row-wise kind among a leaf's rows, or all of them where there is just one kind."""
    norms = [index for index in group if records[index].operator.family == "rowwise"]
    kinds = {records[index].operator.kind for index in norms or group}
    return (norms or group) if len(kinds) == 1 else []


def _below(record: Record, role: str) -> str:
    operator = record.operator
    suffix = operator.name or role or operator.kind
    return f"{record.module}.{suffix}" if record.module else suffix


def _unique(wanted: Sequence[str]) -> list[str]:
    """``wanted`` with ``_1``, ``_2``, ... where a name comes again."""
    taken = set(wanted)
    seen: set[str] = set()
    found = []
    for name in wanted:
        free, number = name, 0
        while free in seen or (number and free in taken):
            number += 1
            free = f"{name}_{number}"
        seen.add(free)
        found.append(free)
    return found
