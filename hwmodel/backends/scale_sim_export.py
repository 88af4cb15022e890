"""Files with which anyone can rerun SCALE-Sim's own command line and meet the cycles of modes ``systolic`` and ``scale-sim``.

SCALE-Sim takes dense products only, so a pruned weight is written as what is left of it (weight stationary only; where
weights stream, nothing can be skipped and the whole product is written). Its total is the index of the last cycle, one
short per layer that it runs, so the three ways of writing ``t`` kept tiles of ``p`` cycles differ by a few cycles:

===========  ==================================================================  ======================
method       rows of the topology                                                total
===========  ==================================================================  ======================
``joined``   one (m, rows * t) x (rows * t, cols), as our own modes count        ``t * p - 1``
``columns``  one (m, rows * t_j) x (rows * t_j, cols) per column of tiles ``j``  ``t * p - columns``
``tiles``    one (m, rows) x (rows, cols) per tile                               ``t * p - t``
===========  ==================================================================  ======================

Each distinct product is one row of the topology, however often it occurs: the package never recognises one that it has run.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from hwmodel.backends.base import Workload
from hwmodel.backends.cards import Card, load_card
from hwmodel.backends.scale_sim import MODE, Product
from hwmodel.backends.systolic import compute_cycles, folds
from hwmodel.backends.tpu import silicon
from hwmodel.backends.tpu.parameters import TpuParameters
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.files import check_writable, write_file
from hwmodel.ir.masks import BlockMask

if TYPE_CHECKING:
    from hwmodel.ir.masks import Mask
    from hwmodel.ir.trace import Trace

Method = Literal["joined", "columns", "tiles"]
RUN_NAME = "hwmodel"
FILES = ("scale.cfg", "topology.csv", "layout.csv", "layers.csv", "run.py", "README.md")


@dataclass(frozen=True, slots=True)
class Line:
    """Part of an operator: a product that SCALE-Sim runs once and that occurs ``runs`` times in it."""

    operator: str
    product: Product
    runs: int
    kept_tiles: float
    all_tiles: int

    @property
    def cycles(self) -> int:
        """Total cycles that SCALE-Sim will report for one run."""
        p = self.product
        return int(compute_cycles(m=p.m, k=p.k, n=p.n, rows=p.rows, cols=p.cols, dataflow=p.dataflow))


def export(
    trace: Trace,
    folder: str | Path,
    *,
    device: str | Path | Card = "tpu-v3",
    overrides: Mapping[str, Any] | None = None,
    method: str = "joined",
) -> list[Line]:
    """Write configuration, topology and layout, a table that maps operators to rows, a runner and a README into ``folder``.

    Parameters
    ----------
    folder : must exist; files of the same names are replaced
    device : a card of the TPU backend; ``overrides`` replace its fields (array_rows, array_cols, dataflow)
    method : how kept tiles are written (module docstring)

    Returns
    -------
    list of Line
        What ``layers.csv`` says, in trace order.

    Raises
    ------
    HwmodelError
        A missing folder, a device that is no systolic array, an unknown method, or a trace without products.
    """
    target = Path(folder)
    card, parameters, way = check_export(target, device=device, overrides=overrides, method=method)
    lines = list(_all_lines(Workload.of(trace, dtype=None, default_dtype=card.default_dtype), parameters, way))
    if not lines:
        raise HwmodelError(f"{trace.model}: no product is left to export; SCALE-Sim models matrix products only")
    products = list(dict.fromkeys(line.product for line in lines))
    contents = {
        "scale.cfg": _configuration(products),
        "topology.csv": _topology(products),
        "layout.csv": "Layer name,\n",
        "layers.csv": _layers(lines, products),
        "run.py": _RUNNER,
        "README.md": _readme(trace, lines, products, _PRUNED[way]),
    }
    for name in FILES:
        write_file(target / name, contents[name])
    return lines


def check_export(
    folder: str | Path, *, device: str | Path | Card, overrides: Mapping[str, Any] | None, method: str
) -> tuple[Card, TpuParameters, Method]:
    """Refuse what cannot be exported, before any long work."""
    if method not in get_args(Method):
        raise UnknownNameError("method", method, get_args(Method))
    for name in FILES:
        check_writable(Path(folder) / name)
    card = device if isinstance(device, Card) else load_card(device)
    parameters = card.resolve(None, overrides)
    if not isinstance(parameters, TpuParameters):
        raise HwmodelError(f"{card.name}: SCALE-Sim needs a systolic array; expected a card of backend 'tpu', such as tpu-v3")
    return card, parameters, cast("Method", method)


def _all_lines(workload: Workload, parameters: TpuParameters, method: Method) -> Iterator[Line]:
    """Every product as runs of dense layers, in trace order."""
    parts = (silicon.first_products(workload, parameters), silicon.second_products(workload, parameters))
    for row, operator in enumerate(workload.trace.operators):
        for part in parts:
            if part.batch[row] > 0:
                yield from _lines(operator.name, operator.mask, part, row, parameters, method)


def _lines(  # noqa: PLR0917  (one call)
    name: str, mask: Mask | None, part: silicon.Products, row: int, parameters: TpuParameters, method: Method
) -> Iterator[Line]:
    rows, cols = int(parameters.array_rows), int(parameters.array_cols)
    m, k, n = (int(side[row]) for side in (part.m, part.k, part.n))
    flow, copies = parameters.dataflow, int(part.batch[row])
    kept, whole = float(part.tiles[row]), -(-k // rows) * -(-n // cols)
    if not m * k * n:
        return
    if flow != "ws" or round(kept) == whole:
        every = int(folds(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=flow))
        yield Line(name, Product(m, k, n, rows, cols, flow), copies, kept if flow == "ws" else every, every)
        return
    for tiles, runs in sorted(_stacks(mask, round(kept), (rows, cols, -(-n // cols)), method).items()):
        yield Line(name, Product(m, rows * tiles, cols, rows, cols, flow), runs * copies, kept, whole)


def _stacks(mask: Mask | None, kept: int, array: tuple[int, int, int], method: Method) -> Counter[int]:
    """Tiles of each layer that holds kept tiles, with the number of such layers."""
    rows, cols, columns = array
    if kept == 0:
        return Counter()
    if method == "joined":
        return Counter({kept: 1})
    if method == "tiles":
        return Counter({1: kept})
    if isinstance(mask, BlockMask):
        heights = mask.tile_occupancy(cols, rows).sum(axis=1).tolist()
    else:  # only a number is known: spread evenly
        heights = [kept // columns + (column < kept % columns) for column in range(columns)]
    return Counter(int(height) for height in heights if height)


def _configuration(products: list[Product]) -> str:
    """SCALE-Sim 3.0.0's configuration; operands never overlap, for an address of 0 would count as pruned."""
    first = products[0]
    filter_offset = max(p.m * p.k for p in products) + 1
    return _CONFIGURATION.substitute(
        run_name=RUN_NAME, rows=first.rows, cols=first.cols, ifmap_kb=first.ifmap_kb, filter_kb=first.filter_kb,
        ofmap_kb=first.ofmap_kb, filter_offset=filter_offset, dataflow=first.dataflow, mode=MODE,
        ofmap_offset=filter_offset + max(p.k * p.n for p in products),
    )  # fmt: skip


