"""The SCALE-Sim package behind a cache: each distinct product runs once, in a process of its own.

This is the only module that imports ``scalesim``, and only when something runs. Configuration and topology are objects
made here; no file of the package's formats is read or written (``scale_sim_export`` writes them). Runs are in its CALC
mode, where memory never stalls. ``python -m hwmodel.backends.scale_sim -c ... -t ... -l ... -i gemm -p ...`` is the
package's own command line, mended for NumPy 2.4.

A simulation takes 0.1 s to minutes and up to a gigabyte, which the package keeps until its process ends: hence a process
per product. Results lie on disk by content (product, array, dataflow, buffers, mode, version of the package), one small
file each, written beside and renamed: an interrupted run resumes, and two runs at once do no harm. A file that is cut
short, or that another version wrote, is ignored with a note in the log and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError
from hwmodel.files import write_file

Progress = Callable[[int, int], None]
CACHE_SCHEMA = 1
MODE = "CALC"
DATAFLOWS = ("ws", "os", "is")
CACHE_VARIABLE = "HWMODEL_CACHE_DIR"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Product:
    """One layer for SCALE-Sim: (m, k) x (k, n) on an array; SRAM sizes in kB of one-byte words.

    SRAM sizes change no cycle in CALC mode; the defaults split a TPU core's 16 MiB.

    Raises
    ------
    ValueError
        A dataflow that does not exist (the package would run ``os`` without a word), or an array or buffer of size 0.
    """

    m: int
    k: int
    n: int
    rows: int
    cols: int
    dataflow: str
    ifmap_kb: int = 4096
    filter_kb: int = 8192
    ofmap_kb: int = 4096

    def __post_init__(self) -> None:
        if self.dataflow not in DATAFLOWS:
            raise ValueError(f"dataflow must be 'ws', 'os' or 'is', got {self.dataflow!r}")
        if min(self.rows, self.cols) < 1:
            raise ValueError(f"an array needs at least one row and one column, got {self.rows} x {self.cols}")
        if min(self.ifmap_kb, self.filter_kb, self.ofmap_kb) < 1:
            raise ValueError("every buffer needs at least 1 kB")


@dataclass(frozen=True, slots=True)
class Result:
    """What SCALE-Sim reports of one layer; cycles are the index of the last one, accesses are words."""

    compute_cycles: int
    stall_cycles: int
    ifmap_sram_reads: int
    filter_sram_reads: int
    ofmap_sram_writes: int
    ifmap_dram_reads: int
    filter_dram_reads: int
    ofmap_dram_writes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How :func:`run` works where its caller does not say: processes at once, progress callback, cache folder."""

    workers: int | None = None
    progress: Progress | None = None
    folder: Path | None = None


_SETTINGS: ContextVar[Settings | None] = ContextVar("scale_sim_settings", default=None)


@contextmanager
def settings(*, workers: int | None = None, progress: Progress | None = None, folder: str | Path | None = None) -> Iterator[None]:
    """Settings of the runs inside a ``with`` block, for callers that reach this module through a backend."""
    chosen = Settings(workers, progress, None if folder is None else Path(folder))
    token = _SETTINGS.set(chosen)
    try:
        yield
    finally:
        _SETTINGS.reset(token)


