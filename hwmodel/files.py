"""Whole files or none: written beside, then renamed."""

from __future__ import annotations

import os
from pathlib import Path

from hwmodel.errors import HwmodelError


def check_writable(path: str | Path) -> Path:
    """Return ``path``, or raise :class:`HwmodelError` where its folder is missing or cannot be written.

    Commands call this before long work, so that a wrong output path costs no time.
    """
    target = Path(path)
    try:
        return _checked(target)
    except (OSError, ValueError) as error:  # a name that is too long, a folder we may not look into, a NUL character
        reason = getattr(error, "strerror", None) or error
        raise HwmodelError(f"{target}: cannot be written ({reason}); choose another path") from error


def _checked(target: Path) -> Path:
    if target.is_dir():
        raise HwmodelError(f"{target}: is a folder, expected the path of a file to write")
    if not target.parent.is_dir():
        found = "is a file, not a folder; choose another path" if target.parent.exists() else "does not exist; create it first"
        raise HwmodelError(f"{target}: folder {str(target.parent)!r} {found}")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise HwmodelError(f"{target}: no permission to write here; choose another path")
    return target


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) beside ``path``, then rename: a reader sees the old file or the new one.

    Raises
    ------
    HwmodelError
        Where the folder is missing or the file cannot be written.
    """
    target = check_writable(path)
    beside = target.with_name(f".{target.name[:40]}.{os.getpid()}.part")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(target)
    except OSError as error:
        raise HwmodelError(f"{target}: cannot be written ({error.strerror}); choose another path") from error
    finally:
        beside.unlink(missing_ok=True)