def _topology(products: list[Product]) -> str:
    """Rows of -i gemm: name, M, N, K and a comma at the end, without which the package drops K."""
    rows = [f"{_row_name(p)}, {p.m}, {p.n}, {p.k},\n" for p in products]
    return "".join(["Layer, M, N, K,\n", *rows])


def _row_name(product: Product) -> str:
    return f"m{product.m}_k{product.k}_n{product.n}"


def _layers(lines: list[Line], products: list[Product]) -> str:
    """Which row of the topology (``layer_id`` of SCALE-Sim's reports) belongs to which operator, and its cycles."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["operator", "layer_id", "layer", "runs", "kept_tiles", "all_tiles", "cycles_per_run", "cycles"])
    for line in lines:
        where = (line.operator, products.index(line.product), _row_name(line.product), line.runs)
        writer.writerow([*where, f"{line.kept_tiles:g}", line.all_tiles, line.cycles, line.runs * line.cycles])
    return text.getvalue()


def _readme(trace: Trace, lines: list[Line], products: list[Product], pruned: str) -> str:
    first = products[0]
    broken = sorted({line.operator for line in lines if line.kept_tiles != round(line.kept_tiles)})
    return _README.substitute(
        model=trace.model, batch=trace.batch, rows=first.rows, cols=first.cols, dataflow=first.dataflow, run_name=RUN_NAME,
        layers=len(products), total=sum(line.runs * line.cycles for line in lines), runs=sum(line.runs for line in lines),
        pruned=pruned if first.dataflow == "ws" else _STREAMED,
        rounded=_ROUNDED.substitute(count=len(broken)) if broken else "",
    )  # fmt: skip


_CONFIGURATION = Template("""\
[general]
run_name = $run_name

