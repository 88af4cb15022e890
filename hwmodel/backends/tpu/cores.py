"""Several cores of a chip: images are split among them, each core has its own copy of the weights and its own memory."""

from __future__ import annotations

import numpy as np

from hwmodel.backends.base import Workload
from hwmodel.backends.tpu.parameters import TpuParameters
from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator


def shares(images: int, parameters: TpuParameters) -> list[tuple[int, int]]:
    """(images, cores that take so many), the largest share first. A core without images idles and is not listed.

    Raises
    ------
    HwmodelError
        A sweep over ``cores``: a choice, not a number to broadcast.
    """
    if np.ndim(parameters.cores):
        raise HwmodelError("cores cannot be swept; estimate 1 and 2 cores one by one")
    cores = int(parameters.cores)
    least, more = divmod(images, cores)
    return [(size, count) for size, count in ((least + 1, more), (least, cores - more)) if size and count]


def part(workload: Workload, images: int) -> Workload:
    """What a core with ``images`` of the batch executes; the workload itself where it takes all."""
    whole = workload.trace.batch
    if images == whole:
        return workload
    operators = tuple(_scaled(operator, images, whole) for operator in workload.trace.operators)
    return Workload(workload.trace.replace(operators=operators, batch=images), workload.dtype, workload.weight_dtype)


def _scaled(operator: Operator, images: int, whole: int) -> Operator:
    """The operator on fewer images. Constants, and products that do not divide by the images, are done whole by each core."""
    if operator.constant:
        return operator
    if operator.family in {"product", "attention"}:
        side = "m" if operator.parameter else "batch"
        if getattr(operator, side) % whole:
            return operator
        changes = {side: getattr(operator, side) // whole * images}
    else:
        changes = {}
    counts = {name: -(-getattr(operator, name) * images // whole) for name in ("elements", "input_elements", "output_elements")}
    return operator.replace(**changes, **counts, dense_macs=None)
