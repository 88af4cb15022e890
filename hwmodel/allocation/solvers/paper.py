"""The LSP paper's own solver: slopes of smoothed distortion curves matched to a target per layer (Eq. 10, 11, 14).

As printed: curves on evenly spaced pruning ratios, an exponential moving average, a five-point derivative, every layer at the
ratio whose slope is nearest ``lambda + beta * C_i`` with ``C_i = M_i N_i K_i / (B_n B_k)``, beta by Eq. 14, lambda by bisection.

Two things the printed text leaves open are settled here. *Sign*: the derivative of the power term is ``-C_i``, so minimising
distortion plus power gives ``+ beta * C_i`` on the right, as Eq. 11 has it (the released code subtracts it, which prunes large
layers less); the maxima of Eq. 14 are of magnitudes, else beta would be negative. *Range of lambda*: Eq. 14 makes beta so large
that lambda = 0 often prunes beyond the target already; with ``signed`` the bisection may take lambda below 0, without it the
paper's range is kept and the target is overshot.

Stationarity under a budget would need ``beta * C_i + mu * cost_i`` (lambda times the layer's own cost); Eq. 11 drops that
factor. This solver is here for comparison; ``lagrangian`` is the one to use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray, Layer
from hwmodel.allocation.power import block_products
from hwmodel.allocation.problem import Allocation, Cost, InfeasibleError, Problem
from hwmodel.errors import HwmodelError

RATIOS = 101
_HALVINGS = 60


def paper(
    problem: Problem,
    *,
    beta: float | None = None,
    power: Cost | None = None,
    signed: bool = True,
    ratios: int = RATIOS,
    memory: float = 0.5,
    half_width: int = 4,
) -> Allocation:
    """Solve as the paper does.

    Parameters
    ----------
    beta : weight of the power term; None takes Eq. 14, 0 leaves the term out
    power : cost whose slope stands for ``C_i``, from a device; Eq. 8 where None
    signed : let lambda be negative
    ratios : samples of every curve, 101 in the released code
    memory : weight of the past in the moving average; 0 smooths nothing
    half_width : step of the derivative, in samples; 4 in the released code

    Raises
    ------
    HwmodelError
        Layers with several rankings, several limits, a problem with a term of its own, or settings out of range.
    InfeasibleError
        No lambda prunes enough.
    """
    _check(problem, ratios, memory, half_width)
    grid = _Grid.of(problem, ratios)
    slopes = np.stack([derivative(smoothed(curve, memory), half_width, 1 / (ratios - 1)) for curve in grid.delta])
    pull = _pull(problem, grid, power, half_width, ratios)
    weight = _eq_14(slopes, pull) if beta is None else beta
    reach = float(np.abs(slopes).max() + abs(weight) * np.abs(pull).max()) or 1.0

    def choice(target: float) -> IntArray:
        distance = np.where(grid.allowed, np.abs(slopes - weight * pull - target), np.inf)
        return np.take_along_axis(grid.points, distance.argmin(axis=1)[:, None], axis=1)[:, 0]

    target = _least_target(problem, choice, -reach if signed else 0.0, reach)
    points = choice(target)
    settings = {"beta": weight, "lambda": target, "signed": signed, "ratios": ratios, "memory": memory, "half_width": half_width}
    return Allocation(problem=problem, solver="paper", points=points, bound=None, settings=settings)


def smoothed(curve: FloatArray, memory: float) -> FloatArray:
    """Exponential moving average from the left, corrected for its start: (samples,)."""
    found, past = np.empty_like(curve), 0.0
    for place, value in enumerate(curve.tolist()):
        past = memory * past + (1 - memory) * value
        found[place] = past / (1 - memory ** (place + 1))
    return found


def derivative(curve: FloatArray, half_width: int, spacing: float) -> FloatArray:
    """Five-point derivative of (samples,) at steps of ``half_width`` samples.

    Where a step leaves the curve: the three-point one, and within ``half_width`` of an end the difference between that end and
    the sample ``half_width`` to the other side.
    """
    step, last = half_width * spacing, len(curve) - 1
    place = np.arange(len(curve))

    def at(offset: int) -> FloatArray:
        return curve[np.clip(place + offset * half_width, 0, last)]

    low, high = np.maximum(place - half_width, 0), np.minimum(place + half_width, last)
    found: FloatArray = (curve[high] - curve[low]) / ((high - low) * spacing)
    inner = (place >= 2 * half_width) & (place <= last - 2 * half_width)
    five = (-at(2) + 8 * at(1) - 8 * at(-1) + at(-2)) / (12 * step)
    return np.where(inner, five, found)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Curves at evenly spaced ratios, all of shape (layers, ratios): points, distortion as given, and what is allowed."""

    points: IntArray
    delta: FloatArray
    allowed: IntArray

    @classmethod
    def of(cls, problem: Problem, ratios: int) -> _Grid:
        points = np.stack([_nearest(layer, ratios) for layer in problem.layers])
        delta = np.stack([layer.delta[where] for layer, where in zip(problem.layers, points, strict=True)])
        allowed = np.stack([ok[where] for ok, where in zip(problem.allowed, points, strict=True)])
        for layer, ok in zip(problem.layers, allowed, strict=True):
            if not ok.any():
                raise InfeasibleError(f"{layer.name}: none of the {ratios} ratios is within floor and cap; take more ratios")
        return cls(points, delta, allowed)


