"""The narrower model that a checkpoint belongs to: a dense timm model reshaped until its tensors have the checkpoint's shapes.

Blocks, attentions and MLPs that the checkpoint lacks are taken out; heads and hidden widths follow the widths of the
linears. Everything stays on the meta device. torch is imported when :func:`fit` is called.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from hwmodel.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
_LISTED = 5
_QUERIES = ("q_proj", "q", "query", "to_q")
_VALUES = ("v_proj", "v", "value", "to_v")


@dataclass(frozen=True)
class Fit:
    """A model with a checkpoint's shapes, and what had to be assumed, one line each."""

    module: nn.Module
    notes: tuple[str, ...]


def fit_to_shapes(module: nn.Module, shapes: Shapes) -> nn.Module:
    """:func:`fit` without its notes."""
    return fit(module, shapes).module


def fit(module: nn.Module, shapes: Shapes) -> Fit:
    """Take out of a dense model what a checkpoint lacks, and narrow what is narrower in it.

    Parameters
    ----------
    module : the dense timm model, on the meta device; it stays as it is
    shapes : shape of every tensor of the checkpoint, by name

    Returns
    -------
    Fit
        Heads are found from the widths of the projections: as wide as a norm of queries says, else as the dense model's
        (in their values, or else their queries) if those divide so, else as many as possible, all narrower. A note says
        what was taken where heads became narrower or another reading has the same shapes.

    Raises
    ------
    CheckpointError
        Widths that do not divide into heads, or names and shapes that no such pruning explains: missing, unexpected and
        misshaped ones are listed.
    """
    fitted = copy.deepcopy(module)
    notes = [*_take_out(fitted, shapes), *_resize_classifier(fitted, shapes)]
    for path, part in _parts(fitted).items():
        notes += _narrow_attention(fitted, path, shapes) if _is_attention(part) else _narrow_mlp(path, part, shapes)
    _compare({name: tuple(tensor.shape) for name, tensor in fitted.state_dict().items()}, shapes)
    return Fit(fitted, tuple(notes))


