"""Traces on disk: JSON or Parquet, by the file's ending, with a schema version. What is saved loads back equal."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np

from hwmodel.errors import HwmodelError, TraceFormatError
from hwmodel.files import write_file
from hwmodel.ir.findings import WeightFinding
from hwmodel.ir.masks import BlockMask, ExpectedMask, Mask, grid_shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    from pydantic import BaseModel

SCHEMA_VERSION = 1
_FORMAT = "hwmodel-trace"
_PARQUET_KEY = b"hwmodel"
_DERIVED = frozenset({"macs", "kept_macs"})
"""What ``hwmodel trace --json`` adds for its readers; left out when such a file is loaded."""

FINDING_SUMS = ("nominal_macs", "effective_macs", "unexplained_zeros")
"""What ``hwmodel trace --json`` adds to each finding; left out likewise."""

_DEFAULTS = {item.name: item.default for item in fields(Operator) if item.default is not MISSING}

Document = dict[str, Any]


def mask_to_document(mask: Mask) -> Document:
    """A mask as plain values; the grid bit-packed, row by row, most significant bit first, in base64."""
    head: Document = {"shape": list(mask.shape), "block": list(mask.block)}
    if isinstance(mask, BlockMask):
        return head | {"rule": "stored", "bits": base64.b64encode(np.packbits(mask.kept).tobytes()).decode()}
    return head | {"rule": "uniform", "kept_blocks": mask.kept_blocks}


def mask_from_document(document: Document) -> BlockMask | ExpectedMask:
    """Inverse of :func:`mask_to_document`."""
    shape, block = tuple(document["shape"]), tuple(document["block"])
    if document["rule"] == "uniform":
        return ExpectedMask(shape, block, document["kept_blocks"])
    if document["rule"] != "stored":
        raise ValueError(f"mask rule is {document['rule']!r}, expected 'stored' or 'uniform'")
    rows, cols = grid_shape(shape, block)
    bits = np.frombuffer(base64.b64decode(document["bits"], validate=True), dtype=np.uint8)
    if bits.size != -(-rows * cols // 8):
        raise ValueError(f"{bits.size} bytes of mask bits do not hold {rows}x{cols} blocks")
    return BlockMask(shape, block, np.unpackbits(bits, count=rows * cols).astype(np.bool_).reshape(rows, cols))


def operator_to_document(operator: Operator) -> Document:
    """The fields that differ from their defaults; the mask by its digest."""
    values = {item.name: getattr(operator, item.name) for item in fields(Operator) if item.name != "mask"}
    document = {name: value for name, value in values.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    if operator.mask is not None:
        document["mask"] = operator.mask.digest
    return document


def finding_to_document(finding: WeightFinding) -> Document:
    """The fields of a finding; the block as a list."""
    document = asdict(finding)
    return document | {"block": None if finding.block is None else list(finding.block)}


def _finding_from_document(row: Document) -> WeightFinding:
    """Inverse of :func:`finding_to_document`."""
    block = row.get("block")
    row = {name: value for name, value in row.items() if name not in FINDING_SUMS}
    row |= {"block": tuple(block) if isinstance(block, list) else block}
    _row_schema(WeightFinding).model_validate(row)
    return WeightFinding(**row)


def trace_to_document(trace: Trace) -> Document:
    """The whole trace as plain JSON values; each distinct mask is stored once."""
    masks = {mask.digest: mask_to_document(mask) for op in trace.operators if (mask := op.mask) is not None}
    optional: Document = {"removed_macs": trace.removed_macs} if trace.removed_macs else {}
    if trace.findings:
        optional["findings"] = [finding_to_document(finding) for finding in trace.findings]
    if trace.notes:
        optional["notes"] = list(trace.notes)
    return optional | {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": trace.model,
        "batch": trace.batch,
        "input_shape": list(trace.input_shape),
        "dtype": trace.dtype,
        "versions": dict(trace.versions),
        "design": {backend: dict(fields) for backend, fields in trace.design.items()},
        "operators": [operator_to_document(operator) for operator in trace.operators],
        "edges": [list(edge) for edge in trace.edges],
        "masks": masks,
    }


@cache
def _row_schema(kind: type[Operator | WeightFinding]) -> type[BaseModel]:
    """The strict schema of one row, made from the fields of its dataclass."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind)
    columns: dict[str, Any] = {
        item.name: (hints[item.name], ... if item.default is MISSING else item.default) for item in fields(kind)
    }
    strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return create_model(f"{kind.__name__}Row", __config__=strict, **columns)


@cache
def _head_schema() -> type[BaseModel]:
    """The strict schema of everything around the rows."""
    from pydantic import ConfigDict, Field, create_model

    columns: dict[str, Any] = {
        "format": str,
        "schema_version": int,
        "model": str,
        "batch": Annotated[int, Field(ge=1)],
        "input_shape": list[int],
        "dtype": str | None,
        "versions": dict[str, str],
        "design": dict[str, dict[str, str]],
        "operators": list[Document],
        "edges": list[Annotated[list[int], Field(min_length=2, max_length=2)]],
        "masks": dict[str, Document],
    }
    required: dict[str, Any] = {name: (hint, ...) for name, hint in columns.items()}
    optional: dict[str, Any] = {
        "removed_macs": (Annotated[int, Field(ge=0)], 0),
        "findings": (list[Document], []),
        "notes": (list[str], []),
    }
    return create_model("TraceDocument", __config__=ConfigDict(extra="forbid", strict=True), **required, **optional)