def _nearest(layer: Layer, ratios: int) -> IntArray:
    """(ratios,) index of the layer's point nearest each ratio; of two equally near the one with less pruned."""
    wanted = np.rint(np.linspace(0, 1, ratios) * layer.blocks)
    right = np.clip(np.searchsorted(layer.pruned, wanted), 0, len(layer.pruned) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.where(wanted - layer.pruned[left] <= layer.pruned[right] - wanted, left, right)
    return nearer.astype(np.int64)


def _pull(problem: Problem, grid: _Grid, power: Cost | None, half_width: int, ratios: int) -> FloatArray:
    """(layers, ratios) C_i of Eq. 11, or what a device saves per unit of ratio."""
    if power is None:
        whole = np.array([block_products(layer, 1) for layer in problem.layers])
        return np.repeat(whole[:, None], ratios, axis=1)
    curves = [curve[where] for curve, where in zip(power.curves, grid.points, strict=True)]
    return np.stack([-derivative(curve, half_width, 1 / (ratios - 1)) for curve in curves])


def _eq_14(slopes: FloatArray, pull: FloatArray) -> float:
    largest = float(np.abs(pull).max(axis=1).sum())
    return float(np.abs(slopes).max(axis=1).sum()) / largest if largest > 0 else 0.0


def _least_target(problem: Problem, choice: Callable[[float], IntArray], low: float, high: float) -> float:
    """The least lambda that bisection finds to keep the limit."""
    if problem.holds(choice(low)):
        return low
    if not problem.holds(choice(high)):
        limit = problem.limits[0]
        raise InfeasibleError(f"{limit.asked}: the slope rule prunes no further than {limit.told(choice(high))}, {limit.cost.name}")
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if problem.holds(choice(middle)) else (middle, high)
    return high


def _check(problem: Problem, ratios: int, memory: float, half_width: int) -> None:
    several = [layer.name for layer in problem.layers if len(layer.rankings) > 1]
    if several:
        raise HwmodelError(f"{several[0]}: solver 'paper' takes one ranking per layer; take 'lagrangian' or 'exact'")
    if len(problem.limits) != 1 or problem.term is not None:
        raise HwmodelError("solver 'paper' takes one budget and its own power term; take 'lagrangian' or 'exact'")
    if ratios < 3 or not 0.0 <= memory < 1.0 or not 1 <= half_width < ratios:
        raise HwmodelError(f"ratios {ratios}, memory {memory:g}, half_width {half_width}: expected >= 3, in [0, 1), in [1, ratios)")
