"""What commands print: JSON, tables, lines, and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def print_json(document: object) -> None:
    """A document on standard output, one level of indent per line."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def print_table(table: Any) -> None:
    """A rich table, as wide as the terminal."""
    from rich.console import Console

    Console().print(table)


def print_wide(*tables: Any) -> None:
    """Tables of many columns: as wide as they need to be where nobody watches, and where the terminal is wide enough."""
    from rich.console import Console

    console = Console()
    for table in tables:
        if table.row_count:
            (console if console.is_terminal else Console(width=200)).print(table)


def print_line(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")


class progress:  # noqa: N801  (used like a function)
    """Tell on standard error what is being done, as a spinner on a terminal and as plain lines elsewhere."""

    def __enter__(self) -> Callable[[str], None]:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._step

    def _step(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(f"hwmodel: {text}", highlight=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