[architecture_presets]
ArrayHeight = $rows
ArrayWidth = $cols
IfmapSramSzkB = $ifmap_kb
FilterSramSzkB = $filter_kb
OfmapSramSzkB = $ofmap_kb
IfmapOffset = 0
FilterOffset = $filter_offset
OfmapOffset = $ofmap_offset
Dataflow = $dataflow
Bandwidth = 10
ReadRequestBuffer = 32
WriteRequestBuffer = 32

[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2

[sparsity]
SparsitySupport = false

[run_presets]
InterfaceBandwidth = $mode
UseRamulatorTrace = False
""")

_RUNNER = '''\
"""SCALE-Sim 3.0.0's own command line, on NumPy 2.4 and later too. Arguments as for ``python -m scalesim.scale``."""

import runpy

import numpy as np
from scalesim.memory import double_buffered_scratchpad_mem, read_buffer


def largest(*values):
    """``max``, also of a list of arrays of one element each, which NumPy 2.4 no longer turns into numbers."""
    return np.max(values[0]) if len(values) == 1 else max(values)


for module in (double_buffered_scratchpad_mem, read_buffer):
    module.max = largest
runpy.run_module("scalesim.scale", run_name="__main__", alter_sys=True)
'''

_PRUNED: Mapping[Method, str] = {
    "joined": "A pruned weight is written as one product that holds all its kept tiles (method `joined`): t tiles of p cycles\n"
    "report t * p - 1, as hwmodel's modes `systolic` and `scale-sim` count.",
    "columns": "A pruned weight is written as one product per column of tiles that keeps any (method `columns`): t tiles of p\n"
    "cycles in c columns report t * p - c, where hwmodel's modes count t * p - 1.",
    "tiles": "A pruned weight is written as one product per kept tile (method `tiles`): t tiles of p cycles report t * p - t,\n"
    "where hwmodel's modes count t * p - 1.",
}
_STREAMED = "Weights stream through the array under this dataflow, so no tile can be skipped: pruned weights are written whole."
_ROUNDED = Template(
    "\nThe masks of $count operators are only expected ones; their number of kept tiles is rounded, so their cycles differ from\n"
    "hwmodel's, which price the expectation. Column `kept_tiles` of `layers.csv` holds it.\n"
)

_README = Template("""\
# $model, batch $batch, on a $rows x $cols array, dataflow $dataflow

Written by `hwmodel export-scalesim` for SCALE-Sim 3.0.0 in CALC mode, where memory never stalls. To rerun, in this folder:

    python -m scalesim.scale -c scale.cfg -t topology.csv -l layout.csv -i gemm -p out

That command needs `pip install scalesim==3.0.0 "numpy<2.4"`: the package crashes on NumPy 2.4 and later. There, replace
`-m scalesim.scale` by `run.py` (mends the package in memory, needs nothing but it), or by `-m hwmodel.backends.scale_sim`.

Then column `Total Cycles` of `out/$run_name/COMPUTE_REPORT.csv` equals `cycles_per_run` of `layers.csv` at the same `layer_id`
(not the column `incl. prefetch`, which is not physical here). It is the index of the last cycle: one less than the duration.
SCALE-Sim writes six traces a layer, megabytes to gigabytes, and keeps every layer in memory until it ends: at DeiT-B's size
take some rows of `topology.csv` at a time.

`topology.csv` holds $layers distinct products; the network runs them $runs times, $total cycles in all (`layers.csv`). Heads and
images are layers of their own, and operators that are no matrix products are left out: SCALE-Sim has neither.

$pruned
$rounded""")