def _is_attention(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return "proj" in names and bool(names & {"qkv", *_QUERIES}) and isinstance(getattr(module, "num_heads", None), int)


def _is_mlp(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return "fc2" in names and any(name.startswith("fc1") for name in names)


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Attentions and MLPs by path."""
    return {path: part for path, part in module.named_modules() if _is_attention(part) or _is_mlp(part)}


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    setattr(module.get_submodule(_parent(path)), path.rpartition(".")[2], new)


# ---------------------------------------------------------------- what is gone


def _take_out(module: nn.Module, shapes: Shapes) -> Iterator[str]:
    """Replace blocks and parts of which the checkpoint holds nothing; nothing where it holds no part at all."""
    present = {name[:at] for name in shapes for at, letter in enumerate(name) if letter == "."}
    absent = [path for path in _parts(module) if path not in present]
    if len(absent) == len(_parts(module)):
        return
    for block in dict.fromkeys(map(_parent, absent)):
        if block and block not in present:
            _replace(module, block, _passing())
            yield f"{block} is not in the checkpoint: taken as removed"
    for path in absent:
        if _parent(path) in present:
            yield _take_part_out(module, path, present)


def _take_part_out(module: nn.Module, path: str, present: set[str]) -> str:
    """Replace one attention or MLP by the identity; where its normalisation is gone too, the whole branch goes."""
    block_path, name = _parent(path), path.rpartition(".")[2]
    block = module.get_submodule(block_path)
    branches = _branches(block)
    norm = next((norm for norm, part, _ in branches if part == name), "")
    if not norm or f"{block_path}.{norm}" in present or not list(block.get_submodule(norm).parameters()):
        _replace(module, path, _passing())
        return f"{path} is not in the checkpoint: taken as replaced by the identity"
    _drop_branch(block, [branch for branch in branches if branch[1] != name and branch[1] in block._modules], branches)
    return f"{path} and {block_path}.{norm} are not in the checkpoint: the branch is taken as removed"


def _branches(block: nn.Module) -> list[tuple[str, str, str]]:
    """Names of normalisation, part and scale of the residual branches of timm's pre-norm block; empty for other blocks."""
    from timm.models.vision_transformer import Block

    plain = isinstance(block, Block) and type(block).forward is Block.forward
    return [("norm1", "attn", "ls1"), ("norm2", "mlp", "ls2")] if plain else []


def _passing() -> nn.Module:
    """The identity, whatever else it is called with."""
    from torch import nn

    class Passing(nn.Module):
        def forward(self, x: Any, *_: Any, **__: Any) -> Any:
            return x

    return Passing()


def _drop_branch(block: nn.Module, left: Sequence[tuple[str, str, str]], all_branches: Sequence[tuple[str, str, str]]) -> None:
    """Make a block compute ``x + scale(part(norm(x)))`` for the branches that are left, and nothing else."""
    for name in {name for branch in all_branches if branch not in left for name in branch} & block._modules.keys():
        delattr(block, name)

    def forward(self: nn.Module, x: Any, *_: Any, **__: Any) -> Any:
        for norm, part, scale in left:
            x = x + self.get_submodule(scale)(self.get_submodule(part)(self.get_submodule(norm)(x)))
        return x

    block.forward = MethodType(forward, block)


# ---------------------------------------------------------------- what is narrower


@dataclass(frozen=True)
class _Heads:
    """Heads of one attention, and how wide one is in its queries and keys and in its values."""

    count: int
    qk: int
    v: int

    def __str__(self) -> str:
        width = str(self.qk) if self.qk == self.v else f"{self.qk} (queries, keys) and {self.v} (values)"
        return f"{self.count} {'head' if self.count == 1 else 'heads'} of {width}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Sizes of tensors that follow from the heads."""
        fused = self.count * (2 * self.qk + self.v)
        return fused, self.count * self.qk, self.count * self.v, self.qk, self.v, self.count


def _totals(path: str, shapes: Shapes) -> tuple[int, int] | None:
    """Width of all queries and of all values; None where the checkpoint lacks a linear of the attention."""

    def size(names: Sequence[str], axis: int) -> int | None:
        found = (shapes.get(f"{path}.{name}.weight", ()) for name in names)
        return next((shape[axis] for shape in found if len(shape) == 2), None)

    values, fused = size(["proj"], 1), size(["qkv"], 0)
    if fused is not None and values is not None:
        queries, odd = divmod(fused - values, 2)
        if odd or queries < 1:
            raise CheckpointError(f"{path}: qkv is {fused} wide and proj reads {values}: no width is left for queries and keys")
        return queries, values
    queries_alone, values_alone = size(_QUERIES, 0), size(_VALUES, 0)
    return None if queries_alone is None or values_alone is None or values_alone != values else (queries_alone, values_alone)


def _readings(totals: tuple[int, int], dense: _Heads, normed: int | None) -> list[_Heads]:
    """Ways to divide the widths into heads no wider and no more than the dense model's, the preferred one first.

    A norm of queries and keys states their width (``normed``). Otherwise: the dense model's width of values, that of its
    queries, its number of heads, and then as many heads as divide both.
    """
    queries, values = totals
    widths = ((values, dense.v), (queries, dense.qk)) if normed is None else ((queries, normed),)
    counts = [total // width for total, width in widths if not total % width]
    counts += [] if normed is not None else range(dense.count, 0, -1)
    whole = [count for count in dict.fromkeys(counts) if 1 <= count <= dense.count and not (queries % count or values % count)]
    found = [_Heads(count, queries // count, values // count) for count in whole]
    return [heads for heads in found if heads.qk <= dense.qk and heads.v <= dense.v]


def _narrow_attention(module: nn.Module, path: str, shapes: Shapes) -> list[str]:
    attention = module.get_submodule(path)
    own = {f"{path}.{name}": tuple(tensor.shape) for name, tensor in attention.state_dict().items()}
    before, after = _totals(path, own), _totals(path, shapes)
    if before is None or after is None or before == after:
        return []
    count = int(attention.num_heads)  # type: ignore[arg-type]
    dense = _Heads(count, before[0] // count, before[1] // count)
    readings = _readings(after, dense, next(iter(shapes.get(f"{path}.q_norm.weight", ())), None))
    if not readings:
        raise CheckpointError(
            f"{path}: {after[0]} values for queries and {after[1]} for values do not divide into heads (dense: {dense})"
        )
    heads = readings[0]
    _resize(path, attention, shapes, set(zip(dense.widths, heads.widths, strict=True)))
    if heads.qk == heads.v:
        _set_heads(attention, heads)
    else:
        _replace(module, path, _uneven(path, attention, heads))
    others = f"; {' or '.join(map(str, readings[1:4]))} would have the same shapes" if readings[1:] else ""
    narrower = (heads.qk, heads.v) != (dense.qk, dense.v)
    return [f"{path}: read as {heads}, of {dense}{others}"] if others or narrower else []


def _set_heads(attention: nn.Module, heads: _Heads) -> None:
    """Attributes of timm's attentions that follow from the heads."""
    width = heads.count * heads.v
    values = {"num_heads": heads.count, "head_dim": heads.v, "scale": heads.qk**-0.5, "attn_dim": width, "all_head_dim": width}
    for name, value in values.items():
        if isinstance(getattr(attention, name, None), int | float):
            setattr(attention, name, value)


def _uneven(path: str, attention: nn.Module, heads: _Heads) -> nn.Module:
    """timm's attention with queries and keys of another width than values, which timm itself cannot hold."""
    from timm.layers.attention import Attention
    from torch import nn

    if type(attention) is not Attention:
        raise CheckpointError(f"{path}: {heads} cannot be built for attention of class {type(attention).__name__}")
    sizes = [heads.count * size for size in (heads.qk, heads.qk, heads.v)]
    fused = attention.fused_attn

    class UnevenAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in attention.named_children():
                self.add_module(name, child)

        def forward(self, x: Any, attn_mask: Any = None, is_causal: bool = False) -> Any:
            parts = self.get_submodule("qkv")(x).split(sizes, dim=-1)
            q, k, v = (part.unflatten(-1, (heads.count, -1)).transpose(1, 2) for part in parts)
            q, k = self.get_submodule("q_norm")(q), self.get_submodule("k_norm")(k)
            mixed = _attend(q, k, v, attn_mask, is_causal, fused=fused).transpose(1, 2).flatten(2)
            mixed = self.get_submodule("norm")(mixed)
            if "gate" in self._modules:
                mixed = mixed * self.get_submodule("gate")(x).sigmoid()
            return self.get_submodule("proj")(mixed)

    return UnevenAttention()


def _attend(q: Any, k: Any, v: Any, mask: Any, causal: bool, *, fused: bool) -> Any:
    from torch.nn import functional

    if fused or mask is not None or causal:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _narrow_mlp(path: str, mlp: nn.Module, shapes: Shapes) -> list[str]:
    """The hidden width is what fc2 reads; first layers stay the same multiple of it."""
    wanted = shapes.get(f"{path}.fc2.weight", ())
    hidden = tuple(mlp.get_submodule("fc2").state_dict()["weight"].shape)[1:]
    if len(wanted) != 2 or len(hidden) != 1 or not 1 <= wanted[1] < hidden[0]:
        return []
    first = [child for name, child in mlp.named_children() if name.startswith("fc1")]
    multiples = {child.state_dict()["weight"].shape[0] // hidden[0] for child in first}
    _resize(path, mlp, shapes, {(hidden[0] * times, wanted[1] * times) for times in {1, *multiples}})
    return []


def _resize_classifier(module: nn.Module, shapes: Shapes) -> Iterator[str]:
    """The classifier takes the checkpoint's number of classes."""
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    for path in (named,) if isinstance(named, str) else named:
        wanted = shapes.get(f"{path}.weight", ())
        layer = dict(module.named_modules()).get(path)
        weight = None if layer is None else layer._parameters.get("weight")
        if layer is not None and weight is not None and len(wanted) == 2 and weight.shape[0] != wanted[0]:
            classes = weight.shape[0]
            _resize(path, layer, shapes, {(classes, wanted[0])})
            yield f"{path}: {wanted[0]} classes, the dense model has {classes}"


def _resize(path: str, part: nn.Module, shapes: Shapes, pairs: set[tuple[int, int]]) -> None:
    """Give the tensors of a part the checkpoint's shapes where every size changes as ``pairs`` (old, new) allow."""
    import torch

    new_size = dict(pairs)
    for inner_path, inner in part.named_modules(prefix=path):
        for held in (inner._parameters, inner._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                old, persistent = tuple(tensor.shape), name not in inner._non_persistent_buffers_set
                new = shapes.get(f"{inner_path}.{name}", old) if persistent else _followed(old, new_size)
                if old != new and len(old) == len(new) and all(a == b or (a, b) in pairs for a, b in zip(old, new, strict=True)):
                    fresh = torch.empty(new, dtype=tensor.dtype, device="meta")
                    held[name] = torch.nn.Parameter(fresh, tensor.requires_grad) if held is inner._parameters else fresh
        _describe(inner)


def _followed(shape: Shape, new_size: Mapping[int, int]) -> Shape:
    """The shape of a buffer that no checkpoint holds: a vector follows the width it has."""
    return (new_size.get(shape[0], shape[0]),) if len(shape) == 1 else shape


def _describe(layer: nn.Module) -> None:
    """What a layer says of its own sizes."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif hasattr(layer, "normalized_shape") and layer._parameters.get("weight") is not None:
        setattr(layer, "normalized_shape", tuple(layer.state_dict()["weight"].shape))  # noqa: B010


# ---------------------------------------------------------------- what does not fit


def _compare(expected: Shapes, found: Shapes) -> None:
    """Refuse what is missing, unexpected or misshaped, all of it with counts."""
    sizes = {name: ("x".join(map(str, found[name])), "x".join(map(str, expected[name]))) for name in expected.keys() & found.keys()}
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshaped": sorted(
            f"{name} ({has or 'scalar'}, expected {want or 'scalar'})" for name, (has, want) in sizes.items() if has != want
        ),
    }
    told = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if told:
        raise CheckpointError("the checkpoint does not fit the model, even structurally pruned: " + "; ".join(told))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
