"""Groups of ONNX nodes that one PyTorch call spelled out, put back together: linear, GELU, SiLU, attention, LayerNorm, roll.

Every rewrite asks that nothing else reads what it swallows. A group that is written otherwise stays as its nodes are:
its rows are then more, its products the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from hwmodel.extraction.onnx_files.folding import Graph, Node

Rewrite = tuple[Node, set[str]]
"""The node that takes a group's place, and the results of the nodes it swallows (its own apart)."""

SIGMOID_GATED, LINEAR, ATTENTION, ROLL, NORM = (
    "hwmodel::Silu",
    "hwmodel::Linear",
    "hwmodel::Attention",
    "hwmodel::Roll",
    "hwmodel::LayerNorm",
)


def recognise(graph: Graph) -> list[Node]:
    """The nodes of a graph with every known group as one node, in execution order."""
    nodes = graph.nodes
    for rule in (_linear, _gelu, _silu, _layer_norm, _roll, _roll_again, _attention):
        nodes = _applied(graph, nodes, rule)
    return nodes


class Links:
    """Who writes and who reads each tensor."""

    def __init__(self, graph: Graph, nodes: list[Node]) -> None:
        self.graph = graph
        self.writer = {name: node for node in nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers[name].append(node)

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads a tensor, None where there are more or it is a result of the model."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def written_by(self, name: str, *ops: str) -> Node | None:
        """The node that writes a tensor, where it is one of ``ops``."""
        node = self.writer.get(name)
        return node if node is not None and node.op in ops else None

    def number(self, name: str) -> float | None:
        """The value of a tensor that is one known number."""
        value = self.graph.numbers.get(name)
        return float(np.ravel(value)[0]) if value is not None and np.size(value) == 1 else None

    def scaled(self, name: str) -> tuple[str, float] | None:
        """What a tensor is a multiple of, and the factor."""
        node = self.written_by(name, "Mul", "Div")
        if node is None:
            return None
        left, right = node.inputs
        factor = self.number(right)
        if factor is not None:
            return left, factor if node.op == "Mul" else 1 / factor
        factor = self.number(left)
        return None if factor is None or node.op == "Div" else (right, factor)

    def other(self, node: Node, name: str) -> str:
        """The operand of a node of two operands that is not ``name``."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


Rule = Callable[[Links, Node], Rewrite | None]


def _applied(graph: Graph, nodes: list[Node], rule: Rule) -> list[Node]:
    """Rewrite every group a rule finds, each in the place of its last node."""
    links = Links(graph, nodes)
    swallowed: set[str] = set()
    made: dict[str, Node] = {}
    for node in nodes:
        found = None if node.outputs[0] in swallowed else rule(links, node)
        if found is not None and not found[1] & swallowed:
            made[found[0].outputs[0]] = found[0]
            swallowed |= found[1]
    return [made.get(node.outputs[0], node) for node in nodes if node.outputs[0] not in swallowed]


def _linear(links: Links, node: Node) -> Rewrite | None:
    """A product by a stored matrix, and the addition of a stored vector behind it."""
    if node.op != "MatMul" or not _is_stored(links, node.inputs[1], 2):
        return None
    add = links.only_reader(node.outputs[0])
    width = links.graph.tensors[node.inputs[1]].shape[1]
    if add is not None and add.op == "Add":
        bias = links.other(add, node.outputs[0])
        if _is_stored(links, bias, 1) and links.graph.tensors[bias].shape == (width,):
            return replace(node, op=LINEAR, inputs=(*node.inputs, bias), outputs=add.outputs), {node.outputs[0]}
    return replace(node, op=LINEAR), set()


def _is_stored(links: Links, name: str, rank: int) -> bool:
    """A parameter, as it is, transposed, or dequantised."""
    held = links.graph.tensors.get(name)
    source = links.written_by(name, "Transpose", "DequantizeLinear", "Cast")
    stored = name in links.graph.parameters or (source is not None and _is_stored(links, source.inputs[0], rank))
    return held is not None and len(held.shape) == rank and stored


def _gelu(links: Links, node: Node) -> Rewrite | None:
    """x * 0.5 * (1 + erf(x / sqrt 2)), multiplied in any order."""
    if node.op != "Erf":
        return None
    inner = links.scaled(node.inputs[0])
    add = links.only_reader(node.outputs[0])
    if inner is None or abs(inner[1] - 2**-0.5) > 1e-3 or add is None or add.op != "Add":
        return None
    if links.number(links.other(add, node.outputs[0])) != 1.0:
        return None
    swallowed, at = {node.inputs[0], node.outputs[0], add.outputs[0]}, add.outputs[0]
    seen_half, seen_x = False, False
    while not (seen_half and seen_x):
        mul = links.only_reader(at)
        if mul is None or mul.op != "Mul":
            return None
        other = links.other(mul, at)
        half = links.scaled(other)
        seen_half |= links.number(other) == 0.5 or (half == (inner[0], 0.5))
        seen_x |= other == inner[0] or half == (inner[0], 0.5)
        if half == (inner[0], 0.5) and links.only_reader(other) is not None:
            swallowed.add(other)
        if not seen_half and not seen_x:
            return None
        at = mul.outputs[0]
        swallowed.add(at)
    return replace(node, op="Gelu", inputs=(inner[0],), outputs=(at,)), swallowed - {at}


def _silu(links: Links, node: Node) -> Rewrite | None:
    """x * sigmoid(x)."""
    mul = links.only_reader(node.outputs[0]) if node.op == "Sigmoid" else None
    if mul is None or mul.op != "Mul" or links.other(mul, node.outputs[0]) != node.inputs[0]:
        return None
    return replace(node, op=SIGMOID_GATED, outputs=mul.outputs), {node.outputs[0]}


def _layer_norm(links: Links, node: Node) -> Rewrite | None:
    """(x - mean) / sqrt(mean of squares + eps) * scale + shift, as exporters before operator set 17 write it."""
    if node.op != "Div":
        return None
    centred, root = (links.writer.get(name) for name in node.inputs)
    if centred is None or root is None or centred.op != "Sub" or root.op != "Sqrt":
        return None
    mean, added = links.written_by(centred.inputs[1], "ReduceMean"), links.written_by(root.inputs[0], "Add")
    spread = added and next((found for name in added.inputs if (found := links.written_by(name, "ReduceMean"))), None)
    square = spread and links.written_by(spread.inputs[0], "Pow", "Mul")
    if mean is None or added is None or spread is None or square is None:
        return None
    if mean.inputs[0] != centred.inputs[0] or square.inputs[0] not in links.writer:
        return None
    scale = links.only_reader(node.outputs[0])
    shift = links.only_reader(scale.outputs[0]) if scale is not None else None
    if scale is None or shift is None or (scale.op, shift.op) != ("Mul", "Add"):
        return None
    swallowed = {item.outputs[0] for item in (mean, centred, square, spread, added, root, node, scale)}
    affine = links.other(scale, node.outputs[0]), links.other(shift, scale.outputs[0])
    return replace(node, op=NORM, inputs=(mean.inputs[0], *affine), outputs=shift.outputs), swallowed


def _roll(links: Links, node: Node) -> Rewrite | None:
    """A concatenation of the end of a tensor and its start."""
    parts = [links.written_by(name, "Slice") for name in node.inputs] if node.op == "Concat" and len(node.inputs) == 2 else []
    if len(parts) != 2 or parts[0] is None or parts[1] is None or parts[0].inputs[0] != parts[1].inputs[0]:
        return None
    source = parts[0].inputs[0]
    starts = [links.number(part.inputs[1]) for part in parts if part]
    whole = links.graph.tensors[source].shape == links.graph.tensors[node.outputs[0]].shape
    if not whole or starts[1] != 0 or any(links.only_reader(name) is None for name in node.inputs):
        return None
    return replace(node, op=ROLL, inputs=(source,)), set(node.inputs)


def _roll_again(links: Links, node: Node) -> Rewrite | None:
    """Rolls along several axes are one."""
    first = links.written_by(node.inputs[0], ROLL) if node.op == ROLL else None
    if first is None or links.only_reader(first.outputs[0]) is None:
        return None
    return replace(node, inputs=first.inputs), {first.outputs[0]}


def _attention(links: Links, node: Node) -> Rewrite | None:
    """Scaled-dot-product attention as exporters write it: queries *and* keys are multiplied by the root of the scale."""
    if node.op != "Softmax":
        return None
    first, mask, between = _scores(links, node.inputs[0])
    last, after = _context(links, node.outputs[0])
    query, key = (links.scaled(name) for name in first.inputs) if first is not None else (None, None)
    if first is None or last is None or query is None or key is None:
        return None
    keys, path = _unturned(links, key[0], links.graph.tensors[first.inputs[1]].shape)
    swallowed = {*first.inputs, first.outputs[0], node.outputs[0], *between, *after, *path}
    values = links.other(last, after[-1] if after else node.outputs[0])
    inputs = (query[0], keys or key[0], values) + ((mask,) if mask else ())
    return replace(last, op=ATTENTION, inputs=inputs, attributes={"turned": keys is None}), swallowed


def _scores(links: Links, name: str) -> tuple[Node | None, str, list[str]]:
    """The product that a softmax normalises, the mask added on the way, and what lies between."""
    product = links.written_by(name, "MatMul")
    if product is not None:
        return product, "", []
    add = links.written_by(name, "Add")
    for operand in add.inputs if add is not None else ():
        product = links.written_by(operand, "MatMul")
        if add is not None and product is not None and links.only_reader(operand) is not None:
            return product, links.other(add, operand), [name]
    return None, "", []


def _context(links: Links, name: str) -> tuple[Node | None, list[str]]:
    """The product that a softmax's weights go into; rows without any visible key are set to zero on the way."""
    readers = links.readers[name]
    guard = next((reader for reader in readers if reader.op == "Where"), None)
    after: list[str] = []
    if guard is not None and {reader.op for reader in readers} == {"IsNaN", "Where"}:
        after = [reader.outputs[0] for reader in readers if reader.op == "IsNaN"] + [guard.outputs[0]]
        name = guard.outputs[0]
    product = links.only_reader(name)
    fits = product is not None and product.op == "MatMul" and product.inputs[0] == name
    return (product, after) if fits else (None, [])


def _unturned(links: Links, name: str, turned: tuple[int, ...]) -> tuple[str | None, list[str]]:
    """The keys before they were transposed to ``turned``, and the tensors on the way; None where no tensor holds them so."""
    path: list[str] = []
    for _ in range(3):
        node = links.written_by(name, "Transpose", "Reshape")
        if node is None:
            break
        path.append(name)
        name = node.inputs[0]
        shape = links.graph.tensors[name].shape
        if prod(shape) == prod(turned) and len(shape) == len(turned) and shape[-2:] == turned[:-3:-1]:
            return name, path
    return None, []
