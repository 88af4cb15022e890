"""Processes that draw figures: they import what that takes while the first process still reads a model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

from hwmodel.errors import HwmodelError

T = TypeVar("T")
R = TypeVar("R")

COUNT = 2
_LIBRARIES = ("hwmodel.reporting.drawings", "pandas", "matplotlib.figure", "matplotlib.backends.backend_svg")
_IDLE_S = 60
"""After so long without work a process ends."""


def warm_up() -> None:
    """Start the processes."""
    _pool().submit(int)


def shared(work: Callable[[Sequence[T]], Sequence[R]], tasks: Sequence[T]) -> list[R]:
    """What ``work`` makes of the tasks, every process having its share; pickled both ways, functions without a name too.

    Raises
    ------
    HwmodelError
        A process was ended from outside; or what ``work`` itself raises.
    """
    from joblib.externals.loky.process_executor import BrokenProcessPool

    started = [_pool().submit(work, tasks[first::COUNT]) for first in range(COUNT)]
    try:
        return [one for share in started for one in share.result()]
    except BrokenProcessPool as error:
        raise HwmodelError("a process that draws figures was ended (out of memory?); --workers 1 draws without them") from error


def _pool() -> Any:
    from joblib.externals.loky import get_reusable_executor

    return get_reusable_executor(max_workers=COUNT, timeout=_IDLE_S, initializer=_prepare)


def _prepare() -> None:
    """Import what drawing takes. Looking for garbage would take a sixth of the time of a process that lives for seconds."""
    gc.disable()
    for name in _LIBRARIES:
        import_module(name)
