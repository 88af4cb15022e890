"""Block projections, caught while one ordinary backward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import grid_shape
from hwmodel.pruning.blocks.weight_layers import WeightLayer

if TYPE_CHECKING:
    from torch import Tensor


class Capture:
    """Adds up, during each backward pass, weight times gradient over every block of some layers, image by image.

    Layers are followed where they are called, and where another module multiplies by their weight itself. ``found`` holds (images,
    blocks) for each layer that the gradient has reached since :meth:`start`; a layer that is used more than once adds up its uses.
    ``inputs`` are those held for the backward pass, ``rows`` what each layer was given for an image.
    """

    def __init__(self, layers: Sequence[WeightLayer], chunk_bytes: int) -> None:
        self._layers = layers
        self._chunk_bytes = chunk_bytes
        self._images = 0
        self._running: set[str] = set()
        self.found: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.inputs: list[Tensor] = []

    def start(self, images: int) -> None:
        """Forget what was found, ahead of a forward pass of ``images``."""
        self._images = images
        self.found, self.rows, self.inputs = {}, {}, []

    @contextmanager
    def following(self) -> Iterator[None]:
        """During a forward pass."""
        from torch.nn.utils import parametrize

        hooks: list[Any] = []
        for layer in self._layers:
            hooks.append(layer.module.register_forward_pre_hook(partial(self._enter, layer)))
            hooks.append(layer.module.register_forward_hook(partial(self._leave, layer)))
        try:
            with parametrize.cached(), _products_seen()(self._product):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def taken(self) -> dict[str, Tensor]:
        """What one backward pass has found; the next one starts anew."""
        found, self.found = self.found, {}
        return found

    def _enter(self, layer: WeightLayer, _module: object, _inputs: object) -> None:
        self._running.add(layer.name)

    def _leave(self, layer: WeightLayer, _module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._running.discard(layer.name)
        return self._follow(layer, inputs[0], output)

    def _product(self, inputs: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        """A linear product outside of the layer whose weight it takes."""
        for layer in self._layers:
            if layer.module.weight is weight and layer.name not in self._running:
                return self._follow(layer, inputs, output)
        return output

    def _follow(self, layer: WeightLayer, inputs: Tensor, output: Any) -> Tensor:
        """``output``, which tells of its gradient once that is known."""
        given, weight = inputs.detach(), layer.weight()
        version = given._version
        self.rows[layer.name] = self.rows.get(layer.name, 0) + layer.output_rows(output).shape[:-1].numel() // self._images
        self.inputs.append(given)
        if not output.requires_grad:  # nothing before this layer needs a gradient
            output = output.requires_grad_().clone()  # a copy, for leaves cannot be changed in place

        def project(gradient: Tensor) -> None:
            if given._version != version:
                raise HwmodelError(f"{layer.name}: its input is changed in place later in the forward pass, and so is lost")
            self._add(layer, given, gradient, weight)

        output.register_hook(project)
        found: Tensor = output
        return found

    def _add(self, layer: WeightLayer, given: Tensor, gradient: Tensor, weight: Tensor) -> None:
        inputs, outputs = (self._by_image(layer, rows) for rows in (layer.input_rows(given), layer.output_rows(gradient.detach())))
        found = block_products(inputs, outputs, weight, layer, self._chunk_bytes)
        self.found[layer.name] = self.found[layer.name] + found if layer.name in self.found else found

    def _by_image(self, layer: WeightLayer, rows: Tensor) -> Tensor:
        """(images, rows of one, features) of (images, ..., features), or of (images * windows, ..., features)."""
        if rows.numel() % (self._images * rows.shape[-1]):
            raise HwmodelError(
                f"{layer.name}: its {rows.shape[:-1].numel()} rows are not those of {self._images} images, each as many"
            )
        return rows.reshape(self._images, -1, rows.shape[-1])


@cache
def _products_seen() -> Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], AbstractContextManager[object]]:
    """What makes a context in which linear products hand input, weight and output to a function, and return what that does.

    One class for all contexts: a class is a reference cycle, and would keep what its function holds until a garbage collection.
    """
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    class Seen(TorchFunctionMode):
        def __init__(self, told: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self._told = told

        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func is not linear:
                return output
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            return self._told(given["input"], given["weight"], output)

    return Seen


def block_products(inputs: Tensor, outputs: Tensor, weight: Tensor, layer: WeightLayer, chunk_bytes: int) -> Tensor:
    """(images, blocks) sum over each block of weight times gradient.

    Parameters
    ----------
    inputs : (images, rows, in) what the weight multiplies
    outputs : (images, rows, out) gradient of what comes out
    weight : (out, in)
    chunk_bytes : memory to work in; at least one image is taken at a time

    Notes
    -----
    p[n, b] = sum over (o, j) in b of W[o, j] G_n[o, j], G_n = outputs_n' inputs_n. Where an image has fewer rows than a block has
    inputs (a head on the class token), products of the inputs with each block column are smaller than G_n and no G_n is formed.
    """
    import torch

    grid = grid_shape(layer.shape, layer.finest)
    inputs, outputs, weight = (
        _padded(inputs, layer.finest[1], -1), _padded(outputs, layer.finest[0], -1), _padded(weight, layer.finest[0], 0)
    )  # fmt: skip
    weight = _padded(weight, layer.finest[1], 1)
    form = _by_columns if inputs.shape[1] < layer.finest[1] else _by_gradient
    step = max(1, chunk_bytes // work_bytes(layer, inputs.shape[1]))
    found = [form(inputs[at : at + step], outputs[at : at + step], weight, grid) for at in range(0, len(inputs), step)]
    return torch.cat(found).flatten(1)


def work_bytes(layer: WeightLayer, rows: int) -> int:
    """Bytes that the products of one image take beside its inputs and outputs."""
    grid = grid_shape(layer.shape, layer.finest)
    out, depth = (count * side for count, side in zip(grid, layer.finest, strict=True))
    elements = rows * out * grid[1] if rows < layer.finest[1] else out * depth + grid[0] * depth
    return 4 * elements


def _by_gradient(inputs: Tensor, outputs: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """(images, block rows, block columns) by way of each image's weight gradient."""
    import torch

    products = torch.bmm(outputs.transpose(1, 2), inputs)
    products *= weight
    by_row = products.reshape(len(products), grid[0], -1, products.shape[2]).sum(2)
    return by_row.reshape(len(products), *grid, -1).sum(3)


def _by_columns(inputs: Tensor, outputs: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """(images, block rows, block columns) by way of what each block column adds to the outputs."""
    import torch

    columns = inputs.reshape(*inputs.shape[:2], grid[1], -1)
    parts = torch.einsum("ntcj,ocj->ntoc", columns, weight.reshape(len(weight), grid[1], -1))
    parts *= outputs.unsqueeze(-1)
    return parts.sum(1).reshape(len(inputs), grid[0], -1, grid[1]).sum(2)


def _padded(values: Tensor, size: int, dim: int) -> Tensor:
    """``values`` in 32-bit with zeros up to a multiple of ``size`` along one axis."""
    missing = -values.shape[dim] % size
    values = values.float()
    if not missing:
        return values
    import torch

    shape = [missing if axis == dim % values.dim() else length for axis, length in enumerate(values.shape)]
    return torch.cat([values, values.new_zeros(shape)], dim)
