"""Joules by cause. Five unknowns on three published figures (123, 220 and 262 W), so: assumed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.backends.base import FloatArray, Scope
from hwmodel.backends.tpu.parameters import TpuParameters


class Joules(NamedTuple):
    """Energy of each operator by unit; shapes (n_ops,) or (designs, n_ops)."""

    mxu: FloatArray
    vector: FloatArray
    onchip: FloatArray
    offchip: FloatArray
    static: FloatArray

    @property
    def compute(self) -> FloatArray:
        """Systolic arrays and vector unit."""
        return self.mxu + self.vector


def joules(
    *,
    latency_s: FloatArray,
    macs: FloatArray,
    vector_ops: FloatArray,
    onchip_bytes: FloatArray,
    dram_bytes: FloatArray,
    parameters: TpuParameters,
    scope: Scope,
) -> Joules:
    """Energy of the whole chip, idle cores included.

    Events of all working cores times their energy, plus the chip's static power times time, whoever works. Where that
    exceeds the chip's highest power, the events are scaled down to it (a real chip would slow down instead). Scopes
    ``dynamic`` and ``lsp`` leave static power out.

    Source: constants in the card, fidelity "assumed". Ignores: operand values, voltage, temperature, the host.
    """
    p = parameters
    mxu, vector = macs * p.mac_j, vector_ops * p.vector_op_j
    onchip, offchip = onchip_bytes * p.vmem_j_per_byte, dram_bytes * p.hbm_j_per_byte
    events = np.asarray(mxu + vector + onchip + offchip)
    allowed = np.maximum(p.max_power_w - np.asarray(p.static_w), 0.0) * latency_s
    scale = np.divide(np.minimum(events, allowed), events, out=np.zeros_like(events + allowed), where=events + 0 * allowed > 0)
    static = p.static_w * latency_s if scope == "board" else np.zeros_like(latency_s)
    return Joules(mxu * scale, vector * scale, onchip * scale, offchip * scale, static)
