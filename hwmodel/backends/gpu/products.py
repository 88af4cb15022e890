"""Matrix products: candidate tiles, waves over the SMs, operand supply, memory. Pure formulas on arrays.

The library is taken to launch the fastest of a menu of CTA tiles and split-K factors. Time only ever grows with
``m``, ``n``, ``k`` and ``batch``, candidate by candidate, so the minimum does too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number
from hwmodel.backends.gpu.parameters import GpuParameters

TILES: Final = np.array(
    [(256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128),
     (64, 32), (32, 64), (16, 64), (64, 16)], dtype=np.float64
)  # fmt: skip
"""CTA tiles (rows of m, columns of n) of the cuBLAS and CUTLASS kernels seen on Ampere. More tiles fitted one library
better and every other one worse (tried: 160x128, 192x128, 96x128)."""

SPLITS: Final = np.array([1.0, 2.0, 3.0, 4.0, 6.0])
_CANDIDATES: Final = np.concatenate(
    [np.repeat(TILES, len(SPLITS), axis=0), np.tile(SPLITS, len(TILES))[:, None]], axis=1
)  # (tile m, tile n, split)

ACCUMULATORS_PER_SM: Final = 32768
"""fp32 accumulators one SM holds beside operands (half its 64 Ki registers): the number of CTAs that share an SM."""
MAX_CTAS_PER_SM: Final = 4
NORM: Final = 4.0
"""Exponent that blends the MAC rate and the operand supply of the inner loop."""
EPILOGUE_SHARE: Final = 0.41
"""Epilogue stores per clock and SM over operand supply (tensor products); fitted, 15.7 of 38.2 B on A100."""
MISALIGNED_FACTOR: Final = 2.0
"""Tensor-core products whose inner rows are no multiple of 16 bytes (197 or 577 tokens): facts/modelling.md."""
ALIGNMENT_BYTES: Final = 16


@dataclass(frozen=True)
class Style:
    """Constants of one family of product kernels.

    Tensor: fitted on Vidur (Llama-2, phi-2) and the aiconfigurator token sweep. CUDA cores (fp32): fitted on every other
    row of NeuSight's A100 linear and bmm.
    """

    efficiency: float
    narrow: float  # rate of a tile with a side below 128, relative
    thin: float  # ... below 64
    overlap: float  # p-norm of compute and memory time; infinity would be perfect overlap
    wave_s: float  # first loads and last stores of one wave
    split_s: float
    split_passes: float  # times the fp32 partial sums cross DRAM


TENSOR: Final = Style(efficiency=0.95, narrow=1.0, thin=1.0, overlap=2.24, wave_s=0.84e-6, split_s=2.65e-6, split_passes=0.32)
SIMT: Final = Style(efficiency=0.885, narrow=0.42, thin=0.38, overlap=4.25, wave_s=0.59e-6, split_s=4.5e-6, split_passes=3.8)
SIMT_EPILOGUE_BYTES: Final = 39.4


@dataclass(frozen=True, eq=False)
class Products:
    """Columns of shape (n,): ``batch`` products (m, k) x (k, n); ``macs_per_clock`` may be (designs, n).

    ``moved_bytes``: operands and result, each once. ``simt``: runs on CUDA cores.
    """

    batch: FloatArray
    m: FloatArray
    k: FloatArray
    n: FloatArray
    element_bytes: FloatArray
    moved_bytes: FloatArray
    macs_per_clock: FloatArray
    simt: BoolArray

    def of_style(self, field: str) -> FloatArray:
        """A constant of :class:`Style`, per product."""
        return np.where(self.simt, getattr(SIMT, field), getattr(TENSOR, field))


def product_seconds(products: Products, gpu: GpuParameters) -> tuple[FloatArray, IntArray]:
    """Device time of each product, and the index of its tile in :data:`TILES`.

    Notes
    -----
    ``launch + norm(waves, memory) + split-K reduction``, times :data:`MISALIGNED_FACTOR` where it applies; fastest
    candidate. DRAM traffic is compulsory traffic (operands that stay in L2 between kernels: tried, made things worse).
    Clock under load is the power model's business. Kernels for m <= 16 are of another kind and not modelled apart.
    """
    tile_m, tile_n, split = (column.reshape(-1, 1, 1) for column in _CANDIDATES.T)
    compute = _waves_seconds(products, gpu, tile_m, tile_n, split)
    memory = products.moved_bytes / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    overlap = products.of_style("overlap")
    busy = (compute**overlap + memory**overlap) ** (1.0 / overlap)
    seconds = gpu.launch_cycles / gpu.clock_hz + busy + _split_seconds(products, gpu, split)
    chosen = np.argmin(seconds, axis=0)
    best: FloatArray = np.min(seconds, axis=0) * _alignment_factor(products)
    tiles: IntArray = np.squeeze(chosen, axis=0) if best.shape[0] == 1 else chosen[0]
    return (best[0] if best.shape[0] == 1 else best), tiles // len(SPLITS)


def per_mac_cycles(tile_m: Number, tile_n: Number, products: Products, gpu: GpuParameters) -> FloatArray:
    """SM cycles per MAC of the inner loop of one tile: MAC rate and operand supply, blended by a 4-norm."""
    side = np.minimum(tile_m, tile_n)
    relative = np.where(side >= 128, 1.0, np.where(side >= 64, products.of_style("narrow"), products.of_style("thin")))
    rate = 1.0 / (products.macs_per_clock * products.of_style("efficiency") * relative)
    supply = (tile_m + tile_n) * products.element_bytes / (gpu.feed_bytes_per_clock_sm * tile_m * tile_n)
    supply = np.where(products.simt, 0.0, supply)
    cycles: FloatArray = (rate**NORM + supply**NORM) ** (1.0 / NORM)
    return cycles


def _waves_seconds(
    products: Products, gpu: GpuParameters, tile_m: FloatArray, tile_n: FloatArray, split: FloatArray
) -> FloatArray:
    """Time of all waves. CTAs run in whole waves of every slot: a last wave of few CTAs costs a full one.

    Source of the rule: the token sweep (N 3072, K 768) is flat from 1025 to 1152, 1280 to 2048 and 2305 to 2816 tokens.
    """
    ctas = products.batch * np.ceil(products.m / tile_m) * np.ceil(products.n / tile_n) * split
    resident = np.clip(ACCUMULATORS_PER_SM / (tile_m * tile_n), 1, MAX_CTAS_PER_SM)
    waves = np.ceil(ctas / (gpu.sm_count * resident))
    per_sm = np.where(waves > 1, waves * resident, np.ceil(ctas / gpu.sm_count))
    inner = np.ceil(products.k / split / 32) * 32 * tile_m * tile_n * per_mac_cycles(tile_m, tile_n, products, gpu)
    stores = np.where(products.simt, SIMT_EPILOGUE_BYTES, EPILOGUE_SHARE * gpu.feed_bytes_per_clock_sm)
    epilogue = tile_m * tile_n * products.element_bytes / stores
    seconds: FloatArray = per_sm * (inner + epilogue) / gpu.clock_hz + waves * products.of_style("wave_s")
    return seconds


def _split_seconds(products: Products, gpu: GpuParameters, split: FloatArray) -> FloatArray:
    """Adding up ``split`` fp32 partial results. Poorly identified by the data."""
    partials = split * products.batch * products.m * products.n * 4
    reduction = products.of_style("split_s") + products.of_style("split_passes") * partials / gpu.dram_bytes_per_s
    return np.where(split > 1, reduction, 0.0)


def _alignment_factor(products: Products) -> FloatArray:
    """2 for tensor products with a row of operands that is no multiple of 16 bytes, else 1."""
    odd = ((products.k * products.element_bytes) % ALIGNMENT_BYTES != 0) | (
        (products.n * products.element_bytes) % ALIGNMENT_BYTES != 0
    )
    return np.where(odd & ~products.simt, MISALIGNED_FACTOR, 1.0)
