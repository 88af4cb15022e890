"""A workbench over a small trace, read from a file, that tests of the explorer share."""

from __future__ import annotations

from pathlib import Path

from examples import vit

import hwmodel as hw
from hwmodel.ui.workbench import Workbench


def small_bench(folder: Path, device: str = "vita", *, width: int = 192, depth: int = 3) -> Workbench:
    """A DeiT of three blocks at one batch, its heads and tokens movable."""
    path = folder / "small.json"
    hw.save_trace(vit(width, depth=depth), path)
    return Workbench((str(path),), device)
