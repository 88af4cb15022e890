"""Results on disk: one Parquet dataset of numbered parts, each written beside and renamed, all of one study.

``FOLDER/study.json`` says whose results these are; ``FOLDER/points/part-000000.parquet`` and its like hold the points, with
the study's fingerprint in their metadata. A part is there whole or not at all: a run that was killed goes on with those that
are missing. The folder is locked while a run writes to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.exploration.axes import CARD
from hwmodel.exploration.quantities import QUANTITIES, Columns
from hwmodel.exploration.study import Study, StudyError
from hwmodel.files import write_file

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
_KEY = b"hwmodel"
_TEXTS = ("model", "recipe", "device", "mode", "dtype", "latency_fidelity", "energy_fidelity")


def schema(study: Study, fingerprint: str) -> pa.Schema:
    """Columns of a study's dataset, with the fingerprint as metadata. Text is dictionary-coded; what a card lacks is null."""
    import pyarrow as pa

    text, number = pa.dictionary(pa.int32(), pa.string()), pa.float64()
    fields: dict[str, Any] = {"point": pa.int64(), "model": text, "recipe": text, "device": text, "mode": text}
    fields |= {"batch": pa.int64(), "dtype": text}
    for axis in study.vary:
        values = axis.points() if axis.enumerable else ((1 if axis.whole else 1.0),)
        fields.setdefault(axis.title, _arrow_type(values, text))
    fields |= dict.fromkeys((name for name in QUANTITIES if name != "accuracy" or study.accuracy), number)
    fields |= dict.fromkeys((proxy.name for proxy in study.proxies), number)
    asked = [*(one.quantity for one in study.objectives), *(one.quantity for one in study.constraints)]
    fields |= dict.fromkeys((name for name in asked if name.startswith(CARD)), number)
    fields |= {"feasible": pa.bool_(), "latency_fidelity": text, "energy_fidelity": text}
    head = {"schema_version": SCHEMA_VERSION, "study": study.name, "fingerprint": fingerprint}
    return pa.schema(list(fields.items()), metadata={_KEY: json.dumps(head, sort_keys=True).encode()})


def _arrow_type(values: Sequence[Any], text: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else text


def as_table(columns: Columns, layout: pa.Schema) -> pa.Table:
    """Columns as an Arrow table in the dataset's layout; not-a-number becomes null."""
    import pyarrow as pa

    arrays = [_array(columns[field.name], field.type) for field in layout]
    return pa.Table.from_arrays(arrays, schema=layout)


def _array(values: Any, wanted: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_dictionary(wanted):
        texts = [None if value is None else str(value) for value in values.tolist()]
        return pa.array(texts, type=pa.string()).dictionary_encode().cast(wanted)
    if values.dtype == object:
        return pa.array(values.tolist(), type=wanted)
    if pa.types.is_integer(wanted):
        values = values.astype(np.int64)
    return pa.array(values, type=wanted, from_pandas=True)


class Dataset:
    """The results folder of one study."""

    def __init__(self, folder: str | Path, study: Study, fingerprint: str) -> None:
        self.folder = Path(folder)
        self.layout = schema(study, fingerprint)
        self._points = self.folder / "points"
        self._fingerprint = fingerprint

    def part(self, number: int) -> Path:
        """File of one part."""
        return self._points / f"part-{number:06d}.parquet"

    def write(self, number: int, table: pa.Table) -> None:
        """One part, whole or not at all.

        Raises
        ------
        HwmodelError
            A full disk, or a folder that cannot be written; what was written before stays.
        """
        import pyarrow.parquet as pq

        buffer = BytesIO()
        pq.write_table(table, buffer)
        try:
            write_file(self.part(number), buffer.getvalue())
        except HwmodelError as error:
            raise HwmodelError(f"{error}; the points written before are kept, and the same command goes on from there") from error

    def holds(self, number: int, rows: int) -> bool:
        """Whether a part is there, whole and of this study."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_metadata(self.part(number))
        except (OSError, pa.ArrowException):
            return False
        return bool(found.num_rows == rows and _head(found.metadata).get("fingerprint") == self._fingerprint)

    def table(self, numbers: Sequence[int]) -> pa.Table:
        """The parts, in order, as one table."""
        return read_parts([self.part(number) for number in numbers], self.layout)


def read_parts(paths: Sequence[Path], layout: pa.Schema | None = None) -> pa.Table:
    """Part files as one table (Parquet's threads abort at exit in pyarrow 26, so none are used)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, use_threads=False) for path in paths]
    if not tables:
        return (layout or pa.schema([])).empty_table()
    return pa.concat_tables(tables).unify_dictionaries()


def _head(metadata: Any) -> dict[str, Any]:
    try:
        found = json.loads((metadata or {}).get(_KEY, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def opened(folder: str | Path, study: Study, digests: dict[str, str], fingerprint: str) -> Iterator[Dataset]:
    """The results folder of a study for one run: made where it is missing, taken up where it is the study's own.

    Raises
    ------
    StudyError
        A folder that holds something else, or that another run is writing to.
    HwmodelError
        A folder that cannot be made or written.
    """
    dataset = Dataset(folder, study, fingerprint)
    _make(dataset.folder)
    with _locked(dataset.folder):
        _claim(dataset.folder, study, digests)
        _make(dataset.folder / "points")
        for rest in (dataset.folder / "points").glob(".part-*.part"):  # of a run that was killed while it wrote
            rest.unlink()
        yield dataset


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise HwmodelError(f"{folder}: folder {str(folder.parent)!r} does not exist; create it first") from error
    except OSError as error:
        raise HwmodelError(f"{folder}: cannot be made ({error.strerror}); choose another folder for the results") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else writes here meanwhile. The lock goes with the process, however it ends; systems without it do without."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StudyError(f"{folder}: another run is writing its results here; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        os.close(handle)


def _claim(folder: Path, study: Study, digests: dict[str, str]) -> None:
    """Make the folder the study's, or see that it is."""
    head = folder / "study.json"
    if not head.exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".study.json"))
        if others:
            raise StudyError(f"{folder}: is no results folder and not empty (it holds {others[0]}); choose a new one")
        document = {"schema_version": SCHEMA_VERSION, "digests": digests, "study": study.model_dump(mode="json", by_alias=True)}
        write_file(head, json.dumps(document, indent=1, sort_keys=True) + "\n")
        return
    found = _read_head(head)
    changed = [name for name, digest in digests.items() if found["digests"].get(name) != digest]
    if changed:
        name = found["study"].get("name")
        why = f"{', '.join(changed)} changed since" if name == study.name else f"it holds study {name!r}"
        raise StudyError(f"{folder}: belongs to another study: {why}; choose another folder, or remove this one")


def _read_head(head: Path) -> dict[str, Any]:
    try:
        found = json.loads(head.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{head}: cannot be read ({error}); choose another folder") from error
    if not isinstance(found, dict) or not isinstance(found.get("digests"), dict) or not isinstance(found.get("study"), dict):
        raise StudyError(f"{head}: not written by hwmodel explore; choose another folder")
    return found


def stored_study(folder: str | Path) -> Study:
    """The study whose results a folder holds.

    Raises
    ------
    StudyError
        No results folder, or one of another version of hwmodel.
    """
    from hwmodel.exploration.study_files import study_from_document

    found = _read_head(Path(folder) / "study.json")
    return study_from_document(found["study"], f"{folder}/study.json")


def parts_of(folder: str | Path) -> list[Path]:
    """The part files of a results folder, in order."""
    return sorted((Path(folder) / "points").glob("part-*.parquet"))
