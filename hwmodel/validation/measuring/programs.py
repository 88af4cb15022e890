"""Operators as calls of PyTorch: tensors made once, the call repeated by a timer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.ir.kinds import TRANSCENDENTAL
from hwmodel.ir.operators import Operator
from hwmodel.validation.measuring.tasks import Task

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]

FORMATS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Tensor formats of the dtypes that PyTorch operators run in; autocast adds casts around them."""
_UNARY = frozenset({"abs", "neg", "reciprocal", "round", "floor", "ceil", "sign", "relu", "clone"}) | TRANSCENDENTAL
_FUNCTIONAL = {"gelu", "silu", "mish", "elu", "softplus", "relu"}
_BINARY = {"add", "sub", "mul", "div", "maximum", "minimum", "pow"}


def check_timed(dtype: str) -> None:
    """Raise :class:`HwmodelError` for a format that PyTorch's operators do not run in."""
    if dtype.removeprefix("amp-") not in FORMATS:
        raise HwmodelError(
            f"dtype {dtype}: PyTorch's operators cannot be timed in it; choose one of {', '.join(FORMATS)} or amp-fp16, amp-bf16"
        )


def program(task: Task, device: str) -> Call:
    """A call that runs the task once; its tensors hold random values and stay where they are.

    Raises
    ------
    UnsupportedOperatorError
        A kind, or counts, that no single call of PyTorch does.
    """
    import torch

    check_timed(task.dtype)
    build = _Builder(device, task.dtype)
    call = _model(task, device) if task.operator is None else build.call(task.operator)
    if not task.dtype.startswith("amp-"):
        return call
    half = getattr(torch, FORMATS[task.dtype.removeprefix("amp-")])

    def under_autocast() -> object:
        with torch.autocast(torch.device(device).type, dtype=half, cache_enabled=False):
            return call()

    return under_autocast


def _model(task: Task, device: str) -> Call:
    """A whole timm model with random weights."""
    import torch

    from hwmodel.extraction import zoo

    pixels = int(task.shape.removeprefix("image"))
    model = zoo.build(task.name, (pixels, pixels), device=device)
    kind = getattr(torch, FORMATS.get(task.dtype, "float32"))
    image = torch.randn((task.batch, (zoo.input_size(model) or (3,))[0], pixels, pixels), device=device, dtype=kind)
    model = model.to(kind)
    return lambda: model(image)


