"""Named lowering profiles: what a compiler makes of a program, which is not the silicon's doing.

===============  =========================================================  ===========================================
profile          elementwise operators                                      passes of row-wise operators over memory
===============  =========================================================  ===========================================
``xla``          ride in the kernel of the product or elementwise operator  ``program_hbm_passes`` inside a program, and
                 that made their operand, if nobody else reads it           alone while they fit on chip;
                                                                            else ``hbm_passes``
``op-by-op``     a kernel each: every operator goes through memory          ``hbm_passes`` everywhere
``single-pass``  as ``xla``                                                 2: one read, one write, as a kernel written
                                                                            by hand that keeps whole rows on chip
===============  =========================================================  ===========================================

Under every profile row-wise operators (softmax, layernorm), movements and reductions have kernels of their own, nothing
rides in a row-wise operator, attention is never one kernel, and weights of a program are fetched while the operator before
runs. Measured rows are single operators, so they calibrate ``xla`` and ``op-by-op`` alike, and neither inside a program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

LoweringName = Literal["xla", "op-by-op", "single-pass"]


@dataclass(frozen=True, slots=True)
class Lowering:
    """One profile.

    Parameters
    ----------
    fuses : elementwise operators ride in the kernel before them
    fewer_passes : ``program_hbm_passes`` apply where the card has them
    most_passes : no row-wise operator makes more passes than this
    """

    fuses: bool = True
    fewer_passes: bool = True
    most_passes: float = float("inf")


LOWERINGS: Mapping[LoweringName, Lowering] = MappingProxyType({
    "xla": Lowering(),
    "op-by-op": Lowering(fuses=False, fewer_passes=False),
    "single-pass": Lowering(most_passes=2.0),
})  # fmt: skip
