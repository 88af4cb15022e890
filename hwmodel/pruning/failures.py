"""Failures of code that is not ours (a user's model, loss or batches), told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hwmodel.errors import HwmodelError


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever ``what`` fails with, as one line of :class:`~hwmodel.errors.HwmodelError`.

    Raises
    ------
    HwmodelError
        For the exceptions that tensors of a wrong shape, kind or value lead to.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise HwmodelError(f"{what} fails: {line[:200]}") from error
