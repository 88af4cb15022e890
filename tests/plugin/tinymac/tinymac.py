"""The smallest backend there is: an array that multiplies, and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from hwmodel.backends.base import Costs, Options, Parameters, Workload

Positive = Annotated[float, Field(gt=0)]


class TinyParameters(Parameters):
    """What its card must say."""

    clock_hz: Positive
    macs_per_cycle: Positive
    mac_j: Positive


class TinyMac:
    """Kept MACs over peak; no memory, no vector unit."""

    name: ClassVar[str] = "tinymac"
    modes: ClassVar[tuple[str, ...]] = ("peak",)
    parameters: ClassVar[type[TinyParameters]] = TinyParameters

    def kinds(self, mode: str) -> frozenset[str]:
        return frozenset({"matmul"})

    def free(self, mode: str) -> Mapping[str, str]:
        return {}

    def cost(self, workload: Workload, parameters: TinyParameters, options: Options) -> Costs:
        macs = workload.kept_macs
        cycles = macs / parameters.macs_per_cycle
        nothing = np.zeros(len(workload))
        return Costs(
            cycles=cycles,
            latency_s=cycles / parameters.clock_hz,
            compute_j=macs * parameters.mac_j,
            onchip_j=nothing,
            offchip_j=nothing,
            static_j=nothing,
            dram_bytes=nothing,
            executed_macs=macs,
            bound=np.where(macs > 0, "compute", "none"),
            kernel=np.full(len(workload), "array"),
            fused_into=np.arange(len(workload)),
        )
