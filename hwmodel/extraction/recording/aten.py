"""Lowerings of everything that is no product: elementwise, row-wise, reductions, movement, and copies that a view hides."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from hwmodel.extraction.recording.lowering import FREE, LOWERINGS, Call, Lowering, Row, Shape, Value
from hwmodel.ir.operators import Operator, elementwise, movement, reduction, rowwise

_SAME_NAME = (
    "abs", "acos", "acosh", "add", "addcdiv", "addcmul", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and",
    "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "celu", "clamp", "copysign", "cos", "cosh", "div", "elu", "eq", "erf",
    "erfc", "erfinv", "exp", "exp2", "expm1", "floor", "fmod", "frac", "ge", "gt", "hardshrink", "hardsigmoid", "hardswish",
    "heaviside", "hypot", "isfinite", "isinf", "isnan", "le", "leaky_relu", "lerp", "log", "log10", "log1p", "log2",
    "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "maximum", "minimum", "mish", "mul",
    "nan_to_num", "ne", "neg", "prelu", "reciprocal", "relu", "relu6", "remainder", "round", "rsqrt", "selu", "sigmoid", "sign",
    "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "sqrt", "sub", "tan", "tanh", "threshold", "tril", "triu", "trunc",
    "where", "xlogy",
)  # fmt: skip
"""Elementwise functions whose kind is their name."""
_OTHER_NAME: Mapping[str, tuple[str, ...]] = {
    "abs": ("absolute",),
    "atan": ("arctan",),
    "atan2": ("angle", "arctan2"),
    "bitwise_and": ("__and__",),
    "bitwise_or": ("__or__",),
    "bitwise_xor": ("__xor__",),
    "bitwise_left_shift": ("bitwise_left_shift", "__lshift__"),
    "bitwise_right_shift": ("bitwise_right_shift", "__rshift__"),
    "clamp": ("clamp_max", "clamp_min", "clip", "hardtanh"),
    "complex": ("complex",),
    "div": ("divide", "floor_divide", "true_divide"),
    "erf": ("special_erf",),
    "expm1": ("special_expm1",),
    "ge": ("greater_equal",),
    "gt": ("greater",),
    "le": ("less_equal",),
    "leaky_relu": ("rrelu",),
    "log_sigmoid": ("log_sigmoid",),
    "logit": ("logit",),
    "lt": ("less",),
    "maximum": ("fmax",),
    "minimum": ("fmin",),
    "mul": ("deg2rad", "multiply", "rad2deg", "square"),
    "ne": ("not_equal",),
    "neg": ("conj", "negative"),
    "polar": ("polar",),
    "sigmoid": ("special_expit",),
    "sign": ("sgn",),
    "sub": ("rsub", "subtract"),
    "trunc": ("fix",),
    "where": ("masked_fill",),
}  # fmt: skip
"""Elementwise functions by the kind they are an alias of."""
_REDUCTIONS: Mapping[str, tuple[str, ...]] = {
    "cumsum": ("cummax", "cumprod", "cumsum", "logcumsumexp"),
    "max": ("amax", "aminmax", "any", "argmax", "median"),
    "mean": ("mean", "nanmean"),
    "min": ("all", "amin", "argmin"),
    "pool": (
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    ),
    "prod": ("prod",),
    "sum": ("count_nonzero", "linalg_norm", "linalg_vector_norm", "logsumexp", "nansum", "norm", "sum", "trace"),
    "variance": ("std", "std_mean", "var", "var_mean"),
}  # fmt: skip
"""Reductions by kind."""
_MOVES: Mapping[str, tuple[str, ...]] = {
    "concat": (
        "block_diag", "cartesian_prod", "cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "stack", "vstack",
    ),
    "copy": (
        "channel_shuffle", "clone", "diagonal_copy", "expand_copy", "flip", "fliplr", "flipud", "native_channel_shuffle",
        "permute_copy", "pixel_shuffle", "repeat", "rot90", "select_copy", "slice_copy", "tile", "view_copy",
    ),
    "gather": (
        "embedding", "embedding_bag", "gather", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "index", "index_select",
        "masked_select", "repeat_interleave", "take", "take_along_dim",
    ),
    "pad": ("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    "patchify": ("im2col", "pixel_unshuffle", "unfold_copy"),
    "resize": (
        "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
        "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "upsample_trilinear3d",
    ),
    "roll": ("roll",),
    "scatter": ("col2im", "diag_embed", "select_scatter", "slice_scatter"),
}  # fmt: skip
"""Movements by kind."""
_FILLS = (
    "arange", "bernoulli", "eye", "fill", "full", "full_like", "linspace", "logspace", "new_full", "new_ones", "new_zeros",
    "normal", "normal_functional", "one_hot", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like",
    "randperm", "scalar_tensor", "tril_indices", "triu_indices", "uniform", "zero", "zeros", "zeros_like",
)  # fmt: skip
"""Functions that write values without reading any."""


def _reads(call: Call) -> tuple[int, int]:
    """Activations and stored parameters that the call reads, in elements."""
    stored = sum(value.distinct for value in call.tensors if value.stored)
    return sum(value.distinct for value in call.tensors if not value.stored), stored


def _spread(kind: str, call: Call) -> tuple[Row, ...]:
    """One elementwise row over the output."""
    inputs, weights = _reads(call)
    row = elementwise(kind, elements=call.output.numel)
    return (Row(row.replace(input_elements=inputs, weight_elements=weights)),)


def _move(kind: str, call: Call, *, read: int | None = None) -> tuple[Row, ...]:
    """One movement row that writes the output; it reads its operands, or ``read`` elements of them."""
    inputs, weights = _reads(call)
    row = movement(kind, elements=call.output.numel)
    return (Row(row.replace(input_elements=inputs if read is None else read, weight_elements=weights)),)


def _reduce(kind: str, call: Call) -> tuple[Row, ...]:
    return (Row(reduction(kind, inputs=call.tensors[0].numel, outputs=sum(value.numel for value in call.outputs))),)


def _elementwise(kind: str) -> Lowering:
    return lambda call: _spread(kind, call)


def _reduction(kind: str) -> Lowering:
    return lambda call: _reduce(kind, call)


def _movement(kind: str) -> Lowering:
    return lambda call: _move(kind, call)


def _free(call: Call) -> tuple[Row, ...]:
    """Nothing: see :data:`~hwmodel.extraction.recording.lowering.FREE` for the reason."""
    return ()


def _register_tables() -> None:
    for name in FREE:
        LOWERINGS.lowers(name)(_free)
    for name in _SAME_NAME:
        LOWERINGS.lowers(name)(_elementwise(name))
    for kind, names in _OTHER_NAME.items():
        LOWERINGS.lowers(*names)(_elementwise(kind))
    for kind, names in _REDUCTIONS.items():
        LOWERINGS.lowers(*names)(_reduction(kind))
    for kind, names in _MOVES.items():
        LOWERINGS.lowers(*names)(_gathered if kind == "gather" else _movement(kind))


def _gathered(call: Call) -> tuple[Row, ...]:
    """A gather touches what it writes, not the whole table: as many values read as written, and the indices."""
    table, *rest = call.tensors
    written = call.output.numel
    indices = sum(value.distinct for value in rest)
    row = movement("gather", elements=written)
    if table.stored:
        return (Row(row.replace(input_elements=indices, weight_elements=min(written, table.distinct))),)
    return (Row(row.replace(input_elements=written + indices)),)


_register_tables()


@LOWERINGS.lowers("copy")
def _copy(call: Call) -> tuple[Row, ...]:
    """``self`` is overwritten, only ``src`` is read."""
    source = call.tensor("src")
    row = movement("copy", elements=call.output.numel).replace(input_elements=0 if source.stored else source.distinct)
    return (Row(row.replace(weight_elements=source.distinct if source.stored else 0), reads=(source,)),)


@LOWERINGS.lowers(
    "index_add", "index_copy", "index_fill", "index_put", "masked_scatter", "scatter", "scatter_add", "scatter_reduce"
)  # fmt: skip
def _scatter(call: Call) -> tuple[Row, ...]:
    """In place it moves what is scattered; otherwise it copies the tensor scattered into as well."""
    first, *rest = call.tensors
    moved = max((value.numel for value in rest), default=0)
    inputs, weights = _reads(call)
    read = inputs - first.distinct if call.in_place and not first.stored else inputs
    row = movement("scatter", elements=moved if call.in_place else call.output.numel)
    return (Row(row.replace(input_elements=read, weight_elements=weights)),)


@LOWERINGS.lowers(*_FILLS)
def _fill(call: Call) -> tuple[Row, ...]:
    return (Row(movement("fill", elements=call.output.numel).replace(input_elements=0), reads=()),)


@LOWERINGS.lowers("gelu")
def _gelu(call: Call) -> tuple[Row, ...]:
    return _spread("gelu_tanh" if call["approximate"] == "tanh" else "gelu", call)


@LOWERINGS.lowers("pow")
def _pow(call: Call) -> tuple[Row, ...]:
    exact = {2: "mul", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    exponent = call["exponent"]
    return _spread(exact.get(exponent, "pow") if isinstance(exponent, int | float) else "pow", call)


@LOWERINGS.lowers("glu")
def _glu(call: Call) -> tuple[Row, ...]:
    """Half of the input gates the other half."""
    half, read = call.output.numel, call.tensors[0].numel
    gate = Row(elementwise("sigmoid", elements=half))
    return (gate, Row(elementwise("mul", elements=half).replace(input_elements=read), chained=True))


@LOWERINGS.lowers("max", "min")
def _extremum(call: Call) -> tuple[Row, ...]:
    """Elementwise over two tensors, a reduction over one."""
    if len(call.tensors) == 2:
        return _spread("maximum" if call.name == "max" else "minimum", call)
    return _reduce(call.name, call)


@LOWERINGS.lowers("topk", "kthvalue")
def _topk(call: Call) -> tuple[Row, ...]:
    return (Row(_selection("topk", call)),)


@LOWERINGS.lowers("sort", "argsort", "msort")
def _sort(call: Call) -> tuple[Row, ...]:
    return (Row(_selection("sort", call)),)


def _selection(kind: str, call: Call) -> Operator:
    """``elements`` and ``cols`` are those of the rows searched, outputs are values and indices together."""
    source = call.tensors[0]
    axis = call["dim"] if isinstance(call["dim"], int) else -1
    written = sum(value.numel for value in call.outputs)
    return movement(kind, elements=source.numel).replace(cols=source.shape[axis] if source.shape else 1, output_elements=written)


@LOWERINGS.lowers("softmax", "_softmax", "_safe_softmax", "special_softmax")
def _softmax(call: Call) -> tuple[Row, ...]:
    return _rows_along("softmax", call)


@LOWERINGS.lowers("log_softmax", "_log_softmax", "special_log_softmax")
def _log_softmax(call: Call) -> tuple[Row, ...]:
    return _rows_along("log_softmax", call)


def _rows_along(kind: str, call: Call) -> tuple[Row, ...]:
    source = call.tensors[0]
    cols = source.shape[call["dim"]] if source.shape else 1
    return (Row(_normalise(kind, source, cols)),)


def _normalise(kind: str, source: Value, cols: int, weights: int = 0) -> Operator:
    rows = source.numel // cols if cols else 0
    return rowwise(kind, rows=rows, cols=cols).replace(weight_elements=weights, input_elements=source.distinct)


def _affine(call: Call) -> int:
    """Elements of scale, shift and running statistics."""
    names = ("weight", "bias", "running_mean", "running_var", "gamma", "beta")
    return sum(value.distinct for name in names if isinstance(value := call[name], Value))


@LOWERINGS.lowers("layer_norm", "native_layer_norm")
def _layer_norm(call: Call) -> tuple[Row, ...]:
    return _shape_norm("layernorm", call)


@LOWERINGS.lowers("rms_norm", "_fused_rms_norm")
def _rms_norm(call: Call) -> tuple[Row, ...]:
    return _shape_norm("rmsnorm", call)


def _shape_norm(kind: str, call: Call) -> tuple[Row, ...]:
    weight = call["weight"]
    operator = _normalise(kind, call.tensor("input"), prod(call["normalized_shape"]), _affine(call))
    return (Row(operator, weight=weight if isinstance(weight, Value) and weight.stored else None),)


@LOWERINGS.lowers("group_norm")
def _group_norm(call: Call) -> tuple[Row, ...]:
    source = call.tensor("input")
    rows = source.shape[0] * int(call["num_groups"])
    return (Row(_normalise("groupnorm", source, source.numel // rows, _affine(call))),)


@LOWERINGS.lowers("native_group_norm")
def _native_group_norm(call: Call) -> tuple[Row, ...]:
    source = call.tensor("input")
    rows = int(call["N"]) * int(call["group"])
    return (Row(_normalise("groupnorm", source, source.numel // rows, _affine(call))),)


@LOWERINGS.lowers("instance_norm")
def _instance_norm(call: Call) -> tuple[Row, ...]:
    source = call.tensor("input")
    return (Row(_normalise("groupnorm", source, prod(source.shape[2:]), _affine(call))),)


@LOWERINGS.lowers("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_batch_norm")
def _batch_norm(call: Call) -> tuple[Row, ...]:
    """In eval mode an affine map per channel; its rows are one image's pixels of one channel."""
    source = call.tensor("input")
    return (Row(_normalise("batchnorm", source, prod(source.shape[2:]), _affine(call))),)


