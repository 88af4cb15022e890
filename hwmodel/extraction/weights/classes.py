"""A classifier for another number of classes: fine-tuned models differ from the published ones in that, pruned or not."""

from __future__ import annotations

from hwmodel.extraction.whatif.structure import rescaled, reshaped
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace


def class_count(trace: Trace) -> int | None:
    """Outputs of the classifiers; None where there is none, or where they differ."""
    counts = {operator.n for operator in trace.operators if operator.role == "head"}
    return counts.pop() if len(counts) == 1 else None


def with_classes(trace: Trace, classes: int) -> Trace:
    """The trace with classifiers of ``classes`` outputs, and the rows behind them as long. That is no pruning.

    Raises
    ------
    ValueError
        A trace without a classifier, or with several of different sizes.
    """
    present = class_count(trace)
    if present is None:
        raise ValueError("expected classifiers (role 'head') with one number of classes, found none or several numbers")
    heads = [row for row, operator in enumerate(trace.operators) if operator.role == "head"]
    behind = set(heads)
    for producer, consumer in sorted(trace.edges, key=lambda edge: edge[1]):
        if producer in behind:
            behind.add(consumer)
    operators = list(trace.operators)
    for row in sorted(behind):
        operators[row] = _head(operators[row], classes) if row in heads else rescaled(operators[row], present, classes)
    return trace.replace(operators=tuple(operators))


def _head(operator: Operator, classes: int) -> Operator:
    return reshaped(operator, n=classes).replace(dense_macs=operator.dense_macs)
