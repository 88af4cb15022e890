"""The counters that people use, run on a model as their users run them: what each says, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Inputs = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """MACs that a counter books under one operation of one module, children of the module not included."""

    module: str
    operation: str
    macs: int


@dataclass(frozen=True, slots=True)
class Counted:
    """All that one counter says of a model; ``unknown`` holds the calls it says it left out."""

    counts: tuple[Count, ...]
    unknown: Mapping[str, int] = field(default_factory=dict)


def installed() -> dict[str, str]:
    """Version of each counter whose package is there, by name."""
    return {name: version(package) for name, (package, _) in COUNTERS.items() if find_spec(package)}


def count(counter: str, model: nn.Module, inputs: Inputs) -> Counted:
    """Run one counter. ``model`` is in eval mode; it is left as it was."""
    import torch

    with torch.enable_grad(), _quiet():  # torch's counter follows modules through their gradients
        return COUNTERS[counter][1](model, inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _torch(model: nn.Module, inputs: Inputs) -> Counted:
    """Half of the FLOPs that ``FlopCounterMode`` sees."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    flops = {path: {str(op): found // 2 for op, found in ops.items()} for path, ops in counter.get_flop_counts().items()}
    flops.pop("Global", None)
    return Counted(tuple(_own({path.partition(".")[2]: ops for path, ops in flops.items()})))


def _torch_math(model: nn.Module, inputs: Inputs) -> Counted:
    """The same, with attention in its unfused form."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return _torch(model, inputs)


def _fvcore(model: nn.Module, inputs: Inputs) -> Counted:
    """fvcore calls one multiply-add one flop."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    found = {path: {op: int(macs) for op, macs in ops.items()} for path, ops in analysis.by_module_and_operator().items()}
    unknown = {op.removeprefix("aten::"): calls for op, calls in sorted(analysis.unsupported_ops().items())}
    return Counted(tuple(_own(found)), unknown)


def _own(inclusive: Mapping[str, Mapping[str, int]]) -> Iterable[Count]:
    """What modules count themselves, from figures that hold their children's too."""
    own = {path: Counter(ops) for path, ops in inclusive.items()}
    for path, ops in inclusive.items():
        if (parent := _parent(path, own)) is not None:
            own[parent].subtract(ops)
    return [Count(path, op, macs) for path, ops in own.items() for op, macs in sorted(ops.items()) if macs]


def _parent(path: str, known: Mapping[str, object]) -> str | None:
    """The nearest module around ``path`` among those ``known``."""
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            return path
    return None


def _calflops(model: nn.Module, inputs: Inputs) -> Counted:
    """calflops replaces functions of torch while it counts; ours only reads its running lists."""
    from calflops import calculate_pipline
    from calflops.pytorch_ops import MODULE_HOOK_MAPPING

    found: list[Count] = []

    def read(path: str) -> None:
        found.extend(Count(path, _function_name(called), int(macs)) for called, macs in calculate_pipline.module_mac_count[-1])

    hooks = [
        module.register_forward_hook(lambda *_, path=path: read(path))
        for path, module in model.named_modules()
        if type(module) not in MODULE_HOOK_MAPPING
    ]
    pipeline = calculate_pipline.CalFlopsPipline(model, include_backPropagation=False, compute_bp_factor=2.0)
    pipeline.start_flops_calculate()
    try:
        model(*inputs)
        whole = [(path, module) for path, module in model.named_modules() if type(module) in MODULE_HOOK_MAPPING]
        found += [Count(path, type(module).__name__, int(module.__macs__)) for path, module in whole]
    finally:
        pipeline.end_flops_calculate()
        for hook in hooks:
            hook.remove()
    return Counted(tuple(found))


def _function_name(called: Any) -> str:
    """calflops lists the bound ``__str__`` of a function, where it means its name."""
    return str(getattr(getattr(called, "__self__", called), "__name__", called))


def _torchinfo(model: nn.Module, inputs: Inputs) -> Counted:
    """torchinfo goes by modules and their parameters."""
    from torchinfo import summary

    device = next((tensor.device for tensor in model.parameters()), inputs[0].device)
    layers = summary(model, input_data=list(inputs), device=device, depth=1000, verbose=0).summary_list
    paths = {id(module): path for path, module in model.named_modules()}
    return Counted(
        tuple(
            Count(paths.get(id(layer.module), ""), layer.class_name, int(layer.macs))
            for layer in layers
            if layer.is_leaf_layer and layer.macs
        )
    )


COUNTERS: Mapping[str, tuple[str, Callable[[nn.Module, Inputs], Counted]]] = {
    "torch": ("torch", _torch),
    "torch, math attention": ("torch", _torch_math),
    "fvcore": ("fvcore", _fvcore),
    "calflops": ("calflops", _calflops),
    "torchinfo": ("torchinfo", _torchinfo),
}
"""Package and adapter of each counter, by the name shown."""
