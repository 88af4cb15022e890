"""Lowerings of products, convolutions and attention: everything that multiplies and accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from hwmodel.extraction.recording.lowering import LOWERINGS, Call, Row, Shape, Value
from hwmodel.ir.operators import Operator, elementwise, matmul, reduction, softmax


def _product(
    left: Value, right: Value, *, m: int, k: int, n: int, batch: int = 1, bias: Value | None = None, kind: str = "matmul"
) -> Row:
    """``batch`` products of (m, k) by (k, n); ``right`` is a weight where it is constant. A bias rides along."""
    weights = right.distinct if right.constant else 0
    inputs = left.distinct + (0 if right.constant else right.distinct)
    if bias is not None:
        weights, inputs = (weights + bias.distinct, inputs) if bias.constant else (weights, inputs + bias.distinct)
    row = matmul(batch=batch, m=m, k=k, n=n, parameter=right.constant)
    operator = row.replace(kind=kind, weight_elements=weights, input_elements=inputs)
    return Row(operator, reads=(left, right) if bias is None else (left, right, bias), weight=right if right.constant else None)


@LOWERINGS.lowers("linear")
def _linear(call: Call) -> tuple[Row, ...]:
    tokens, weight = call.tensor("input"), call.tensor("weight")
    n, k = weight.shape if len(weight.shape) == 2 else (1, weight.shape[0])
    row = _product(tokens, weight, m=prod(tokens.shape[:-1]), k=k, n=n, bias=call["bias"])
    return (_patch_embedding(row) if tokens.from_input and "patch" in weight.source else row,)


def _patch_embedding(row: Row) -> Row:
    return replace(row, operator=row.operator.replace(role="patch_embed"))


def _matrix(value: Value, side: str) -> tuple[Shape, int, int]:
    """Batch dimensions, free dimension and contracted dimension of one factor; vectors become matrices."""
    shape = value.shape
    if len(shape) == 1:
        return (), 1, shape[0]
    free, inner = (shape[-2], shape[-1]) if side == "left" else (shape[-1], shape[-2])
    return shape[:-2], free, inner


def _shared(value: Value, rank: int) -> tuple[bool, ...]:
    """Per batch dimension of a product of ``rank`` batch dimensions: whether one matrix serves all of it."""
    sizes, steps = value.shape[:-2], value.stride[:-2]
    known = tuple(size == 1 or step == 0 for size, step in zip(sizes, steps, strict=True))
    return (True,) * (rank - len(known)) + known


def _broadcast(one: Shape, other: Shape) -> Shape:
    rank = max(len(one), len(other))
    padded = [(1,) * (rank - len(shape)) + shape for shape in (one, other)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))


def _matmul_row(left: Value, right: Value, bias: Value | None = None) -> Row:
    """A general matrix product. Of a constant and an activation the constant becomes the weight, transposed if need be.

    Batch dimensions that one weight serves are folded into ``m``; a right factor without batch dimensions likewise.
    """
    left_batch, m, k = _matrix(left, "left")
    right_batch, n, _ = _matrix(right, "right")
    if left.constant and not right.constant:
        left, right, left_batch, right_batch, m, n = right, left, right_batch, left_batch, n, m
    sizes = _broadcast(left_batch, right_batch)
    shared = _shared(right, len(sizes)) if right.constant or not right_batch else (False,) * len(sizes)
    folded = prod(size for size, one in zip(sizes, shared, strict=True) if one)
    return _product(left, right, batch=prod(sizes) // max(folded, 1), m=m * folded, k=k, n=n, bias=bias)


@LOWERINGS.lowers("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def _matmul(call: Call) -> tuple[Row, ...]:
    left, right = call.tensors[:2]
    return (_matmul_row(left, right),)


@LOWERINGS.lowers("addmm", "baddbmm", "addmv", "addbmm")
def _addmm(call: Call) -> tuple[Row, ...]:
    bias, left, right = call.tensors[:3]
    return (_matmul_row(left, right, bias),)


@LOWERINGS.lowers("outer", "ger")
def _outer(call: Call) -> tuple[Row, ...]:
    read = sum(value.distinct for value in call.tensors)
    return (Row(elementwise("mul", elements=call.output.numel).replace(input_elements=read)),)


@LOWERINGS.lowers("bilinear")
def _bilinear(call: Call) -> tuple[Row, ...]:
    """x1 W_o x2 for every output o: one product by W, then a weighted sum over the second input."""
    first, second, weight = call.tensor("input1"), call.tensor("input2"), call.tensor("weight")
    n, k1, k2 = weight.shape
    rows = prod(first.shape[:-1])
    product = _product(first, weight, m=rows, k=k1, n=n * k2, bias=call["bias"])
    last = Row(matmul(batch=rows, m=n, k=k2, n=1, parameter=False), reads=(second,), chained=True)
    return (product, last)


def _expand_ellipsis(terms: list[str], operands: list[Value], output: str) -> tuple[list[str], str]:
    """Spell ``...`` out with capital letters, aligned to the right."""
    spare = "ZYXWVUTSRQ"
    ranks = [len(value.shape) - len(term.replace("...", "")) for term, value in zip(terms, operands, strict=True)]
    longest = max((rank for rank, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    spelled = [term.replace("...", spare[longest - rank : longest]) for term, rank in zip(terms, ranks, strict=True)]
    return spelled, output.replace("...", spare[:longest])


def _einsum_letters(equation: str, operands: list[Value]) -> tuple[list[str], str]:
    """Letters of each operand and of the result; an implicit result has the letters that occur once, in order."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    return _expand_ellipsis(terms, operands, right)