@LOWERINGS.lowers("_weight_norm", "_weight_norm_interface")
def _weight_norm(call: Call) -> tuple[Row, ...]:
    source = call.tensors[0]
    return (Row(_normalise("l2norm", source, prod(source.shape[1:]), source.distinct)),)


@LOWERINGS.lowers("to", "type_as", "_to_copy", "_autocast_to_reduced_precision", "_autocast_to_full_precision", "float", "half")
def _cast(call: Call) -> tuple[Row, ...]:
    """A cast where the number format changes; the same tensor where it does not (``_to_copy`` always copies)."""
    if call.tensors[0].dtype != call.output.dtype:
        return _move("cast", call, read=call.tensors[0].distinct)
    return _move("copy", call) if call.name == "_to_copy" else ()


def _dense(value: Value) -> tuple[tuple[int, int], ...]:
    """Sizes and strides of the dimensions that matter for the order in memory."""
    return tuple((size, step) for size, step in zip(value.shape, value.stride, strict=True) if size != 1)


@LOWERINGS.lowers("contiguous")
def _contiguous(call: Call) -> tuple[Row, ...]:
    return () if _dense(call.tensors[0]) == _dense(call.output) else _move("copy", call)


@LOWERINGS.lowers("reshape", "flatten", "reshape_as", "unflatten", "ravel")
def _reshape(call: Call) -> tuple[Row, ...]:
    source = call.tensors[0]
    return () if is_viewable(source.shape, source.stride, call.output.shape) else _move("copy", call, read=source.distinct)


