"""Cost tables on disk: Parquet, CSV or JSON by the file's ending, with a schema version. What is saved loads back equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.backends.estimates import Estimate
from hwmodel.errors import HwmodelError
from hwmodel.exploration.costs import COLUMNS, CostTable, plain_values
from hwmodel.files import write_file
from hwmodel.ir.storage import trace_to_document
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
ENDINGS = (".parquet", ".csv", ".json")
_FORMAT = "hwmodel-cost-table"
_PARQUET_KEY = b"hwmodel"
_CSV_HEAD = "# "
_TEXT = ("group", "name", "role", "dtype", "latency_fidelity", "energy_fidelity")
_WHOLE = ("batch", "tokens", "heads", "block_out", "block_in", "kept_blocks", "all_blocks")


def described(traces: Sequence[Trace], found: Estimate, expect: str, layers: str | Sequence[str]) -> dict[str, Any]:
    """What a table is of, as plain JSON values; ``found`` is one of its estimates."""
    card = found.card.model_dump(mode="json", exclude={"scores"})
    options = found.options
    return {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": found.trace.model,
        "device": found.device,
        "mode": found.mode,
        "attention": options.attention,
        "sparse_kernel": options.sparse_kernel,
        "energy_scope": options.scope,
        "expect": expect,
        "layers": [layers] if isinstance(layers, str) else list(layers),
        "overrides": {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.overrides.items()},
        "trace_sha256": {str(trace.batch): _sha256(trace_to_document(trace)) for trace in traces},
        "card_sha256": _sha256(card),
        "versions": {"hwmodel": version("hwmodel"), **found.trace.versions},
    }


def _sha256(document: Mapping[str, Any]) -> str:
    """Of the canonical JSON text: keys sorted, no spaces."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def typed(columns: Mapping[str, Any]) -> pd.DataFrame:
    """A frame with the columns of :data:`COLUMNS`: text, whole numbers that may be null, and floats."""
    import pandas as pd

    frame = pd.DataFrame({name: columns[name] for name in COLUMNS})
    kinds = dict.fromkeys(_TEXT, "object") | dict.fromkeys(_WHOLE, "Int64")
    return frame.astype({name: kinds.get(name, "float64") for name in COLUMNS})


def save_cost_table(table: CostTable, path: str | Path) -> None:
    """Write a table; the ending chooses Parquet, CSV (first line a comment with ``about``) or JSON.

    Raises
    ------
    HwmodelError
        Another ending, or a file that cannot be written.
    """
    writers: dict[str, Callable[[CostTable], bytes | str]] = {".parquet": _parquet, ".csv": _csv, ".json": _json}
    ending = Path(path).suffix
    if ending not in writers:
        raise HwmodelError(f"{path}: expected a file name that ends in {' or '.join(ENDINGS)}")
    write_file(path, writers[ending](table))


def save_nested(nested: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Write ``{layer: {width: cost}}`` as JSON, as :meth:`CostTable.nested` gives it."""
    write_file(path, json.dumps(nested, indent=1, allow_nan=False) + "\n")


def _parquet(table: CostTable) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table.rows, preserve_index=False).replace_schema_metadata(
        {_PARQUET_KEY: _text(table.about).encode()}
    )
    buffer = BytesIO()
    pq.write_table(arrow, buffer)
    return buffer.getvalue()


def _csv(table: CostTable) -> str:
    return f"{_CSV_HEAD}{_text(table.about)}\n{table.rows.to_csv(index=False, lineterminator=chr(10))}"


def _json(table: CostTable) -> str:
    columns = {name: plain_values(table.rows[name]) for name in COLUMNS}
    return json.dumps({**table.about, "columns": columns}, allow_nan=False) + "\n"


def _text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, allow_nan=False)


def load_cost_table(path: str | Path) -> CostTable:
    """Read a table that :func:`save_cost_table` or ``hwmodel cost-table`` wrote.

    Raises
    ------
    HwmodelError
        A file that cannot be read, is no cost table, or has another schema version.
    """
    readers = {".parquet": _from_parquet, ".csv": _from_csv, ".json": _from_json}
    ending = Path(path).suffix
    if ending not in readers:
        raise HwmodelError(f"{path}: expected a file name that ends in {' or '.join(ENDINGS)}")
    try:
        about, columns = readers[ending](Path(path).read_bytes())
    except OSError as error:
        raise HwmodelError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HwmodelError(f"{path}: not a cost table ({error})") from error
    if about.get("format") != _FORMAT or about.get("schema_version") != SCHEMA_VERSION:
        found = f"{about.get('format')!r}, schema version {about.get('schema_version')!r}"
        raise HwmodelError(f"{path}: expected a cost table of schema version {SCHEMA_VERSION}, found {found}")
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise HwmodelError(f"{path}: columns are missing: {', '.join(missing)}")
    try:
        return CostTable(typed(columns), about)
    except (ValueError, TypeError) as error:
        raise HwmodelError(f"{path}: not a cost table ({error})") from error


def _from_parquet(content: bytes) -> tuple[dict[str, Any], Any]:
    import pyarrow.parquet as pq

    arrow = pq.read_table(BytesIO(content), use_threads=False)  # pyarrow 26's threads abort at exit
    head = (arrow.schema.metadata or {}).get(_PARQUET_KEY)
    if head is None:
        raise ValueError("it says nothing about itself")
    return json.loads(head), {name: arrow[name].to_pandas(types_mapper=_nullable) for name in arrow.column_names}


def _nullable(kind: Any) -> Any:
    import pandas as pd
    import pyarrow as pa

    return pd.Int64Dtype() if pa.types.is_integer(kind) else None


def _from_csv(content: bytes) -> tuple[dict[str, Any], Any]:
    import pandas as pd

    head, _, body = content.decode().partition("\n")
    if not head.startswith(_CSV_HEAD):
        raise ValueError("the first line does not say what it is")
    numbers = {name: [""] for name in COLUMNS if name not in _TEXT}
    frame = pd.read_csv(BytesIO(body.encode()), dtype="object", keep_default_na=False, na_values=numbers)
    return json.loads(head.removeprefix(_CSV_HEAD)), {name: frame[name] for name in frame.columns}


def _from_json(content: bytes) -> tuple[dict[str, Any], Any]:
    document = json.loads(content)
    if not isinstance(document, dict) or not isinstance(document.get("columns"), dict):
        raise ValueError("expected an object with columns")
    columns = document.pop("columns")
    return document, {name: [np.nan if value is None else value for value in column] for name, column in columns.items()}
