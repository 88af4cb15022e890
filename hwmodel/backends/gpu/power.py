"""Board power: what a kernel's energy is, and how long it takes once the board limit lowers the clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters

_TINY_S = 1e-15


@dataclass(frozen=True, eq=False)
class Energies:
    """Dynamic joules of each kernel at full clock, by cause."""

    compute_j: FloatArray
    onchip_j: FloatArray
    offchip_j: FloatArray


def stretch(seconds: FloatArray, energies: Energies, gpu: GpuParameters) -> FloatArray:
    """Factor by which the board limit lowers the clock under each kernel, at least 1.

    Dynamic power goes as the square of the clock (voltage follows it), so a kernel of dynamic energy E that would take t
    settles at ``sqrt(E / (t * (limit - static)))``. The measured form: clock falls with the square root of tensor
    utilisation above 0.65-0.7 on a 300 W A100. Ignores the board's averaging window: a lone short burst runs at full
    clock.
    """
    dynamic = energies.compute_j + energies.onchip_j + energies.offchip_j
    demand = dynamic / np.maximum(seconds * (gpu.board_limit_w - gpu.static_w), _TINY_S)
    factor: FloatArray = np.sqrt(np.maximum(demand, 1.0))
    return factor


def capped(seconds: FloatArray, energies: Energies, gpu: GpuParameters, *, slows: bool = True) -> tuple[FloatArray, Energies]:
    """Seconds and energies under the board limit.

    Where the clock sets the pace (``slows``) time grows by the factor and dynamic energy falls by it: the board draws
    exactly its limit. Where memory does (streams: GELU in fp32 keeps its speed on a 250 W board), time stays and dynamic
    energy is what the limit leaves. Nothing is invented, and both still grow with work.
    """
    factor = stretch(seconds, energies, gpu)
    longer, lower = (seconds * factor, factor) if slows else (seconds, factor**2)
    return longer, Energies(energies.compute_j / lower, energies.onchip_j / lower, energies.offchip_j / lower)
