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
    utilisation above 0.65-0.7 on a 300 W A100.
    """
    dynamic = energies.compute_j + energies.onchip_j + energies.offchip_j
    demand = dynamic / np.maximum(seconds * (gpu.board_limit_w - gpu.static_w), _TINY_S)
    factor: FloatArray = np.sqrt(np.maximum(demand, 1.0))
    return factor


def capped(
    seconds: FloatArray, energies: Energies, gpu: GpuParameters, *, slows: bool = True, burst: bool = False
) -> tuple[FloatArray, Energies]:
    """Seconds and energies under the board limit.

    Where the clock sets the pace (``slows``) time grows by the factor and dynamic energy falls by it: the board draws
    exactly its limit. Where memory does (streams: GELU in fp32 keeps its speed on a 250 W board), time stays and dynamic
    energy is what the limit leaves. A ``burst``, one operator alone, is over before the board has lowered its clock all
    the way: the factor is applied in proportion to its length, in full from ``power_window_s`` on. Nothing is invented, and
    both still grow with work.
    """
    factor = stretch(seconds, energies, gpu)
    if not slows:
        return seconds, _divided(energies, factor**2)
    part = np.minimum(seconds / gpu.power_window_s, 1.0) if burst else 1.0
    return seconds * factor**part, _divided(energies, factor ** (2.0 - part))


def _divided(energies: Energies, by: FloatArray) -> Energies:
    return Energies(energies.compute_j / by, energies.onchip_j / by, energies.offchip_j / by)
