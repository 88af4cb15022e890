"""Curves on disk: a numpy archive with a header."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.files import write_file
from hwmodel.pruning.blocks.curves import Curves, LayerCurve
from hwmodel.pruning.blocks.distortion import Distortion

SCHEMA_VERSION = 1
_FORMAT = "hwmodel-curves"
_ARRAYS = ("order", "delta", "scores", "kept")


def save_curves(curves: Curves, path: str | Path) -> None:
    """Write a file of curves, whole or not at all; the same curves give the same bytes."""
    header = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "samples": curves.samples,
        "layers": [_described(layer) for layer in curves],
    }
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header))}
    for number, layer in enumerate(curves):
        arrays |= {f"{name}_{number}": getattr(layer, name) for name in _ARRAYS}
        arrays |= {f"p_{number}": layer.distortion.p, f"squared_norms_{number}": layer.distortion.squared_norms}
    content = BytesIO()
    np.savez(content, **arrays)
    write_file(path, content.getvalue())


def _described(layer: LayerCurve) -> dict[str, Any]:
    distortion = layer.distortion
    shape, block = list(layer.shape), list(layer.block)
    return {"name": layer.name, "shape": shape, "block": block, "form": distortion.form, "kappa": distortion.kappa}


def load_curves(path: str | Path) -> Curves:
    """Read a file of curves."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            if header["format"] != _FORMAT or header["schema_version"] != SCHEMA_VERSION:
                raise HwmodelError(f"{path}: is not a file of curves of schema version {SCHEMA_VERSION}")
            layers = tuple(_layer(stored, number, row) for number, row in enumerate(header["layers"]))
            return Curves(layers, header["samples"])
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise HwmodelError(f"{path}: cannot be read as curves ({getattr(error, 'strerror', None) or error})") from error


def _layer(stored: Any, number: int, row: dict[str, Any]) -> LayerCurve:
    distortion = Distortion(
        form=row["form"], kappa=row["kappa"], p=stored[f"p_{number}"], squared_norms=stored[f"squared_norms_{number}"]
    )  # fmt: skip
    arrays = {name: stored[f"{name}_{number}"] for name in _ARRAYS}
    return LayerCurve(name=row["name"], shape=tuple(row["shape"]), block=tuple(row["block"]), distortion=distortion, **arrays)