def runs(shape: Shape, stride: Shape) -> list[tuple[int, int]]:
    """Dimensions merged where neighbours lie one after the other in memory: (elements, stride of the last)."""
    runs: list[tuple[int, int]] = []
    for size, step in zip(shape, stride, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * step:
            runs[-1] = (runs[-1][0] * size, step)
        else:
            runs.append((size, step))
    return runs


def is_viewable(shape: Shape, stride: Shape, new_shape: Shape) -> bool:
    """Whether a tensor of ``shape`` and ``stride`` can take ``new_shape`` without a copy.

    It can exactly when the new dimensions can be dealt out to the contiguous runs of the old ones.
    """
    if 0 in shape:
        return True
    sizes = [size for size in new_shape if size != 1]
    for elements, _ in runs(shape, stride):
        filled = 1
        while filled < elements and sizes:
            filled *= sizes.pop(0)
        if filled != elements:
            return False
    return not sizes


@LOWERINGS.lowers("bucketize", "searchsorted")
def _search(call: Call) -> tuple[Row, ...]:
    return _spread("searchsorted", call)


@LOWERINGS.lowers("item", "_local_scalar_dense")
def _told_to_host(call: Call) -> tuple[Row, ...]:
    """One value that the host reads; that the device waits meanwhile is not part of the row."""
    return (Row(movement("copy", elements=1)),)
