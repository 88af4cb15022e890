"""Mode ``paper-fit``: a curve through the three dense rows of the LSP paper's Table 6. Not a machine.

Each tile of weights costs what SCALE-Sim charges for it, ``2 rows + cols + m - 2`` cycles, and ``max(n, k)`` more; linear
layers of the encoder blocks and the classifier only, no patch embedding, no attention. It meets 18.08, 2.7 and 0.63 ms (the
last printed as 0.00063) within 1.1 %, has no fitted constant and no known mechanism: it was found by trying about 2300
variants, so it may be chance. Nothing else in hwmodel uses it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, Workload
from hwmodel.backends.tpu.silicon import Products

REASON = "outside the curve, which has the linear layers of the encoder blocks and the classifier only"


def covered(workload: Workload) -> BoolArray:
    """Rows that the curve has: products with a weight, convolutions and the patch embedding left out."""
    linear: BoolArray = (workload.kind == "matmul") & workload.parameter & (workload.role != "patch_embed")
    return linear


def only_covered(products: Products, workload: Workload) -> Products:
    """The products, the others taken out."""
    return replace(products, batch=np.where(covered(workload), products.batch, 0))


def cycles(products: Products, tiles: FloatArray, per_tile: FloatArray) -> FloatArray:
    """Cycles of one product each: ``tiles * (per_tile + max(n, k))``."""
    return np.asarray(tiles * (per_tile + np.maximum(products.n, products.k)), dtype=np.float64)
