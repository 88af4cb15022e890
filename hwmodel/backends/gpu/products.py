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
EPILOGUE_BYTES: Final = 16.5
"""Epilogue stores per clock and SM of tensor products, fitted on A100. A path of the SM to the L2: it does not shrink on
boards whose tensor cores are slower, as operand supply does."""
MISALIGNED_FACTOR: Final = 2.0
"""Tensor-core products whose inner rows are no multiple of 16 bytes (197 or 577 tokens): facts/modelling.md."""
ALIGNMENT_BYTES: Final = 16


TENSOR_EFFICIENCY: Final = 0.95
"""Part of the tensor peak that the inner loop of a large tile reaches; CUDA cores have ``gpu.cuda_core_efficiency``."""


@dataclass(frozen=True)
class Style:
    """Constants of one family of product kernels.

    Tensor: fitted on Vidur (Llama-2, phi-2) and half of the aiconfigurator token sweep.
    CUDA cores (fp32): fitted on half of NeuSight's linear and bmm rows, by weight shape.
    """

    narrow: float  # rate of a tile with a side below 128, relative
    thin: float  # ... below 64
    batched: float  # both, in batched products
    overlap: float  # p-norm of compute and memory time; infinity would be perfect overlap
    wave_s: float  # first loads and last stores of one wave
    split_s: float
    split_passes: float  # times the fp32 partial sums cross DRAM
    wholeness: float  # how far a last wave of few CTAs costs as much as a full one


TENSOR: Final = Style(
    narrow=1.0, thin=1.0, batched=1.0, overlap=2.34, wave_s=1.42e-6, split_s=2.83e-6, split_passes=0.33, wholeness=0.75
)
SIMT: Final = Style(
    narrow=0.86, thin=0.52, batched=0.29, overlap=4.5, wave_s=0.2e-6, split_s=14.9e-6, split_passes=4.9, wholeness=0.0
)
SIMT_EPILOGUE_BYTES: Final = 38.9


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
    right_bytes: FloatArray | None = None
    """Bytes of one element of the right operand, where weights are narrower than activations."""

    def of_style(self, field: str) -> FloatArray:
        """A constant of :class:`Style`, per product."""
        constant: FloatArray = np.where(self.simt, getattr(SIMT, field), getattr(TENSOR, field))
        return constant


def product_seconds(products: Products, gpu: GpuParameters, candidates: FloatArray = _CANDIDATES) -> tuple[FloatArray, IntArray]:
    """Device time of each product, and the index of its tile in :data:`TILES`.

    ``candidates`` has shape (kernels, 3): tile rows, tile columns, split of k.

    Notes
    -----
    ``launch + norm(waves, memory) + split-K reduction``, the last two times :data:`MISALIGNED_FACTOR` where it applies;
    fastest candidate. DRAM traffic is compulsory traffic (operands that stay in L2 between kernels: tried, made things worse).
    Clock under load is the power model's business. Kernels for m <= 16 are of another kind and not modelled apart.
    """
    tile_m, tile_n, split = (column.reshape(-1, 1, 1) for column in candidates.T)
    compute = _waves_seconds(products, gpu, tile_m, tile_n, split)
    memory = products.moved_bytes / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    overlap = products.of_style("overlap")
    busy = (compute**overlap + memory**overlap) ** (1.0 / overlap)
    work = (busy + _split_seconds(products, gpu, split)) * _alignment_factor(products)
    seconds = gpu.launch_cycles / gpu.clock_hz + work
    best: FloatArray = seconds.min(axis=0)
    tiles: IntArray = seconds.argmin(axis=0)[0] // len(SPLITS)
    return (best[0] if len(best) == 1 else best), tiles


def inner_cycles(tile_m: Number, tile_n: Number, products: Products, gpu: GpuParameters, rate: Number = 1.0) -> FloatArray:
    """SM cycles per MAC of the inner loop of a tile: MAC rate (times ``rate``) and operand supply, blended by a 4-norm.

    CUDA cores are far too slow to be limited by operands from L2.
    """
    efficiency = np.where(products.simt, gpu.cuda_core_efficiency, TENSOR_EFFICIENCY)
    mac = 1.0 / (products.macs_per_clock * efficiency * rate)
    right = products.element_bytes if products.right_bytes is None else products.right_bytes
    supply = (tile_m * products.element_bytes + tile_n * right) / (gpu.feed_bytes_per_clock_sm * tile_m * tile_n)
    cycles: FloatArray = (mac**NORM + np.where(products.simt, 0.0, supply) ** NORM) ** (1.0 / NORM)
    return cycles


def _tile_rate(tile_m: FloatArray, tile_n: FloatArray, products: Products) -> FloatArray:
    """MAC rate of small tiles relative to large ones.

    CUDA cores: 0.86 below 128, 0.51 below 64; the library's batched kernels have none that pay (a head dimension of 64
    runs at half rate, 96 at three quarters).
    """
    side = np.minimum(tile_m, tile_n)
    single = np.where(side >= 64, products.of_style("narrow"), products.of_style("thin"))
    return np.where(side >= 128, 1.0, np.where(products.batch > 1, products.of_style("batched"), single))


def _waves_seconds(products: Products, gpu: GpuParameters, tile_m: FloatArray, tile_n: FloatArray, split: FloatArray) -> FloatArray:
    """Time of all waves.

    A last wave of few CTAs costs tensor kernels most of a full one (:attr:`Style.wholeness`). Source: the token sweep
    (N 3072, K 768), flat from 1280 to 2048 tokens, against Vidur's older library. On CUDA cores the busiest SM decides.
    """
    ctas = products.batch * np.ceil(products.m / tile_m) * np.ceil(products.n / tile_n) * split
    resident = np.clip(ACCUMULATORS_PER_SM / (tile_m * tile_n), 1, MAX_CTAS_PER_SM)
    waves = np.ceil(ctas / (gpu.sm_count * resident))
    busiest = np.ceil(ctas / gpu.sm_count)
    whole = np.where(waves > 1, np.maximum(waves * resident, busiest), busiest)
    per_sm = busiest + products.of_style("wholeness") * (whole - busiest)
    per_mac = inner_cycles(tile_m, tile_n, products, gpu, _tile_rate(tile_m, tile_n, products))
    inner = np.ceil(products.k / split / 32) * 32 * tile_m * tile_n * per_mac
    stores = np.where(products.simt, SIMT_EPILOGUE_BYTES, EPILOGUE_BYTES * np.maximum(gpu.feed_bytes_per_clock_sm / 37.8, 1.0))
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