def cache_folder() -> Path:
    """Where results are kept: ``$HWMODEL_CACHE_DIR``, else the user's cache folder; not created here."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwmodel" / "scale-sim"


def package_version() -> str:
    """Version of the installed package.

    Raises
    ------
    HwmodelError
        Not installed, or of another generation (its interface differs).
    """
    try:
        found = version("scalesim")
    except PackageNotFoundError:
        raise HwmodelError(
            "mode 'scale-sim' needs the SCALE-Sim package: pip install 'scalesim>=3.0.0' "
            "(mode 'systolic' gives the same cycles without it)"
        ) from None
    if found.partition(".")[0] != "3":
        raise HwmodelError(f"mode 'scale-sim' needs scalesim 3, found {found}: pip install 'scalesim>=3.0.0,<4'")
    return found


def run(
    products: Sequence[Product],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    folder: str | Path | None = None,
) -> list[Result]:
    """Results of ``products`` in order; each distinct one that the cache lacks is simulated once.

    Parameters
    ----------
    workers : simulations at once; all processors where None. Each may need a gigabyte or two
    progress : called as ``progress(done, total)`` over distinct products, cached ones counted at once
    folder : cache folder, made on demand; :func:`cache_folder` where None

    Raises
    ------
    HwmodelError
        The package is missing, the cache cannot be written, or the package fails on a product: its message is told once
        all other products are done and kept.
    """
    chosen = _SETTINGS.get() or Settings()
    cache = _Cache(Path(folder or chosen.folder or cache_folder()), package_version())
    distinct = list(dict.fromkeys(products))
    results = {product: found for product in distinct if (found := cache.load(product)) is not None}
    missing = [product for product in distinct if product not in results]
    if cache.ignored:
        _LOG.warning("%s: ignored %d results, to be made again: %s", cache.folder, len(cache.ignored), "; ".join(cache.ignored[:3]))
    tell = progress or chosen.progress or (lambda done, total: None)
    tell(len(results), len(distinct))
    at_once = workers if workers is not None else chosen.workers or os.cpu_count() or 1
    failures: list[str] = []
    with closing(_simulated(missing, at_once)) as simulated:
        for product, result in simulated:
            if isinstance(result, Failure):
                failures.append(f"{product}: {result.message}")
                continue
            cache.store(product, result)
            results[product] = result
            tell(len(results), len(distinct))
    if failures:
        kept = f"{len(results)} of {len(distinct)} results are kept"
        raise HwmodelError(f"SCALE-Sim failed on {'; '.join(failures)} ({kept}; mode 'systolic' needs no run)")
    return [results[product] for product in products]


def layer_cycles(
    *, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str, used: Any, tiles: Any = None
) -> npt.NDArray[np.float64]:
    """Compute cycles of every product where ``used``, zero elsewhere, from the package.

    A weight of which only ``tiles`` tiles hold work runs as what is left: one layer (m, rows * tiles) x (rows * tiles,
    cols), which folds exactly ``tiles`` times. SCALE-Sim's cycles do not depend on where the tiles lay. An expected,
    broken number of tiles lies between its two neighbours.
    """
    m, k, n, rows, cols, used = np.broadcast_arrays(m, k, n, rows, cols, used)
    whole = np.ceil(k / rows) * np.ceil(n / cols)
    tiles = whole if tiles is None else np.broadcast_to(tiles, m.shape)
    below = np.floor(tiles)
    sizes = np.stack([m, k, n, rows, cols], axis=-1).reshape(-1, 5).astype(np.int64)
    names = ("m", "k", "n", "rows", "cols")
    dense = [Product(**dict(zip(names, row, strict=True)), dataflow=dataflow) for row in sizes.tolist()]
    jobs = [
        None if not (runs and kept) else (product if kept == every else _left(product, int(kept)))
        for count in (below, np.ceil(tiles))
        for product, runs, kept, every in zip(dense, used.flat, count.flat, whole.flat, strict=True)
    ]
    needed = [job for job in jobs if job is not None]
    found = dict(zip(needed, run(needed), strict=True)) if needed else {}
    cycles = np.array([0 if job is None else found[job].compute_cycles for job in jobs], dtype=np.float64).reshape(2, *m.shape)
    between: npt.NDArray[np.float64] = cycles[0] + (tiles - below) * (cycles[1] - cycles[0])
    return between


def _left(product: Product, tiles: int) -> Product:
    """The layer that holds ``tiles`` weight tiles of ``product`` and nothing else."""
    return replace(product, k=product.rows * tiles, n=product.cols)


@dataclass(frozen=True)
class _Cache:
    """Results by content, one file each."""

    folder: Path
    scalesim: str
    ignored: list[str] = field(default_factory=list)

    def _key(self, product: Product) -> dict[str, Any]:
        return {"schema": CACHE_SCHEMA, "scalesim": self.scalesim, "mode": MODE, **asdict(product)}

    def path(self, product: Product) -> Path:
        """Its name holds the product only: what another version wrote is found, told and replaced."""
        text = json.dumps(asdict(product) | {"mode": MODE}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def load(self, product: Product) -> Result | None:
        """The stored result; None where there is none, or a file that is not what this version writes."""
        path = self.path(product)
        try:
            document = json.loads(path.read_bytes())
            key, wanted = document["key"], self._key(product)
            if key == wanted:
                return _result(document["result"])
            differing = [f"{name} {key.get(name)!r} is not {wanted[name]!r}" for name in wanted if key.get(name) != wanted[name]]
            self.ignored.append(f"{path.name}: {', '.join(differing)}")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.ignored.append(f"{path.name}: cannot be read ({type(error).__name__})")
        return None

    def store(self, product: Product, result: Result) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"{self.folder}: cannot be made ({error.strerror}); set {CACHE_VARIABLE} to another folder"
            raise HwmodelError(told) from error
        document = {"key": self._key(product), "result": asdict(result)}
        write_file(self.path(product), json.dumps(document, sort_keys=True) + "\n")


def _result(document: Mapping[str, Any]) -> Result:
    """A result from parsed JSON; ValueError where it is none."""
    if set(document) != {item.name for item in fields(Result)} or any(type(value) is not int for value in document.values()):
        raise ValueError(f"not a result: {document}")
    return Result(**document)


@dataclass(frozen=True, slots=True)
class Failure:
    """The package ended without a result; ``message`` is the last thing it said."""

    message: str


@dataclass
class _Children:
    """The simulations of one call of :func:`run`, so that they end with it."""

    running: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)
    ended: bool = False

    def simulate(self, product: Product) -> Result | Failure:
        with self.lock:
            if self.ended:
                raise InterruptedError
            child = _child()
            self.running.add(child)
        out, told = child.communicate(json.dumps(asdict(product)))
        with self.lock:
            self.running.discard(child)
        if child.returncode:
            return Failure((told.strip().splitlines() or [f"no message, exit status {child.returncode}"])[-1])
        return _result(json.loads(out))

    def end(self) -> None:
        with self.lock:
            self.ended = True
            for child in self.running:
                child.kill()


def _child() -> subprocess.Popen[str]:
    """A fresh interpreter that reads one product and writes one result; it finds what this process finds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "hwmodel.backends.scale_sim"]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def _simulated(products: Sequence[Product], workers: int) -> Generator[tuple[Product, Result | Failure], None, None]:
    """Each product with its result as it is done, longest first; every child ends before this does."""
    if workers < 1:
        raise HwmodelError(f"workers must be at least 1, got {workers}")
    if not products:
        return
    children = _Children()
    longest_first = sorted(products, key=lambda product: product.m * product.k * product.n, reverse=True)
    pool = ThreadPoolExecutor(min(workers, len(products)))
    try:
        waiting = {pool.submit(children.simulate, product): product for product in longest_first}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        children.end()
        pool.shutdown(cancel_futures=True)


