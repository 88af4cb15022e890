"""Estimates as `hwmodel estimate --json` prints them, read back and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hwmodel.errors import HwmodelError

_SCHEMA_VERSION = 1


class PricedOperator(BaseModel):
    """What is compared of one operator; other columns are left unread."""

    model_config = {"frozen": True, "allow_inf_nan": False}

    name: str
    latency_s: float = Field(ge=0)
    energy_j: float
    bound: str


class Priced(BaseModel):
    """One object of the list that `hwmodel estimate --json` prints."""

    model_config = {"frozen": True, "allow_inf_nan": False}

    model: str
    device: str
    mode: str
    batch: int
    dtype: str
    latency_s: float = Field(ge=0)
    energy_j: float
    energy_scope: str
    fidelity: dict[str, str]
    operators: tuple[PricedOperator, ...]
    schema_version: int
    versions: dict[str, str]


def read_priced(path: str) -> list[Priced]:
    """The estimates in a file, one per device.

    Raises
    ------
    HwmodelError
        A file that cannot be read, is no such list, or is of another schema version.
    """
    documents = _documents(path)
    for one in documents:
        if isinstance(one, dict) and "rows" in one and "operators" not in one:
            raise HwmodelError(f"{path}: prices a distribution of token counts, which has no list of operators; price one count")
    try:
        found = [Priced.model_validate(one) for one in documents]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise HwmodelError(f"{path}: not what `hwmodel estimate --json` prints: {where}: {first['msg']}") from error
    for estimate in found:
        if estimate.schema_version != _SCHEMA_VERSION:
            raise HwmodelError(
                f"{path}: schema version {estimate.schema_version}, this hwmodel reads {_SCHEMA_VERSION}; price again"
            )
    return found


def _documents(path: str) -> list[Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HwmodelError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not JSON, not UTF-8, a NUL character in the name
        raise HwmodelError(f"{path}: not JSON ({error}); expected the output of `hwmodel estimate --json`") from error
    if isinstance(document, dict) and "operators" in document and "latency_s" not in document:
        raise HwmodelError(f"{path}: a saved trace has no cost; say with --device where to price both files")
    if not isinstance(document, list) or not document:
        raise HwmodelError(f"{path}: expected the list that `hwmodel estimate --json` prints")
    return document
