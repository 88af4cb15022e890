"""The user's own accuracies: a CSV whose columns are named like those of the dataset, looked up point by point."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwmodel.exploration.study import Accuracy, Study, StudyError

Key = tuple[str, ...]


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies by the text of the columns they depend on."""

    path: str
    on: tuple[str, ...]
    values: Mapping[Key, float]
    digest: str

    def look_up(self, point: Mapping[str, Any]) -> float:
        """The accuracy of one point.

        Raises
        ------
        StudyError
            The file has no row for it.
        """
        key = tuple(_written(point[name]) for name in self.on)
        if key not in self.values:
            told = ", ".join(f"{name} = {value}" for name, value in zip(self.on, key, strict=True))
            raise StudyError(f"{self.path}: no row for {told}; add one, or vary less")
        return self.values[key]


def _written(value: Any) -> str:
    """A value as text, numbers in one form: 0.50 and 0.5 are the same."""
    try:
        return f"{float(value):.12g}"
    except (TypeError, ValueError):
        return "" if value is None else str(value).strip()


def read_accuracy(accuracy: Accuracy, study: Study) -> AccuracyTable:
    """Read the file and check its columns.

    Raises
    ------
    StudyError
        A file that cannot be read, a column that the dataset does not have, a cell that is no number, or two rows for one point.
    """
    path = Path(accuracy.file)
    try:
        data = path.read_bytes()
        rows = list(csv.DictReader(data.decode().splitlines()))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path}: not a CSV file: {error}") from error
    known = ["model", "recipe", "batch", "dtype", *(axis.title for axis in study.vary)]
    columns = list(rows[0]) if rows else []
    if accuracy.column not in columns:
        raise StudyError(f"{path}: no column {accuracy.column!r}, found {', '.join(columns) or 'nothing'}")
    on = tuple(name for name in columns if name in known)
    strangers = [name for name in columns if name not in {*known, accuracy.column}]
    if strangers or not on:
        raise StudyError(
            f"{path}: columns must be named like those of the dataset ({', '.join(known)}); found {', '.join(strangers) or 'none'}"
        )
    return AccuracyTable(str(path), on, _values(rows, on, accuracy.column, path), hashlib.sha256(data).hexdigest())


def _values(rows: Sequence[Mapping[str, str]], on: tuple[str, ...], column: str, path: Path) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for number, row in enumerate(rows, start=2):
        key = tuple(_written(row[name]) for name in on)
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            raise StudyError(f"{path}: line {number}: {column} is {row[column]!r}, expected a number") from None
        if key in found:
            raise StudyError(f"{path}: line {number}: a second row for {', '.join(key)}")
        found[key] = value
    return found