def simulate(product: Product) -> Result:
    """Run SCALE-Sim's whole single-layer simulation in this process, which keeps its memory until it ends."""
    layer = _layer(product)
    with redirect_stdout(sys.stderr):
        layer.run()
    memory, compute = layer.memory_system, layer.compute_system
    reads = [int(details[2]) for details in (memory.get_ifmap_dram_details(), memory.get_filter_dram_details())]
    return Result(
        compute_cycles=int(memory.get_total_compute_cycles()),
        stall_cycles=int(memory.get_stall_cycles()),
        ifmap_sram_reads=int(compute.get_ifmap_requests()),
        filter_sram_reads=int(compute.get_filter_requests()),
        ofmap_sram_writes=int(compute.get_ofmap_requests()),
        ifmap_dram_reads=reads[0],
        filter_dram_reads=reads[1],
        ofmap_dram_writes=int(memory.get_ofmap_dram_details()[2]),
    )


def demand_cycles(product: Product) -> int:
    """Total cycles without the memory simulation: the rows of SCALE-Sim's demand matrix less one, equal in CALC mode.

    The cheapest real answer, for tests: everything after it costs time and, in CALC mode, changes no cycle.
    """
    layer = _layer(product)
    with redirect_stdout(sys.stderr):
        layer.compute_system.set_params(
            config_obj=layer.config,
            ifmap_op_mat=layer.op_mat_obj.get_ifmap_matrix()[1],
            filter_op_mat=layer.op_mat_obj.get_filter_matrix()[1],
            ofmap_op_mat=layer.op_mat_obj.get_ofmap_matrix()[1],
        )
        _, _, demand = layer.compute_system.get_demand_matrices()
    return int(demand.shape[0]) - 1


def _layer(product: Product) -> Any:
    """SCALE-Sim's object for one layer, configured."""
    package_version()
    with redirect_stdout(sys.stderr):
        from scalesim.layout_utils import layouts
        from scalesim.scale_config import scale_config
        from scalesim.single_layer_sim import single_layer_sim
        from scalesim.topology_utils import topologies

        _mend_package()
        p = product
        config, topology, layer = scale_config(), topologies(), single_layer_sim()
        weights = p.m * p.k + 1
        offsets = [0, weights, weights + p.k * p.n]
        config.update_from_list(["hwmodel", p.rows, p.cols, p.ifmap_kb, p.filter_kb, p.ofmap_kb, *offsets, p.dataflow, MODE, [10]])
        topology.load_layer_params_from_list("product", ["product", p.m, p.k, 1, p.k, 1, p.n, 1, 1, 1, 1])
        layer.set_params(layer_id=0, config_obj=config, topology_obj=topology, layout_obj=layouts(), verbose=False)
    return layer


def _mend_package() -> None:
    from scalesim.memory import double_buffered_scratchpad_mem, read_buffer

    for module in (double_buffered_scratchpad_mem, read_buffer):
        _mend(module)


def _mend(module: ModuleType) -> None:
    """Let SCALE-Sim 3.0.0 run on NumPy 2.4, which no longer turns arrays of one element into Python numbers.

    Its memory modules call ``max`` on a list of such arrays; there the largest element is meant.
    """
    if not hasattr(module, "max"):
        setattr(module, "max", lambda *values: np.max(values[0]) if len(values) == 1 else max(values))  # noqa: B010


def _answer() -> None:
    """What a child does: one product from standard input, one result to standard output."""
    result = simulate(Product(**json.load(sys.stdin)))
    sys.stdout.write(json.dumps(asdict(result)))


def _command_line() -> None:
    """SCALE-Sim's own command line (``python -m scalesim.scale``) with the mended package and the same arguments."""
    try:
        package_version()
    except HwmodelError as error:
        sys.exit(f"hwmodel: error: {error}")
    _mend_package()
    runpy.run_module("scalesim.scale", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        _command_line()
    else:
        _answer()
