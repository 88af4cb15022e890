"""Projections on disk: a header, what is known of each block, then one record for each image and probe.

A run appends to such a file as it goes, so what an interrupted run leaves is a shorter file of the same form.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError
from hwmodel.files import check_writable, write_file
from hwmodel.ir.masks import FloatArray, Shape, grid_shape
from hwmodel.pruning.blocks.distortion import Float32Array
from hwmodel.pruning.blocks.projected import LayerProjections, Projections

SCHEMA_VERSION = 1
_FORMAT = "hwmodel-projections"
_ALIGNMENT = 64
_COPIED_ROWS = 16

Header = dict[str, Any]
DigestArray = npt.NDArray[np.uint64]


def header_of(
    layers: Sequence[tuple[str, Shape, Shape]],
    *,
    kind: str,
    probes: int,
    seed: int,
    left_out: Mapping[str, str],
    made_by: Mapping[str, str],
) -> Header:
    """What a file says ahead of its numbers; ``layers`` as name, shape and finest block."""
    rows = [{"name": name, "shape": list(shape), "finest": list(finest)} for name, shape, finest in layers]
    return {
        "format": _FORMAT, "schema_version": SCHEMA_VERSION, "kind": kind, "probes": probes, "seed": seed,
        "made_by": dict(made_by), "left_out": dict(left_out), "layers": rows,
    }  # fmt: skip


class ProjectionFile:
    """A file of projections that grows; without a path a temporary one, which is gone when nobody reads it any more.

    Parameters
    ----------
    header : of :func:`header_of`
    norms : (2, blocks) sums of squared and of absolute weights, all layers one after the other
    path : continued where it is a file with the same header

    Raises
    ------
    HwmodelError
        A path that cannot be written, or a file there that is of another run: what differs is named.
    """

    def __init__(self, header: Header, norms: FloatArray, path: str | Path | None) -> None:
        self.header, self.norms, self.path = header, norms, path
        start = _start_of(header, norms)
        self._offset, self._record = len(start), _record_type(header)
        self._file = _temporary(start) if path is None else _continued(Path(path), header, start)
        self._file.seek(0, 2)
        self.rows = (self._file.tell() - self._offset) // self._record.itemsize

    def close(self) -> None:
        """Nothing more is added; what was read stays readable."""
        self._file.close()

    def cut(self, rows: int) -> None:
        """Forget all but the first rows."""
        self.rows = rows
        self._file.truncate(self._offset + rows * self._record.itemsize)
        self._file.seek(0, 2)

    def append(self, images: DigestArray, p: Float32Array) -> None:
        """Add (rows,) digests of images and (rows, blocks) projections."""
        try:
            for start in range(0, len(p), _COPIED_ROWS):
                part = slice(start, start + _COPIED_ROWS)
                records = np.empty(len(p[part]), dtype=self._record)
                records["image"], records["p"] = images[part], p[part]
                self._file.write(records.tobytes())
            self._file.flush()
        except OSError as error:
            where = self.path or tempfile.gettempdir()
            raise HwmodelError(
                f"{where}: cannot be written ({error.strerror}); choose another resume= or coarser finest="
            ) from error
        self.rows += len(p)

    def images(self, rows: slice) -> DigestArray:
        """Digest of the image of each of some rows."""
        found: DigestArray = np.array(self._records()["image"][rows])
        return found

    def _records(self) -> npt.NDArray[Any]:
        if not self.rows:
            return np.empty(0, dtype=self._record)
        return np.memmap(self._file, dtype=self._record, mode="r", offset=self._offset, shape=(self.rows,))

    def projections(self, rows: int) -> Projections:
        """The first rows, left on disk until they are used."""
        return _projections(self.header, self.norms, self._records()[:rows])


def _projections(header: Header, norms: FloatArray, records: npt.NDArray[Any]) -> Projections:
    shapes = [(tuple(row["shape"]), tuple(row["finest"])) for row in header["layers"]]
    ends = list(accumulate((prod(grid_shape(shape, finest)) for shape, finest in shapes), initial=0))
    layers = tuple(
        LayerProjections(
            name=row["name"], shape=shape, finest=finest, p=records["p"][:, start:end],
            squared_norms=norms[0, start:end], magnitudes=norms[1, start:end],
        )
        for row, (shape, finest), start, end in zip(header["layers"], shapes, ends[:-1], ends[1:], strict=True)
    )  # fmt: skip
    return Projections(
        layers=layers, images=records["image"], kind=header["kind"], probes=header["probes"], seed=header["seed"],
        left_out=header["left_out"], made_by=header["made_by"],
    )  # fmt: skip


def save_projections(projections: Projections, path: str | Path) -> None:
    """Write a file of projections, whole or not at all."""
    target = check_writable(path)
    layers = [(layer.name, layer.shape, layer.finest) for layer in projections]
    header = header_of(
        layers, kind=projections.kind, probes=projections.probes, seed=projections.seed,
        left_out=projections.left_out, made_by=projections.made_by,
    )  # fmt: skip
    norms = np.stack([
        np.concatenate([layer.squared_norms for layer in projections]), np.concatenate([layer.magnitudes for layer in projections])
    ])  # fmt: skip
    beside = target.with_name(f".{target.name[:40]}.part")
    beside.unlink(missing_ok=True)
    try:
        with closing(ProjectionFile(header, norms, beside)) as written:
            for start in range(0, len(projections.images), _COPIED_ROWS):
                part = slice(start, start + _COPIED_ROWS)
                written.append(projections.images[part], np.concatenate([layer.p[part] for layer in projections], axis=1))
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def load_projections(path: str | Path) -> Projections:
    """Read a file of projections, complete or not."""
    source = Path(path)
    try:
        with source.open("rb") as file:
            header = _header(source, file)
            blocks = _blocks(header)
            norms = np.fromfile(file, dtype=np.float64, count=2 * blocks).reshape(2, blocks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HwmodelError(f"{source}: cannot be read as projections ({getattr(error, 'strerror', None) or error})") from error
    record, offset = _record_type(header), len(_start_of(header, norms))
    rows = (source.stat().st_size - offset) // record.itemsize
    if rows < header["probes"]:
        raise HwmodelError(f"{source}: holds the projections of no image")
    rows -= rows % header["probes"]
    return _projections(header, norms, np.memmap(source, dtype=record, mode="r", offset=offset, shape=(rows,)))


def _header(source: Path, file: IO[bytes]) -> Header:
    try:
        header: Header = json.loads(file.readline(1 << 24))
        known = header["format"] == _FORMAT and header["schema_version"] == SCHEMA_VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise HwmodelError(f"{source}: is not a file of projections") from error
    if not known:
        raise HwmodelError(f"{source}: is not a file of projections of schema version {SCHEMA_VERSION}")
    return header


def _blocks(header: Header) -> int:
    return sum(prod(grid_shape(tuple(row["shape"]), tuple(row["finest"]))) for row in header["layers"])


def _record_type(header: Header) -> np.dtype[Any]:
    return np.dtype([("image", "<u8"), ("p", "<f4", (_blocks(header),))])


def _start_of(header: Header, norms: FloatArray) -> bytes:
    text = json.dumps(header, allow_nan=False).encode()
    return text + b" " * (-(len(text) + 1) % _ALIGNMENT) + b"\n" + norms.astype("<f8").tobytes()


def _temporary(start: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as what is read from it
    file.write(start)
    return file


def _continued(path: Path, header: Header, start: bytes) -> IO[bytes]:
    """The file at ``path``, begun with ``start`` where there is none yet."""
    check_writable(path)
    if not path.exists():
        write_file(path, start)
    with path.open("rb") as file:
        found = _header(path, file)
        file.seek(0)
        same = file.read(len(start)) == start
    if not same:
        differing = [name for name in header if found.get(name) != header[name]] or ["weights"]
        raise HwmodelError(
            f"{path}: is of another run ({_difference(found, header, differing[0])}); delete it or name another file"
        )
    return path.open("r+b")


def _difference(found: Header, header: Header, name: str) -> str:
    before, now = found.get(name), header.get(name)
    if isinstance(before, dict) and isinstance(now, dict):
        name = next((key for key in now if before.get(key) != now[key]), name)
        before, now = before.get(name), now.get(name)
    if name == "first_values":
        return "image 0 gives other values: another image, label, loss or model"
    return f"{name} differs" if isinstance(now, (dict, list)) or name == "weights" else f"{name} was {before!r}, is {now!r}"