@LOWERINGS.lowers("einsum")
def _einsum(call: Call) -> tuple[Row, ...] | None:
    operands = list(call.tensors)
    terms, result = _einsum_letters(call["equation"], operands)
    if len(operands) > 2:
        return _einsum_chain(terms, result, operands, call["path"] or ())
    if len(operands) == 1:
        summed = set(terms[0]) - set(result)
        return (Row(reduction("sum", inputs=operands[0].numel, outputs=call.output.numel)),) if summed else ()
    return (_einsum_pair(terms, result, operands),)


def _einsum_chain(terms: list[str], result: str, operands: list[Value], path: Sequence[int]) -> tuple[Row, ...] | None:
    """Pair after pair along torch's contraction path (left to right where it has none), each with the result of the one before.

    Nothing for a path with two partial results at a time.
    """
    pairs = [sorted(path[step : step + 2]) for step in range(0, len(path), 2)] or [[0, 1]] + [[0, -1]] * (len(operands) - 2)
    names, values, rows = list(terms), list(operands), list[Row]()
    for first, second in pairs:
        (name, other), (left, right) = (names[first], names[second]), (values[first], values[second])
        names = [one for place, one in enumerate(names) if place not in {first, second % len(names)}]
        values = [one for place, one in enumerate(values) if place not in {first, second % len(values)}]
        needed = set(result).union(*names)
        partial = "".join(dict.fromkeys(letter for letter in name + other if letter in needed)) if names else result
        chained = bool(rows) and _PARTIAL in {left.storage, right.storage}
        if rows and not chained:
            return None
        row = _einsum_pair([name, other], partial, [left, right])
        reads = tuple(value for value in (left, right) if value.storage != _PARTIAL)
        rows.append(replace(row, reads=reads, chained=chained))
        names.append(partial)
        values.append(_partial_result(partial, [name, other], left, right))
    return tuple(rows)


_PARTIAL = -1
"""Storage of a result inside a lowering, which no tensor of the graph has."""


def _partial_result(letters: str, terms: list[str], left: Value, right: Value) -> Value:
    """What one pair of a chain gives."""
    size = dict(zip("".join(terms), left.shape + right.shape, strict=True))
    shape = tuple(size[letter] for letter in letters)
    stride = tuple(prod(shape[place + 1 :]) for place in range(len(shape)))
    return Value(shape=shape, stride=stride, dtype=left.dtype, storage=_PARTIAL, constant=left.constant and right.constant)


def _einsum_pair(terms: list[str], result: str, operands: list[Value]) -> Row:
    left, right = operands
    letters, others = set(terms[0]), set(terms[1])
    size = dict(zip(terms[0] + terms[1], left.shape + right.shape, strict=True))
    if left.constant and not right.constant:
        left, right, letters, others = right, left, others, letters
    inner = (letters & others) - set(result)
    if not inner:
        read = left.distinct + right.distinct
        return Row(elementwise("mul", elements=prod(size[name] for name in result)).replace(input_elements=read))

    def extent(names: set[str]) -> int:
        return prod(size[name] for name in names)

    kept = set(result)
    batch, m, n = extent(letters & others & kept), extent((letters - others) & kept), extent((others - letters) & kept)
    return _product(left, right, batch=batch, m=m, k=extent(inner), n=n)