class _Builder:
    """Makes tensors of one device and format."""

    def __init__(self, device: str, dtype: str) -> None:
        import torch

        self.device = device
        self.weight_kind = getattr(torch, FORMATS.get(dtype, "float32"))  # autocast keeps weights in fp32
        self.kind = getattr(torch, FORMATS[dtype.removeprefix("amp-")])

    def call(self, operator: Operator) -> Call:
        """The PyTorch call of one operator."""
        make = {
            "product": self._product,
            "attention": self._attention,
            "rowwise": self._rowwise,
            "elementwise": self._elementwise,
            "movement": self._movement,
            "reduction": self._reduction,
        }
        return make[operator.family](operator)

    def _random(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.rand(shape, device=self.device, dtype=self.kind) + 0.5  # positive, so that logarithms and roots are real

    def _weight(self, *shape: int) -> torch.Tensor:
        return self._random(*shape).to(self.weight_kind)

    def _product(self, operator: Operator) -> Call:
        """A linear layer (with bias where its weights hold one), or a batched product."""
        import torch

        m, k, n, batch = operator.m, operator.k, operator.n, operator.batch
        if operator.parameter and batch == 1:
            left, weight = self._random(m, k), self._weight(n, k)
            bias = self._weight(n) if operator.weight_elements == n * k + n else None
            return lambda: torch.nn.functional.linear(left, weight, bias)
        first, second = self._random(batch, m, k), self._random(batch, k, n)
        return lambda: torch.bmm(first, second)

    def _attention(self, operator: Operator) -> Call:
        from torch.nn.functional import scaled_dot_product_attention

        query = self._random(1, operator.batch, operator.m, operator.k)
        shared = (operator.input_elements - operator.output_elements) // (2 * operator.n * operator.k)
        if shared < 1 or operator.batch % shared:
            raise UnsupportedOperatorError(f"attention of {operator.batch} heads over {shared} keys")
        key, value = self._random(1, shared, operator.n, operator.k), self._random(1, shared, operator.n, operator.k)
        causal, grouped = operator.causal, shared != operator.batch
        return lambda: scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)

    def _rowwise(self, operator: Operator) -> Call:
        from torch.nn import functional

        cols = operator.cols
        value = self._random(operator.elements // cols, cols)
        scale, shift = self._weight(cols), self._weight(cols)
        calls: dict[str, Call] = {
            "softmax": lambda: functional.softmax(value, -1),
            "log_softmax": lambda: functional.log_softmax(value, -1),
            "layernorm": lambda: functional.layer_norm(value, (cols,), scale, shift),
            "rmsnorm": lambda: functional.rms_norm(value, (cols,), scale),
            "l2norm": lambda: functional.normalize(value, dim=-1),
        }
        return _known(calls, operator)

    def _elementwise(self, operator: Operator) -> Call:
        """One tensor, one tensor and a scalar, or two tensors of which the second may be broadcast."""
        import torch

        kind, elements = operator.kind, operator.elements
        rest = operator.input_elements + operator.weight_elements - elements
        if kind in _BINARY and rest >= 0:
            function = getattr(torch, kind)
            if rest == 0:
                alone = self._random(elements)
                return lambda: function(alone, 1.5)
            if elements % rest == 0:
                left, right = self._random(elements // rest, rest), self._random(rest)
                return lambda: function(left, right)
        name = "gelu" if kind == "gelu_tanh" else kind
        functions = torch.nn.functional if name in _FUNCTIONAL else torch
        if kind not in _UNARY or rest != 0 or not hasattr(functions, name):
            raise UnsupportedOperatorError(f"{kind} of {operator.input_elements} and {operator.weight_elements} values")
        options = {"approximate": "tanh"} if kind == "gelu_tanh" else {}
        single, run = self._random(elements), getattr(functions, name)
        return lambda: run(single, **options)

    def _movement(self, operator: Operator) -> Call:
        """Copies swap axes around rows of 64 values, as reshapes after attention do; a gather picks such rows."""
        import torch

        elements, first = operator.elements, operator.input_elements
        width = next(size for size in (64, 32, 16, 8, 4, 2, 1) if elements % size == 0)
        value = self._random(elements // width, width)
        outer = next(size for size in range(16, 0, -1) if elements // width % size == 0)
        swapped = value.view(outer, -1, width).transpose(0, 1)
        parts = (self._random(max(first, 1)), self._random(max(elements - first, 0)))
        order = torch.arange(elements // width, device=self.device).flip(0)
        calls: dict[str, Call] = {
            "copy": lambda: swapped.clone(memory_format=torch.contiguous_format),
            "concat": lambda: torch.cat(parts),
            "roll": lambda: torch.roll(value, 1, 0),
            "fill": lambda: torch.zeros_like(value),
            "gather": lambda: torch.index_select(value, 0, order),
        }
        if operator.kind == "concat" and not 0 < first <= elements:
            raise UnsupportedOperatorError(f"concat of {first} into {elements} values")
        return _known(calls, operator)

    def _reduction(self, operator: Operator) -> Call:
        import torch

        outputs = operator.output_elements
        if operator.input_elements % max(outputs, 1):
            raise UnsupportedOperatorError(f"{operator.kind} of {operator.input_elements} values to {outputs}")
        value = self._random(outputs, operator.input_elements // outputs)
        calls: dict[str, Call] = {
            "mean": lambda: value.mean(-1),
            "sum": lambda: value.sum(-1),
            "max": lambda: value.amax(-1),
            "min": lambda: value.amin(-1),
            "variance": lambda: torch.var(value, -1),
            "prod": lambda: value.prod(-1),
            "cumsum": lambda: value.cumsum(-1),
        }
        return _known(calls, operator)


def _known(calls: dict[str, Call], operator: Operator) -> Call:
    if operator.kind not in calls:
        raise UnsupportedOperatorError(f"{operator.kind} has no single PyTorch call here")
    return calls[operator.kind]


@contextmanager
def running(dtype: str) -> Iterator[None]:
    """Inference mode, with TF32 on for ``tf32`` and off for every other format; restored on exit."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
