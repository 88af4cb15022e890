"""Study files: TOML, every problem told at once with its path, relative paths led from the file's own folder."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hwmodel.exploration.axes import Axis
from hwmodel.exploration.study import (  # fmt: skip
    Accuracy,
    Constraint,
    DeviceChoice,
    ModelChoice,
    Objective,
    Proxy,
    Pruning,
    Search,
    Study,
    StudyError,
    Term,
)


def load_study(path: str | Path) -> Study:
    """Read and check a study file; the paths in it are taken from its own folder.

    Raises
    ------
    StudyError
        A file that cannot be read, is not TOML, or does not validate: every problem at once.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not valid TOML: {error}") from error
    return _located(study_from_document(document, str(path)), Path(path).parent)


def study_from_document(document: dict[str, Any], where: str) -> Study:
    """Check a parsed study.

    Raises
    ------
    StudyError
        One line with ``where`` and every problem, each with the field's path.
    """
    try:
        return Study.model_validate(document)
    except ValidationError as error:
        raise StudyError(f"{where}: " + "; ".join(_problems(error))) from error


_TABLES: dict[str, type[BaseModel]] = {
    "models": ModelChoice, "devices": DeviceChoice, "pruning": Pruning, "vary": Axis, "proxies": Proxy, "terms": Term,
    "constraints": Constraint, "objectives": Objective, "accuracy": Accuracy, "search": Search,
}  # fmt: skip


def _problems(error: ValidationError) -> list[str]:
    """Every problem as "path: what was expected, what was found"."""
    told = []
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            table = next((_TABLES[part] for part in reversed(parts[:-1]) if part in _TABLES), Study)
            known = [field.alias or name for name, field in table.model_fields.items()]
            near = get_close_matches(parts[-1], known, n=2)
            text = "unknown key; " + (f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}")
        elif item["type"] not in {"missing", "value_error"} and not isinstance(item["input"], dict):
            text = f"{text}, found {item['input']!r}"
        told.append(f"{'.'.join(parts)}: {text}".removeprefix(": "))
    return list(dict.fromkeys(told))


def _located(study: Study, folder: Path) -> Study:
    """The study with its relative paths led from ``folder``."""

    def led(name: str, endings: tuple[str, ...]) -> str:
        return str(folder / name) if name.endswith(endings) and not Path(name).is_absolute() else name

    models = tuple(
        model.model_copy(
            update={
                "name": led(model.name, (".json", ".parquet")),
                "recipes": tuple(led(recipe, (".toml",)) for recipe in model.recipes),
            }
        )
        for model in study.models
    )
    devices = tuple(device.model_copy(update={"name": led(device.name, (".toml",))}) for device in study.devices)
    accuracy = study.accuracy and study.accuracy.model_copy(update={"file": led(study.accuracy.file, (".csv",))})
    return study.model_copy(update={"models": models, "devices": devices, "accuracy": accuracy})