@LOWERINGS.lowers("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def _conv(call: Call) -> tuple[Row, ...]:
    """A convolution as the product it is (im2col): one per group, m = images x output pixels, k = in/groups x window."""
    if call["transposed"]:
        return _conv_transpose(call)
    image, weight, groups = call.tensor("input"), call.tensor("weight"), int(call["groups"])
    n, k = weight.shape[0] // groups, prod(weight.shape[1:])
    m = call.output.numel // weight.shape[0]
    row = _product(image, weight, batch=groups, m=m, k=k, n=n, bias=call["bias"], kind="conv")
    return (_patch_embedding(row) if image.from_input and _tiles_input(call) else row,)


def _tiles_input(call: Call) -> bool:
    """Whether windows of more than one pixel lie side by side."""
    window = call.tensor("weight").shape[2:]
    steps = tuple(call["stride"]) * (len(window) if len(call["stride"]) == 1 else 1)
    padding = call["padding"]
    padded = padding == "same" if isinstance(padding, str) else any(padding)
    return steps == window and prod(window) > 1 and not padded and int(call["groups"]) == 1


@LOWERINGS.lowers("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(call: Call) -> tuple[Row, ...]:
    """Each input pixel is multiplied into a window of outputs: m = images x input pixels, n = out/groups x window."""
    image, weight, groups = call.tensor("input"), call.tensor("weight"), int(call["groups"])
    k, n = weight.shape[0] // groups, prod(weight.shape[1:])
    m = image.numel // weight.shape[0]
    row = _product(image, weight, batch=groups, m=m, k=k, n=n, bias=call["bias"], kind="conv")
    return (replace(row, operator=row.operator.replace(output_elements=call.output.numel)),)


@LOWERINGS.lowers("scaled_dot_product_attention", "_scaled_dot_product_attention_math")
def _attention(call: Call) -> tuple[Row, ...]:
    """Spelled out: scores, the addition of a mask where there is one, softmax, context."""
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    batch, (queries, depth), keys = prod(query.shape[:-2]), query.shape[-2:], key.shape[-2]
    scores = matmul(batch=batch, m=queries, k=depth, n=keys, parameter=False, role="scores", fused_in_source=True)
    weights = softmax(rows=batch * queries, cols=keys, name="softmax", fused_in_source=True)
    context = matmul(batch=batch, m=queries, k=keys, n=value.shape[-1], parameter=False, role="context", fused_in_source=True)
    rows = (
        Row(_named(scores, "scores", query.distinct + key.distinct), reads=(query, key)),
        *_attention_mask(call, batch * queries * keys),
        Row(weights, reads=(), chained=True),
        Row(_named(context, "context", batch * queries * keys + value.distinct), reads=(value,), chained=True),
    )
    return _causal(rows) if call["is_causal"] else rows


def _named(operator: Operator, name: str, inputs: int) -> Operator:
    return operator.replace(name=name, input_elements=inputs)


def _causal(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(replace(row, operator=row.operator.replace(causal=True)) for row in rows)


def _attention_mask(call: Call, elements: int) -> tuple[Row, ...]:
    """The addition of a mask or bias to the scores; a boolean mask becomes an added one in PyTorch's math path."""
    mask: Value | None = call["attn_mask"]
    if mask is None:
        return ()
    added = elementwise("add", elements=elements, inputs=1, fused_in_source=True)
    weights, inputs = (mask.distinct, 0) if mask.stored else (0, mask.distinct)
    operator = added.replace(input_elements=elements + inputs, weight_elements=weights)
    return (Row(operator, reads=(mask,), chained=True),)


@LOWERINGS.lowers("lstm", "gru")
def _recurrent(call: Call) -> tuple[Row, ...]:
    """Per layer and direction: all inputs through one weight, all states through another, then the gates.

    The states of one sequence follow each other; the row of their product says nothing of that order.
    """
    tokens, weights = call.tensor("input"), [value for value in call["params"] if len(value.shape) == 2]
    steps = prod(tokens.shape[:-1])
    rows: list[Row] = []
    for inward, inner in zip(weights[::2], weights[1::2], strict=True):
        hidden = steps * inner.shape[1]
        rows += [_recurrent_product(tokens, weight, steps, chained=bool(rows)) for weight in (inward, inner)]
        gates = inner.shape[0] // inner.shape[1]
        rows += [
            Row(elementwise(kind, elements=count * hidden), reads=(), chained=True)
            for kind, count in (("sigmoid", gates - 1), ("tanh", gates - 2), ("mul", gates - 1))
        ]
    return tuple(rows)


def _recurrent_product(tokens: Value, weight: Value, steps: int, *, chained: bool) -> Row:
    n, k = weight.shape
    operator = matmul(m=steps, k=k, n=n, parameter=True).replace(weight_elements=weight.distinct + n)
    return Row(operator, reads=() if chained else (tokens,), weight=weight, chained=chained)
