"""Where cards and recipes lie: inside the installed wheel, or in the checkout this package is read from."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def content_folder(name: str) -> Path:
    """Folder of shipped content, ``simulators`` or ``models``."""
    packaged = _PACKAGE / "content" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
