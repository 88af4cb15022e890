"""Where tables and figures are hung on traces and estimates, which know nothing of either.

The classes name the place; ``hwmodel/__init__.py``, which may know every part of the package, says what stands there, and it is
imported when first used. So a notebook finds ``trace.plot`` while ``ir`` and ``backends`` import no reporting, and no figure is
loaded with them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Accessor:
    """A class attribute that is an object made from the instance, by a class that is named later."""

    _home: tuple[str, str] | None = None

    def fill(self, module: str, name: str) -> None:
        """Name the class that is called with the instance."""
        self._home = (module, name)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """What was filled in, made from the instance; on the class, the accessor itself."""
        if instance is None:
            return self
        if self._home is None:
            raise AttributeError(f"nothing is known that shows a {type(instance).__name__}")
        module, name = self._home
        return getattr(import_module(module), name)(instance)


TRACE_PLOTS = Accessor()
ESTIMATE_PLOTS = Accessor()
