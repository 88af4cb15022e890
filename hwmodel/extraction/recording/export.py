"""One forward pass as a graph of ATen calls, on tensors without data; the module handed over stays as it is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedOperatorException",
)  # fmt: skip
_ITEM_ON_META = (
    "item() cannot be called on meta tensors",
    "Cannot copy out of meta tensor",
    "data-dependent",
    ".numpy() is not supported",
)


def export(model: nn.Module, args: tuple[Any, ...], *, name: str) -> ExportedProgram:
    """Trace ``model`` on ``args`` (meta or real tensors; only shapes count) with attention in its math form.

    Raises
    ------
    HwmodelError
        Where the forward pass fails or branches on data; one line naming the module.
    """
    _refuse_packed(model, name)
    try:
        return _export(model, args)
    except Exception as error:
        raise HwmodelError(_explain(name, error, _failing_module(model, args))) from error


def _export(model: nn.Module, args: tuple[Any, ...]) -> ExportedProgram:
    import torch

    with _plain_attention(), _quiet(), _no_stack_traces():
        return torch.export.export(model, args, strict=False)


def _refuse_packed(model: nn.Module, name: str) -> None:
    """Quantised layers of ``torch.ao`` hide their weights in packed objects that no graph can hold."""
    packed = [path for path, module in model.named_modules() if ".quantized" in type(module).__module__]
    if packed:
        raise HwmodelError(
            f"{name}: {len(packed)} layers are packed for int8 in a form that is not modelled, as {packed[0]!r}; "
            "trace the float model with dtype='int8'"
        )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """No fused encoder layer hides its operators, and the layout of attention results is the same on every device."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors are ours to tell; export also logs them, and prints the graph up to them on standard error."""
    import warnings

    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Nodes without the lines of source they come from, which nobody reads here: a fifth of the time of an export."""
    from torch.fx import config

    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def _explain(name: str, error: Exception, module: str) -> str:
    where = f"in module {module!r}" if module else "in its own forward"
    if _is_data_dependent(error):
        return (
            f"{name}: the forward pass depends on data {where}; trace a variant with fixed token counts and no branches on values"
        )
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return f"{name}: the forward pass fails {where}: {line[:200]}"


def _is_data_dependent(error: Exception) -> bool:
    kinds = {type(cause).__name__ for cause in _causes(error)}
    text = str(error)
    return bool(kinds & set(_DATA_DEPENDENT)) or any(sign in text for sign in _ITEM_ON_META)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _failing_module(model: nn.Module, args: tuple[Any, ...]) -> str:
    """Path of the innermost module whose forward did not return: the export is run again under hooks."""
    running: list[str] = []

    def leave(*_: object) -> None:
        running.pop()

    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: running.append(path)))
        hooks.append(module.register_forward_hook(leave))
    try:
        _export(model, args)
    except Exception:
        return running[-1] if running else ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def twin(model: nn.Module) -> nn.Module:
    """A copy of a module in eval mode that shares every tensor with it, so that no memory doubles and no flag changes.

    Raises
    ------
    HwmodelError
        A module that holds something that cannot be copied, as a lock.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        shared.update((id(tensor), tensor) for tensor in _tensors(module))
    try:
        return copy.deepcopy(model, shared).eval()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        kind = type(model).__name__
        raise HwmodelError(f"{kind}: cannot be copied to trace it in eval mode ({error}); drop what cannot be copied") from error


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers and tensors kept as plain attributes of one module."""
    import torch

    for held in (module._parameters, module._buffers, module.__dict__):
        yield from (tensor for tensor in held.values() if isinstance(tensor, torch.Tensor))
