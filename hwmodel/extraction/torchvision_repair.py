"""Import torchvision beside a CPU-only torch.

A torchvision wheel built for CUDA cannot load its C extension beside a CPU torch; its import then dies because the
operators ``torchvision::nms`` and ``torchvision::qnms`` do not exist (torchvision issue 9085). timm imports
torchvision, so we declare the missing schemas, on that very error only: a healthy install is not touched.
"""

from __future__ import annotations

import sys

_MISSING = ("operator torchvision::nms does not exist", "operator torchvision::qnms does not exist")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> None:
    """Import torchvision, repaired where its compiled operators are missing; nothing where it is not installed."""
    try:
        import torchvision
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if not any(text in str(error) for text in _MISSING):
            raise
        _declare_operators()
        _forget_modules()
        import torchvision  # noqa: F401


def _declare_operators() -> None:
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _SCHEMA)


def _forget_modules() -> None:
    """Drop the half-imported modules, so that the next import starts afresh."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
