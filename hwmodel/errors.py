"""The errors a user can act on. Each message says where, what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HwmodelError(Exception):
    """Bad input, told in one line. The command line turns it into exit status 2."""


class UnknownNameError(HwmodelError):
    """A model, device, mode, dtype or field that does not exist; the nearest names are suggested."""

    def __init__(self, what: str, found: str, known: Iterable[str]) -> None:
        self.known = sorted(known)
        super().__init__(f"unknown {what} {found!r}: {suggestion(found, self.known)}")


class UnsupportedOperatorError(HwmodelError):
    """Operators that nobody modelled, with names and counts."""


class CardError(HwmodelError):
    """A card that does not validate: every problem at once, each with its path."""


class RecipeError(HwmodelError):
    """A recipe that does not fit its model."""


class CheckpointError(HwmodelError):
    """A checkpoint that cannot be read, or that is not the model's: missing, unexpected and misshaped names are listed."""


class TraceFormatError(HwmodelError):
    """A file that is not a trace this version can read."""


def suggestion(found: str, known: Iterable[str]) -> str:
    """Name those of ``known`` that begin with ``found``, then the nearest; or list them where none is near."""
    names = sorted(known)
    begun = [name for name in names if found and name.startswith(found)]
    near = list(dict.fromkeys([*begun, *get_close_matches(found, names, n=3, cutoff=0.5)]))[:3]
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    listed = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
    return f"expected one of {listed}"
