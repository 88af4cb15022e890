"""Backends are found by the entry point group ``hwmodel.backends``, ours included."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from hwmodel.backends.base import Backend
from hwmodel.errors import HwmodelError, UnknownNameError

GROUP = "hwmodel.backends"


@cache
def _found() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise HwmodelError(f"two backends are named {entry.name!r}: {other.value} and {entry.value}; uninstall one")
        found[entry.name] = entry
    return found


def backend_names() -> list[str]:
    """Names of all installed backends."""
    return sorted(_found())


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises
    ------
    UnknownNameError
        No installed package brings it.
    HwmodelError
        The package that brings it cannot be imported.
    """
    if name not in _found():
        raise UnknownNameError("backend", name, _found())
    entry = _found()[name]
    try:
        return cast("Backend", entry.load()())
    except (ImportError, AttributeError) as error:
        raise HwmodelError(f"backend {name!r}: {entry.value} cannot be loaded ({error}); reinstall its package") from error
