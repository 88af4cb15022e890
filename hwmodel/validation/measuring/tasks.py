"""What is timed: the distinct operators of a trace, or a grid of products. Knows no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwmodel.errors import HwmodelError
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.operators import Operator, attention, matmul
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import shape_of

UNTIMED = {"patchify": "the patch convolution reads the image in place"}
"""Kinds that no machine runs by themselves."""
_AXES = ("m", "k", "n", "batch")
_LARGEST_GRID = 100_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to time, as its row in the file will name it; ``operator`` is None for a whole model.

    ``count``: how often it occurs in what was asked for.
    """

    name: str
    shape: str
    dtype: str
    batch: int = 1
    operator: Operator | None = None
    count: int = 1


def tasks_of_trace(trace: Trace, *, dtype: str | None = None, attention_choice: str = "source") -> list[Task]:
    """Each distinct operator once, in the order of first appearance.

    Masks are left out: what is timed is the dense kernel of that shape. Attention that the source fuses (or that
    ``attention_choice`` "fused" forces) is one operator. Precedence of formats: operator, ``dtype``, the trace, fp32.

    Raises
    ------
    HwmodelError
        Where nothing is left to time.
    """
    general = check_dtype(dtype or trace.dtype or "fp32")
    operators = (operator.replace(dtype=operator.dtype or general) for operator in _calls(trace.operators, attention_choice))
    return _distinct(operator for operator in operators if operator.kind not in UNTIMED)


def _calls(operators: Sequence[Operator], choice: str) -> Iterable[Operator]:
    """The calls PyTorch makes: fused attention groups become one attention."""
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        if operator.attention_group and (choice == "fused" or (choice == "source" and operator.fused_in_source)):
            groups.setdefault(operator.attention_group, []).append(operator)
    fused = {name: whole for name, members in groups.items() if (whole := _whole_attention(members)) is not None}
    told: set[str] = set()
    for operator in operators:
        group = operator.attention_group
        if group not in fused:
            yield operator
        elif group not in told:
            told.add(group)
            yield fused[group]


def _whole_attention(members: Sequence[Operator]) -> Operator | None:
    """One attention from its scores, softmax and context; None where two products cannot be told."""
    products = [operator for operator in members if operator.family == "product"]
    if len(products) != 2:
        return None
    scores = products[0]
    return attention(
        batch=1, heads=scores.batch, queries=scores.m, keys=scores.n, head_dim=scores.k, dtype=scores.dtype, causal=scores.causal
    )


def _distinct(operators: Iterable[Operator]) -> list[Task]:
    counts: dict[tuple[str, str, str], int] = {}
    first: dict[tuple[str, str, str], Operator] = {}
    for operator in operators:
        key = (*shape_of(operator), operator.dtype or "fp32")
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, operator)
    if not first:
        raise HwmodelError("nothing to time: the trace has no operator that a machine runs")
    return [
        Task(name=name, shape=shape, dtype=dtype, operator=first[name, shape, dtype], count=counts[name, shape, dtype])
        for name, shape, dtype in first
    ]


def tasks_of_grid(text: str, *, dtype: str = "fp32") -> list[Task]:
    """Products of every combination of ``"m=197,394 k=192,768 n=192:768:192 batch=1"``; a range includes its end.

    A ``batch`` above 1 makes batched products of two activations, 1 a linear layer.

    Raises
    ------
    HwmodelError
        An axis that is unknown, missing or named twice, or a size that is no positive whole number.
    """
    check_dtype(dtype)
    axes: dict[str, list[int]] = {"batch": [1]}
    named: set[str] = set()
    for part in text.split():
        axis, equals, sizes = part.partition("=")
        if not equals or axis not in _AXES or axis in named:
            raise HwmodelError(
                f"--grid {part}: expected each of m=, k=, n= (and batch=) once, for example m=197,394 k=192 n=192:768:192"
            )
        named.add(axis)
        axes[axis] = [size for piece in sizes.split(",") for size in _sizes(part, piece)]
    if missing := [axis for axis in _AXES[:3] if axis not in axes]:
        raise HwmodelError(f"--grid {text!r}: {', '.join(missing)} missing; for example m=197,394 k=192 n=192:768:192")
    combinations = itertools.islice(itertools.product(*(axes[axis] for axis in _AXES)), _LARGEST_GRID + 1)
    operators = [matmul(m=m, k=k, n=n, batch=batch, dtype=dtype) for m, k, n, batch in combinations]
    if len(operators) > _LARGEST_GRID:
        raise HwmodelError(f"--grid {text!r}: more than {_LARGEST_GRID} products; split the grid")
    return _distinct(operators)


def _sizes(where: str, piece: str) -> Sequence[int]:
    """``197`` or ``64:512:64``, the end included."""
    found = re.fullmatch(r"(\d+)(?::(\d+):(\d+))?", piece)
    start, stop, step = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if found is None or start < 1 or (found[2] and (step < 1 or stop < start)):
        raise HwmodelError(f"--grid {where}: {piece!r} must be a positive whole number or FIRST:LAST:STEP")
    return range(start, stop + 1, step) if found[2] else [start]


def whole_model(name: str, *, batch: int, pixels: int, dtype: str) -> Task:
    """One forward pass of a timm model, as a row of its own."""
    return Task(name=name, shape=f"image{pixels}", dtype=dtype, batch=batch)
