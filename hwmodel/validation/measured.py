"""Measured rows in one tidy layout, and the operators they stand for.

A file ``measured.csv`` lies beside the card it belongs to. Columns: source, device, dtype, framework, model_or_op, shape,
batch, metric, value, unit, conditions, split. ``split`` is "fit" where a constant of the card was fitted on the row,
else "held-out".
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hwmodel.errors import HwmodelError
from hwmodel.ir.kinds import ROWWISE, family_of
from hwmodel.ir.operators import Operator, attention, elementwise, matmul, movement, reduction, rowwise

_UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "W": 1.0, "J": 1.0}
_SPLITS = ("fit", "held-out")
_DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "latency": ("s", "ms", "us"),
    "time": ("s", "ms", "us"),
    "power": ("W",),
    "energy": ("J",),
}
"""Units that a metric can have, by a word in its name; others may have any of :data:`_UNITS`."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """One measurement, its value in SI units (seconds, watts or joules)."""

    source: str
    device: str
    dtype: str
    framework: str
    model_or_op: str
    shape: str
    batch: int
    metric: str
    value: float
    conditions: str
    split: str


def read_measured(path: str | Path) -> list[MeasuredRow]:
    """All rows of a measured file.

    Raises
    ------
    HwmodelError
        A file that cannot be read, a missing column, a unit or a split that does not exist, a unit that the metric cannot
        have, or a value that is no positive number; told with the line.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as lines:
            return [_row(f"{path}: line {number}", raw) for number, raw in enumerate(csv.DictReader(lines), start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HwmodelError(f"{path}: cannot be read as a measured file ({getattr(error, 'strerror', None) or error})") from error


def _row(where: str, raw: Mapping[str, str]) -> MeasuredRow:
    try:
        if raw["unit"] not in _UNITS or raw["split"] not in _SPLITS:
            raise HwmodelError(
                f"{where}: unit {raw['unit']!r} and split {raw['split']!r} must be among {[*_UNITS]} and {[*_SPLITS]}"
            )
        units = next((units for word, units in _DIMENSIONS.items() if word in raw["metric"].split("_")), tuple(_UNITS))
        if raw["unit"] not in units:
            raise HwmodelError(f"{where}: {raw['metric']} is in {raw['unit']!r}, expected {' or '.join(units)}")
        texts = {
            name: raw[name]
            for name in ("source", "device", "dtype", "framework", "model_or_op", "shape", "metric", "conditions", "split")
        }
        value = float(raw["value"]) * _UNITS[raw["unit"]]
        if not 0 < value < math.inf:
            raise HwmodelError(f"{where}: the value is {raw['value']}, expected a positive number")
        return MeasuredRow(batch=int(raw["batch"]), value=value, **texts)
    except KeyError as error:
        raise HwmodelError(f"{where}: the column {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise HwmodelError(f"{where}: {error}") from error


_NUMBER = re.compile(r"(B|M|N|K|rows|cols|elems|heads|seq|keys|headdim|inputs|outputs|weights)(\d+)")
_COUNTS = {"inputs": "input_elements", "outputs": "output_elements", "weights": "weight_elements"}


def operator_of(row: MeasuredRow) -> Operator:
    """The operator that a row timed: a product, a row-wise or elementwise operator, or fused attention.

    Shapes read ``M..xN..xK..`` (a leading ``B`` is a batch), ``rows..xcols..``, ``elems..`` or ``heads.. seq.. headdim..``
    (``keys..`` where they are not as many as the queries). ``inputs..``, ``outputs..`` and ``weights..`` tell values read,
    written and parameters read where they are not what the rest implies. See :func:`shape_of`.

    Raises
    ------
    HwmodelError
        A shape that reads as none of them.
    """
    sizes = {name.lower(): int(size) for name, size in _NUMBER.findall(row.shape)}
    for needed, build in _SHAPES.items():
        if set(needed) <= sizes.keys():
            counts = {_COUNTS[name]: size for name, size in sizes.items() if name in _COUNTS}
            return build(row, sizes).replace(**counts) if counts else build(row, sizes)
    raise HwmodelError(f"{row.source}: cannot read the shape {row.shape!r} of {row.model_or_op!r}")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What the clock of a row enclosed: an operator run ``times`` times, and ``host_s`` seconds of the host's dispatch."""

    operator: Operator
    times: int = 1
    host_s: float = 0.0

    def seconds(self, kernel_s: float) -> float:
        """What the row should hold where the operator takes ``kernel_s`` seconds."""
        return self.times * kernel_s + self.host_s


NEUSIGHT_DISPATCH_S: Mapping[str, float] = {"linear": 45e-6, "bmm": 20e-6, "layernorm": 25e-6, "softmax": 20e-6}
"""NeuSight's CUDA events enclose the host's dispatch of a module; fitted on the fit rows. None seen for elementwise."""


def timed(row: MeasuredRow) -> Timed:
    """:func:`operator_of` and what else the row's protocol holds.

    phi-2 adds attention and MLP side by side, so that its residual adds twice (Vidur).
    """
    twice = row.source == "Vidur phi-2" and row.model_or_op == "residual_add"
    host_s = NEUSIGHT_DISPATCH_S.get(row.model_or_op, 0.0) if row.source.startswith("NeuSight") else 0.0
    return Timed(operator=operator_of(row), times=2 if twice else 1, host_s=host_s)


def _product(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    batch = sizes.get("b", 1)
    parameter = {"bmm": False, "grouped_linear": True}.get(row.model_or_op)
    found = matmul(m=sizes["m"], k=sizes["k"], n=sizes["n"], batch=batch, dtype=row.dtype, parameter=parameter)
    if "2:4" in row.model_or_op and "V:N:M" not in row.model_or_op:
        return found.replace(sparsity="2:4")
    return found.replace(kind="conv") if row.model_or_op == "conv" else found


_FRAMEWORK_NAMES: Mapping[str, str] = {"residual_add": "add", "silu_mul": "silu"}
"""Vidur's names of operators, as ours."""


def _rows(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    if row.model_or_op in ROWWISE:
        return rowwise(row.model_or_op, rows=sizes["rows"], cols=sizes["cols"], dtype=row.dtype)
    plain = _elementwise(row, sizes["rows"] * sizes["cols"], two_operands={"add", "sub", "mul", "div", *_FRAMEWORK_NAMES})
    return plain.replace(cols=sizes["cols"])


def _elements(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    """FlagPerf multiplies and divides by a scalar: its times are those of one read and one write."""
    if family_of(row.model_or_op) == "reduction":
        return reduction(row.model_or_op, inputs=sizes["elems"], outputs=1, dtype=row.dtype)
    if family_of(row.model_or_op) == "movement":
        return movement(row.model_or_op, elements=sizes["elems"], dtype=row.dtype)
    return _elementwise(row, sizes["elems"], two_operands={"add", "sub"})


def _elementwise(row: MeasuredRow, elements: int, two_operands: set[str]) -> Operator:
    kind = _FRAMEWORK_NAMES.get(row.model_or_op, row.model_or_op)
    return elementwise(kind, elements=elements, inputs=2 if row.model_or_op in two_operands else 1, dtype=row.dtype)


def _attention(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    causal = row.model_or_op.endswith("causal")
    seq = sizes["seq"]
    return attention(
        batch=row.batch,
        heads=sizes["heads"],
        queries=seq,
        keys=sizes.get("keys", seq),
        head_dim=sizes["headdim"],
        causal=causal,
        dtype=row.dtype,
    )


_SHAPES: Mapping[tuple[str, ...], Callable[[MeasuredRow, Mapping[str, int]], Operator]] = {
    ("m", "n", "k"): _product,
    ("rows", "cols"): _rows,
    ("elems",): _elements,
    ("heads", "seq", "headdim"): _attention,
}


COLUMNS = (
    "source", "device", "dtype", "framework", "model_or_op", "shape", "batch", "metric", "value", "unit", "conditions", "split",
)  # fmt: skip
"""Columns of a measured file, in order."""


def shape_of(operator: Operator) -> tuple[str, str]:
    """``model_or_op`` and ``shape`` of the row that :func:`operator_of` reads back as this operator.

    Name, role, block and mask are not part of a row: a kernel is timed for its shape alone. ``operator`` has a dtype.

    Raises
    ------
    HwmodelError
        An operator without a spelling, because its counts belong to no shape.
    """
    name, shape = _SPELLINGS[operator.family](operator)
    plain = operator_of(_spelled(name, shape, operator.dtype or ""))
    extra = [
        f" {key}{getattr(operator, count)}" for key, count in _COUNTS.items() if getattr(operator, count) != getattr(plain, count)
    ]
    shape += "".join(extra)
    bare = operator.replace(
        name="", role=plain.role, block=None, mask=None, attention_group=None, dense_macs=None, constant=False,
        fused_in_source=plain.fused_in_source, weight_dtype=None,
    )  # fmt: skip
    if operator_of(_spelled(name, shape, operator.dtype or "")) != bare:
        raise HwmodelError(f"{operator.name}: {operator.kind} has no spelling in a measured file")
    return name, shape


def _spelled(name: str, shape: str, dtype: str) -> MeasuredRow:
    return MeasuredRow(
        source="", device="", dtype=dtype, framework="", model_or_op=name, shape=shape, batch=1, metric="latency", value=1.0,
        conditions="", split="fit",
    )  # fmt: skip


def _product_spelling(operator: Operator) -> tuple[str, str]:
    batch = f"B{operator.batch}x" if operator.batch != 1 else ""
    plain = ("linear" if operator.batch == 1 else "grouped_linear") if operator.parameter else "bmm"
    name = plain if operator.kind == "matmul" else operator.kind
    return name, f"{batch}M{operator.m}xN{operator.n}xK{operator.k}"


def _attention_spelling(operator: Operator) -> tuple[str, str]:
    keys = "" if operator.n == operator.m else f" keys{operator.n}"
    name = "attention_causal" if operator.causal else "attention"
    return name, f"heads{operator.batch} seq{operator.m}{keys} headdim{operator.k}"


def _row_spelling(operator: Operator) -> tuple[str, str]:
    return operator.kind, f"rows{operator.elements // max(operator.cols, 1)}xcols{operator.cols}"


def _element_spelling(operator: Operator) -> tuple[str, str]:
    return operator.kind, f"elems{operator.elements}"


_SPELLINGS: Mapping[str, Callable[[Operator], tuple[str, str]]] = {
    "product": _product_spelling,
    "attention": _attention_spelling,
    "rowwise": _row_spelling,
    "elementwise": _element_spelling,
    "movement": _element_spelling,
    "reduction": _element_spelling,
}
