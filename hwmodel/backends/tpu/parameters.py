"""The numbers a card gives the TPU backend. In a sweep any plain number may be an array of shape (designs, 1)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hwmodel.backends.base import Parameters
from hwmodel.backends.tpu.lowering import LoweringName

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Whole = Annotated[float, Field(ge=1, multiple_of=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Table = dict[str, NotNegative]


class TpuParameters(Parameters):
    """Parameters of a chip and of each of its cores.

    Parameters
    ----------
    array_rows, array_cols : multipliers of one systolic array along the input and the output side of a weight tile
    dataflow : "ws", "os" or "is"; only modes ``systolic`` and ``scale-sim`` read it, the silicon keeps weights
    clock_hz : clock of the array
    mxus : systolic arrays of a core; modes ``systolic`` and ``scale-sim`` have one
    chip_cores : cores of the chip
    cores : cores that work, 1 by default; images are split evenly among them. Modes ``device`` and ``device+host`` only
    lowering : what shares a kernel and how often row-wise operators pass over memory (:mod:`hwmodel.backends.tpu.lowering`)
    mxu_efficiency : share of the array's peak that long products reach
    sublanes : rows of an activation are padded to a multiple of this, columns to ``array_cols``
    product_passes : passes through the array by compute dtype
    vmem_bytes : on-chip memory of a core; half of it holds operands in flight, the other half is being filled
    product_hbm_bytes_per_s : bandwidth that products achieve
    vector_hbm_bytes_per_s : bandwidth that row-wise and elementwise operators achieve (reads and writes alternate)
    vector_element_bytes : bytes of one element of a vector operator, whatever its dtype
    hbm_passes : times a row-wise operator moves its data, reads plus writes, by kind; ``rowwise`` is for the others
    program_hbm_passes : the same inside a compiled program, and alone as far as half the on-chip memory reaches; where
        it differs
    vector_ops_per_cycle : lanes of the vector unit
    vector_ops : vector instructions per element by kind or family
    dispatch_s : host time of one program in mode ``device+host``, by kind of its only operator; ``program`` for others
    host_step_after_s, host_step_s : each step is added once a program runs longer than its limit
    static_w : power of the whole chip when nothing runs
    max_power_w : highest power of the whole chip
    mac_j, vector_op_j, vmem_j_per_byte, hbm_j_per_byte : energy of one event
    """

    array_rows: Whole
    array_cols: Whole
    dataflow: Literal["ws", "os", "is"]
    clock_hz: Positive
    mxus: Whole
    chip_cores: Whole
    cores: Whole = 1
    lowering: LoweringName = "xla"
    mxu_efficiency: Fraction
    sublanes: Whole
    product_passes: Table
    vmem_bytes: Positive
    product_hbm_bytes_per_s: Positive
    vector_hbm_bytes_per_s: Positive
    vector_element_bytes: Positive
    hbm_passes: Table
    program_hbm_passes: Table
    vector_ops_per_cycle: Positive
    vector_ops: Table
    dispatch_s: Table
    host_step_after_s: list[NotNegative]
    host_step_s: list[NotNegative]
    static_w: NotNegative
    max_power_w: Positive
    mac_j: NotNegative
    vector_op_j: NotNegative
    vmem_j_per_byte: NotNegative
    hbm_j_per_byte: NotNegative

    @field_validator("cores")
    @classmethod
    def _chip_has_them(cls, cores: float, info: ValidationInfo) -> float:
        if cores > info.data.get("chip_cores", cores):
            raise ValueError(f"must be between 1 and the chip's {info.data['chip_cores']:g}")
        return cores

    @model_validator(mode="after")
    def _tables_are_whole(self) -> Self:
        """Each table has the entry that stands for everything it does not name."""
        fallbacks = {
            "hbm_passes": {"rowwise"},
            "vector_ops": {"rowwise", "elementwise", "movement", "reduction"},
            "dispatch_s": {"program"},
        }
        missing = [f"{table}.{key}" for table, keys in fallbacks.items() for key in sorted(keys - getattr(self, table).keys())]
        if missing:
            raise ValueError(f"missing entries: {', '.join(missing)}")
        if len(self.host_step_after_s) != len(self.host_step_s):
            raise ValueError("host_step_after_s and host_step_s must have the same length")
        return self
