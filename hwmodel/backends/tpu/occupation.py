"""When arrays, vector unit, memory and host of a TPU work for each operator: what the timeline draws beside the kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwmodel.backends.base import Costs, FloatArray, Occupation
from hwmodel.backends.tpu.silicon import Work


def of_array(costs: Costs) -> Mapping[str, Occupation]:
    """Modes of one array: it works all the time, and nothing else is modelled."""
    return {
        "systolic array": Occupation(
            what="One array, weights loaded and skew included; memory takes no time in this mode.",
            busy_s=costs.latency_s, start_s=np.zeros_like(costs.latency_s),
        )
    }  # fmt: skip


def of_core(longest: Work, costs: Costs) -> Mapping[str, Occupation]:
    """Modes of the silicon, of the core with the most images: ``longest`` is its work, on the rows that carry a kernel.

    All three work at the same time and the slowest decides, so all are drawn from the end of the dispatch.
    """

    def told(what: str, busy: FloatArray) -> Occupation:
        return Occupation(what=what, busy_s=busy, start_s=costs.gap_s)

    return {
        "dispatch": Occupation(
            what="The host dispatches a program; the core waits.", busy_s=costs.gap_s, start_s=np.zeros_like(costs.gap_s)
        ),
        "MXU": told("The core's systolic arrays stream the operator's kept tiles.", longest.compute_s),
        "vector unit": told("Instructions of the vector unit.", longest.vector_s),
        "DMA (HBM)": told("Transfers between HBM and the core's memory at the bandwidth that they reach.", longest.memory_s),
    }
