"""ViTA: a RISC-V accelerator whose processing elements multiply one weight block by one token vector per cycle.

Mode ``paper`` is what LSP's Table 5 timed: layers with weights only, on one element. Mode ``full`` is one element with
everything around it, mode ``chip`` all of them. Sources and assumptions are in ``simulators/vita``.
"""

from hwmodel.backends.vita.backend import Vita
from hwmodel.backends.vita.parameters import ProcessingElement, VitaParameters
from hwmodel.backends.vita.sweep import Totals, sweep

__all__ = ["ProcessingElement", "Totals", "Vita", "VitaParameters", "sweep"]