def _masks_from_document(documents: Mapping[str, Document]) -> dict[str, Mask]:
    masks: dict[str, Mask] = {}
    for digest, document in documents.items():
        try:
            masks[digest] = mask_from_document(document)
        except (KeyError, TypeError, ValueError) as error:
            told = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise TraceFormatError(f"mask {digest}: {told}") from error
        if masks[digest].digest != digest:
            raise TraceFormatError(f"mask {digest}: its content has another digest; the file was changed, trace the model again")
    return masks


def _without_derived(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in _DERIVED}


def _operator_from_document(row: Document, masks: Mapping[str, Mask]) -> Operator:
    row = _without_derived(row)
    if row.get("mask") is not None:
        if row["mask"] not in masks:
            raise TraceFormatError(f"operator {row.get('name')!r}: mask {row['mask']!r} is not in the file")
        row["mask"] = masks[row["mask"]]
    _row_schema(Operator).model_validate(row)
    return Operator(**row)


def trace_from_document(document: Document) -> Trace:
    """Inverse of :func:`trace_to_document`.

    Raises
    ------
    TraceFormatError
        Not a trace, a schema version we do not know, or rows that do not validate.
    """
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise TraceFormatError(f"not a trace: expected a JSON object with format {_FORMAT!r}")
    if document.get("schema_version") != SCHEMA_VERSION:
        found = document.get("schema_version")
        raise TraceFormatError(f"schema_version is {found!r}, this hwmodel reads {SCHEMA_VERSION}; extract the model again")
    from pydantic import ValidationError

    try:
        document = _without_derived(document)
        _head_schema().model_validate(document)
        masks = _masks_from_document(document["masks"])
        return Trace(
            model=document["model"],
            operators=tuple(_operator_from_document(row, masks) for row in document["operators"]),
            edges=tuple((producer, consumer) for producer, consumer in document["edges"]),
            batch=document["batch"],
            input_shape=tuple(document["input_shape"]),
            dtype=document["dtype"],
            versions=document["versions"],
            design=document["design"],
            removed_macs=document.get("removed_macs", 0),
            findings=tuple(_finding_from_document(row) for row in document.get("findings", [])),
            notes=tuple(document.get("notes", [])),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] in {"missing", "extra_forbidden"} else f", found {str(first['input'])[:80]!r}"
        raise TraceFormatError(f"field {where}: {first['msg']}{found}; not as hwmodel writes it, trace the model again") from error
    except ValueError as error:
        raise TraceFormatError(str(error)) from error


def _to_parquet(document: Document) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = json.dumps({key: value for key, value in document.items() if key != "operators"}, sort_keys=True)
    names = [item.name for item in fields(Operator)]
    rows = [{name: row.get(name, _DEFAULTS.get(name)) for name in names} for row in document["operators"]]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({_PARQUET_KEY: head.encode()})
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _from_parquet(data: bytes) -> Document:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(BytesIO(data), use_threads=False)
    except (pa.ArrowException, OSError) as error:  # OSError where the footer is damaged
        raise TraceFormatError("not a Parquet file, or a truncated one") from error
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    if _PARQUET_KEY not in metadata:
        raise TraceFormatError("a Parquet file, but not a trace: the hwmodel header is missing")
    document: Document = json.loads(metadata[_PARQUET_KEY])
    if not isinstance(document, dict):
        raise TraceFormatError("a Parquet file, but not a trace: its hwmodel header is no JSON object")
    rows = table.to_pylist()
    document["operators"] = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return document


def is_trace_file(path: str | Path) -> bool:
    """Whether the ending names a trace file."""
    return Path(path).suffix in {".json", ".parquet"}


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as ``.json`` or ``.parquet``; the same trace gives the same bytes.

    Raises
    ------
    HwmodelError
        Another ending, or a path that cannot be written.
    """
    if not is_trace_file(path):
        raise HwmodelError(f"{path}: expected a file name that ends in .json or .parquet")
    document = trace_to_document(trace)
    if Path(path).suffix == ".parquet":
        write_file(path, _to_parquet(document))
    else:
        write_file(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise TraceFormatError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def load_trace(path: str | Path) -> Trace:
    """Read a trace that :func:`save_trace` wrote.

    Raises
    ------
    TraceFormatError
        A missing, truncated or foreign file, told with its path.
    """
    try:
        data = _read_bytes(path)
        document = _from_parquet(data) if Path(path).suffix == ".parquet" else json.loads(data)
        return trace_from_document(document)
    except json.JSONDecodeError as error:
        raise TraceFormatError(f"{path}: not JSON, or truncated (line {error.lineno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise TraceFormatError(f"{path}: not JSON text") from error
    except TraceFormatError as error:
        raise TraceFormatError(f"{path}: {error}") from error
