"""What a GPU card must and may say. Defaults are constants of kernel generations, calibrated on A100 (see each line)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from hwmodel.backends.base import Parameters, TextArray

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class GpuParameters(Parameters):
    """Resolved numbers of one GPU, SI units.

    The first group comes from a data sheet. The second has defaults: constants of a kernel or architecture generation,
    fitted on A100 measurements (Vidur, aiconfigurator, NeuSight, FlagPerf); a card overrides what it knows better.
    """

    sm_count: Positive
    clock_hz: Positive
    macs_per_clock_sm: dict[str, Positive]
    """Dense multiply-accumulates per clock and SM, by dtype. ``fp32`` runs on CUDA cores, all others on tensor cores."""
    dram_bytes_per_s: Positive
    l2_bytes: Positive
    board_limit_w: Positive
    idle_w: NonNegative
    static_w: NonNegative
    """Power of the board at full clock while any kernel runs, before the first operation or byte; idle included."""
    mac_j: dict[str, Positive]
    """Energy of one MAC by dtype, operand supply on the chip included, at full clock."""
    dram_j_per_byte: NonNegative
    onchip_j_per_byte: NonNegative
    """L2, network and SM energy of a byte that a kernel reads or writes once."""

    dram_efficiency: Share = 0.88
    feed_bytes_per_clock_sm: Positive = 37.8
    """Operand supply of one SM in a tensor-core product. Scales with the tensor rate of the generation:
    37.8 at 1024 fp16 MACs per clock and SM."""
    cuda_core_efficiency: Share = 0.96
    """Part of the fp32 peak that large products reach: 0.96-0.98 on SMs of 64 lanes (FlagPerf, A100)."""
    launch_cycles: NonNegative = 3814.0
    """Launch and drain of one product kernel; other kernels by their share of it (see ``vector.LAUNCH_SHARE``)."""
    kernel_gap_s: NonNegative = 0.5e-6
    """Between two kernels of a whole model, host not in the way (facts/modelling.md)."""
    host_operator_s: NonNegative = 35e-6
    """Host time to dispatch one operator in eager mode."""
    power_window_s: Positive = 1.0e-3
    """How long an operator alone must run before the board limit has lowered the clock all the way. Fitted on Vidur's fit
    rows with the energy per MAC of FlagPerf's steady loops: one constant for all A100 boards."""
    l2_resident_share: Share = 0.5
    """Part of the L2 that a streaming kernel finds its data in."""
    l2_bytes_per_clock_sm: Positive = 22.0
    attention_kernel: Literal["fa2", "fa2-sglang", "trtllm", "trtllm-encoder"] = "fa2"
    """Generation of fused attention kernels, see ``attention.GENERATIONS``."""
    semi_structured_rate: Positive = 2.0
    """Tensor rate of a product with a 2:4 weight over dense; 1 where the tensor cores cannot skip (before Ampere)."""
    exponentials_per_clock_sm: Positive = 16.0
    operation_j: NonNegative = 5e-12
    transcendental_j: NonNegative = 430e-12
    """GELU, sine, cosine: FlagPerf board power above that of streaming rows; exponentials and roots a third of it."""

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if not self.idle_w <= self.static_w < self.board_limit_w:
            raise ValueError(
                f"need idle_w <= static_w < board_limit_w, got {self.idle_w}, {self.static_w} and {self.board_limit_w}"
            )
        return self


def arithmetic(dtypes: TextArray) -> TextArray:
    """The format products compute in: autocast computes in its 16-bit half."""
    return np.array([dtype.removeprefix("amp-") for dtype in dtypes.tolist()], dtype=np.str_)
