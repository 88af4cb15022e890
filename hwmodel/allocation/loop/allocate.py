"""The closed loop: sensitivity curves, allocation, a pruned model, its checkpoint read back, and what it then costs.

Promised is the cost table's entry from before pruning; delivered is what the backend says of the checkpoint once it was
reloaded and extracted afresh. Where they differ, costs are rebuilt around the present masks and the blocks chosen again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hwmodel.allocation.budgets import Budget
from hwmodel.allocation.loop.bases import Pricer
from hwmodel.allocation.loop.closing import Round
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.joint import Wish, settle
from hwmodel.allocation.loop.journal import steps_of
from hwmodel.allocation.loop.outcome import ClosedLoop
from hwmodel.allocation.loop.sensing import Sensing
from hwmodel.backends.cards import Card, load_card
from hwmodel.backends.estimates import estimate
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import Shape
from hwmodel.pruning.calibration_images import Calibration, calibration_of
from hwmodel.pruning.live_models import LiveModel

if TYPE_CHECKING:
    from hwmodel.extraction.models import ImageSize
    from hwmodel.pruning.blocks.curves import Score
    from hwmodel.pruning.blocks.distortion import Form
    from hwmodel.pruning.live_models import Module, Tensor

Device = str | Path | Card | Pricer


def allocate(
    model: str | Module,
    images: Tensor | Sequence[Tensor] | str | Path | Calibration | None = None,
    *,
    device: Device | Sequence[Device],
    budget: str | Budget | Sequence[str | Budget],
    block: Shape = (32, 32),
    layers: Sequence[str] | None = None,
    heads: float | str | None = None,
    tokens: float | str | None = None,
    checkpoint: str | Path | None = None,
    samples: int = 64,
    delta: Form | None = None,
    score: Score | None = None,
    probes: int = 1,
    seed: int = 0,
    batch: int = 1,
    image_size: ImageSize | None = None,
    dtype: str | None = None,
    example: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    **goal: Any,
) -> ClosedLoop:
    """Prune a model so that it meets a budget with least distortion, and check on its reloaded checkpoint what that costs.

    Parameters
    ----------
    model : timm name, or a live module, which is not changed
    images : to calibrate on: a tensor of images, a pair of images and labels, or a folder with a sub-folder per class. None
        takes random ones, of which sensitivities say nothing about accuracy
    device : name, path or card of a device, a function from a trace to its estimate, or several of these. A budget on what
        devices say holds on every one, or for their mean where ``weights`` are given
    budget : "flops=0.5", "flops-total=60%", "latency=2ms", "energy=0.6", "power=10W", or several
    block : (out, in) of the weight blocks
    layers : globs over operator names; None takes every product with a weight but patch embedding, classifier, what is computed
        once, and what no such block can be taken off; ``progress`` is told of the last
    heads, tokens : also remove attention heads and patch tokens: the part to keep (0.75), or the predicted loss they may cost
        ("loss=0.02"). Of heads the part is of all of them; of tokens it is of those present, in each of the stages at a
        quarter, half and three quarters of the encoder blocks: three stages of 0.75 leave 0.42
    checkpoint : weights of a model given by name; random ones of ``seed`` where None
    samples : images that are taken of a folder, or made
    delta, score, probes : as ``hwmodel.pruning`` takes them. Where None: the Gauss-Newton forms; beside a delta or a
        score of the loss ("fisher", "taylor", ...) the squared distortion and the Fisher score
    batch, image_size, dtype : of the forward pass that is priced
    example : input of a module of your own, of shape (1, ...)
    options : of :func:`hwmodel.estimate` for devices that are not functions: mode, overrides, scope, ...
    folder : where projections are kept as they are made, for an interrupted run to go on from; None keeps none
    progress : is told in a few words what is being done
    goal : further fields of :class:`~hwmodel.allocation.loop.goals.Goal`: solver, floor, cap, weights, tolerance, rounds, ...

    Returns
    -------
    ClosedLoop
        Same arguments, same masks, bit for bit.

    Raises
    ------
    InfeasibleError
        A budget that cannot be met; the message says what can.
    HwmodelError
        Anything else that does not fit: an unknown device or model, a block larger than a layer, losses that are NaN.
    """
    asked = Goal.of(budget, **goal)
    pricers = _pricers(device, options or {})
    asked.check_devices(len(pricers))
    asks = {"heads": Wish.of(heads, "heads"), "tokens": Wish.of(tokens, "tokens")}
    wishes = {name: wish for name, wish in asks.items() if wish is not None}
    tell = progress or (lambda _: None)
    live = LiveModel.of(model, checkpoint=checkpoint, batch=batch, image_size=image_size, dtype=dtype, example=example, seed=seed)
    calibration = calibration_of(images, live.module, samples, image_size=image_size, seed=seed)
    random = checkpoint is None and isinstance(model, str)
    sensing = Sensing(
        calibration=calibration, block=block, layers=layers, delta=delta, score=score, probes=probes, seed=seed,
        folder=_existing(folder), tell=tell,
    )  # fmt: skip
    with TemporaryDirectory(prefix="allocate-") as place:
        turns, settled = settle(
            live, sensing, pricers, asked,
            wishes=wishes, checkpoint=Path(place) / "pruned.safetensors", tell=lambda one: tell(_said(one)),
        )  # fmt: skip
    steps = tuple(steps_of(live, asked, sensing, wishes, turns, settled=settled))
    synthetic = random or calibration.synthetic
    return ClosedLoop(origin=live, goal=asked, turns=tuple(turns), settled=settled, synthetic=synthetic, steps=steps)


def _pricers(device: Device | Sequence[Device], options: Mapping[str, Any]) -> tuple[Pricer, ...]:
    devices = [device] if isinstance(device, str | Path | Card) or callable(device) else list(device)
    return tuple(_pricer(one, options) for one in devices)


def _pricer(device: Device, options: Mapping[str, Any]) -> Pricer:
    if callable(device):
        return device
    return partial(estimate, device=device if isinstance(device, Card) else load_card(device), **options)


def _existing(folder: str | Path | None) -> Path | None:
    if folder is not None and not Path(folder).is_dir():
        raise HwmodelError(f"{folder}: not a folder; expected one that exists")
    return None if folder is None else Path(folder)


def _said(one: Round) -> str:
    return f"round {one.number}: promised and delivered costs differ by at most {one.gap:.2%}"
