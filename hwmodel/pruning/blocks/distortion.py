"""Distortion of a layer's pruning from its block projections: the paper's forms and the output Gauss-Newton form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import FloatArray, IntArray

Float32Array = npt.NDArray[np.float32]
Form = Literal["gauss-newton", "paper", "squared"]
FORMS: tuple[Form, ...] = ("gauss-newton", "paper", "squared")

KAPPA = 1e-7
"""Damping of the Fisher matrix (Eq. 12). The LSP paper gives no value; its released code has this one."""

_ROWS = 64
"""Projections widened to 64-bit at once: fixed, so that sums do not depend on the memory at hand."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Distortion:
    """What pruning the blocks of one layer does to the network, along any order of pruning.

    With ``d`` the change of the weight (pruned blocks set to zero) and ``g_n`` the gradient of sample ``n``, ``g_n . d`` is minus
    the sum of the sample's projections over the pruned blocks, so no matrix of the size of the weight squared is needed.

    Parameters
    ----------
    form : which distortion:
        ``gauss-newton``, mean (g_n . d)^2: the expected squared change of the output where projections are of random output probes;
        ``paper``, mean g_n . d + d'Hd / 2 with H = kappa I + mean g_n g_n' (LSP Eq. 10 to 13);
        ``squared``, mean (g_n . d + d'Hd / 2)^2 with the same H (LSP Eq. 6)
    p : (rows, blocks) projections, sum of weight times gradient over each block; a row is a sample, or one probe of it
    squared_norms : (blocks,) sum of squared weights
    kappa : damping in H
    """

    form: Form
    p: Float32Array
    squared_norms: FloatArray
    kappa: float = KAPPA

    @property
    def blocks(self) -> int:
        """Blocks of the layer."""
        return len(self.squared_norms)

    def along(self, order: npt.ArrayLike) -> FloatArray:
        """(blocks + 1,) distortion with the first 0, 1, 2, ... blocks of ``order`` pruned.

        Raises
        ------
        HwmodelError
            An order that does not hold each block once.
        """
        checked = checked_order(order, self.blocks)
        first, second = np.zeros((2, self.blocks + 1))
        for part in _widened(self.p):
            changes = -np.cumsum(part[:, checked], axis=1)
            first[1:] += changes.sum(axis=0)
            second[1:] += np.square(changes, out=changes).sum(axis=0)
        first, second = first / len(self.p), second / len(self.p)
        if self.form == "gauss-newton":
            return second
        curvature = second + self.kappa * np.concatenate([[0.0], np.cumsum(self.squared_norms[checked])])
        found: FloatArray = first + curvature / 2 if self.form == "paper" else second + first * curvature + curvature**2 / 4
        return found


def paper_recurrence(p: Float32Array, squared_norms: FloatArray, order: npt.ArrayLike, kappa: float = KAPPA) -> FloatArray:
    """(blocks + 1,) the paper's distortion by its own update (LSP Eq. 13), one block after the other.

    delta(k) - delta(k-1) = g . c + (c / 2 + d)'H c, with ``c`` the change that block k adds to the present change ``d``. Equal to
    ``Distortion(form="paper").along(order)``, which sums the same series at once.
    """
    checked = checked_order(order, len(squared_norms))
    present = np.zeros(len(p))
    found = [0.0]
    for block in checked:
        added = -p[:, block].astype(np.float64)
        curvature = kappa * squared_norms[block] / 2 + np.mean((added / 2 + present) * added)
        found.append(found[-1] + float(added.mean() + curvature))
        present += added
    return np.array(found)


def checked_order(order: npt.ArrayLike, blocks: int) -> IntArray:
    """``order`` as an array, once it holds each of ``blocks`` blocks once."""
    found = np.asarray(order)
    if found.shape != (blocks,) or found.dtype.kind not in "iu" or not np.array_equal(np.sort(found), np.arange(blocks)):
        raise HwmodelError(f"an order must hold each of the {blocks} block indices once")
    return found.astype(np.int64)


def _widened(p: Float32Array) -> Iterator[FloatArray]:
    for start in range(0, len(p), _ROWS):
        yield p[start : start + _ROWS].astype(np.float64)


def mean_and_mean_square(p: Float32Array) -> tuple[FloatArray, FloatArray]:
    """(blocks,) mean over rows of the projections, and of their squares."""
    first, second = np.zeros((2, p.shape[1]))
    for part in _widened(p):
        first += part.sum(axis=0)
        second += np.square(part).sum(axis=0)
    return first / len(p), second / len(p)
