"""Where tables and figures are hung on traces and estimates, which know nothing of either.

A class names the place (``plot = Accessor()``); whoever puts the package together says what stands there. It is imported when
first used. So a notebook finds ``trace.plot`` while the arrows between the parts of the package keep their direction.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Accessor:
    """A class attribute that is an object made from the instance; see :meth:`fill`."""

    _home: tuple[str, str] | None = None

    def fill(self, module: str, name: str) -> None:
        """Say which class of which module is called with the instance."""
        self._home = (module, name)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The accessor itself on the class; on an instance, what was filled in, made from that instance."""
        if instance is None:
            return self
        if self._home is None:
            raise AttributeError(f"{type(instance).__name__} has nothing to show itself with: import hwmodel first")
        module, name = self._home
        return getattr(import_module(module), name)(instance)
