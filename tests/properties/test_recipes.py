"""What holds for every recipe: nothing pruned is nothing changed, less kept is less work, files load back equal."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.ir.masks import RULES, BlockMask

TINY = "deit_tiny_patch16_224"
LINEARS = ("patch_embed.proj", "blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc?", "head")

densities = st.floats(0, 1)
sides = st.integers(1, 64)
blocks = st.tuples(sides, sides)
spans = st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
texts = st.text(st.characters(codec="utf-8"), min_size=1)


@cache
def tiny() -> hw.Trace:
    return hw.trace(TINY)


@st.composite
def masks(draw: st.DrawFn) -> BlockMask:
    shape, block = draw(st.tuples(sides, sides)), draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    block = (min(block[0], shape[0]), min(block[1], shape[1]))
    grid = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
    bits = draw(st.lists(st.booleans(), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1]))
    return BlockMask(shape, block, np.array(bits, dtype=bool).reshape(grid))


globs = st.lists(st.sampled_from([*LINEARS, "a", "b@2", "*"]), min_size=1, max_size=3)
dtypes = st.sampled_from([None, "fp16", "int8"])
layers = st.one_of(
    st.builds(LayerRule, match=globs, block=blocks, density=densities, expect=st.sampled_from([None, *RULES]), dtype=dtypes),
    st.builds(LayerRule, match=globs, mask=masks(), dtype=dtypes),
    st.builds(LayerRule, match=globs, dtype=st.sampled_from(["fp16", "int8"])),
)
encoders = st.builds(
    EncoderRule,
    blocks=spans,
    heads=st.one_of(st.integers(1, 3), st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)),
    mlp=st.one_of(st.none(), st.integers(1, 768)),
    keep=st.one_of(st.none(), st.floats(0, 1, exclude_min=True)),
)
published = st.dictionaries(st.sampled_from(["top1_pct", "a b", "ü.x"]), st.one_of(texts, st.floats(-1e9, 1e9), st.integers(0, 99)))
recipes = st.builds(
    Recipe,
    model=texts,
    source=texts,
    remarks=st.one_of(st.none(), texts),
    image_size=st.one_of(st.none(), st.integers(1, 4096)),
    vita=st.sampled_from([None, {"pe": "32x64"}]),
    published=st.one_of(st.none(), st.builds(lambda table, source: table | {"source": source}, published, texts)),
    layers=st.lists(layers, max_size=4),
    encoder=st.lists(encoders, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(recipes)
def test_what_is_saved_loads_back_equal(recipe: Recipe) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        hw.save_recipe(recipe, path)
        assert hw.load_recipe(path) == recipe


@settings(max_examples=30, deadline=None)
@given(blocks, spans, st.sampled_from(RULES))
def test_everything_kept_is_the_dense_trace(block: tuple[int, int], span: str, rule: str) -> None:
    recipe = Recipe(
        model=TINY,
        source="a test",
        encoder=[EncoderRule(blocks=span, heads=[0, 1, 2], mlp=768, tokens=196), EncoderRule(blocks=span, heads=3, keep=1.0)],
        layers=[LayerRule(match=LINEARS, block=block, density=1.0, expect=rule)],
    )
    assert hw.prune(tiny(), recipe) == tiny()


@settings(max_examples=40, deadline=None)
@given(blocks, densities, densities, st.sampled_from(RULES))
def test_less_kept_is_never_more_work(block: tuple[int, int], one: float, other: float, rule: str) -> None:
    def kept(density: float) -> float:
        pruned = hw.prune(tiny(), {glob: {"block": block, "density": density, "expect": rule} for glob in LINEARS})
        assert pruned.macs == tiny().macs
        return pruned.kept_macs

    assert kept(min(one, other)) <= kept(max(one, other)) <= tiny().kept_macs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 11), st.integers(1, 3), st.integers(1, 768), st.integers(1, 196), st.integers(1, 196))
def test_structure_only_takes_away(block: int, heads: int, mlp: int, one: int, other: int) -> None:
    more, fewer = max(one, other), min(one, other)
    rules = [EncoderRule(blocks=f"{block}-11", heads=heads, mlp=mlp, tokens=more), EncoderRule(blocks="11", tokens=fewer)]
    pruned = hw.prune(tiny(), Recipe(model=TINY, source="a test", encoder=rules))
    assert pruned.macs == tiny().macs
    assert pruned.kept_macs <= tiny().kept_macs
    for operator in pruned.operators:
        if operator.kind != "gather":
            dense = tiny()[operator.name]
            assert operator.macs == dense.macs
            assert operator.kept_macs <= dense.macs
            for field in ("input_elements", "output_elements", "weight_elements", "elements", "cols"):
                assert 0 <= getattr(operator, field) <= getattr(dense, field)
    falls = {block: more, 11: fewer}
    assert sum(op.kind == "gather" for op in pruned.operators) == len({left for left in falls.values() if left < 196})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LINEARS), blocks, densities), min_size=1, max_size=5))
def test_later_entries_win(entries: list[tuple[str, tuple[int, int], float]]) -> None:
    def rules(chosen: list[tuple[str, tuple[int, int], float]]) -> Recipe:
        return Recipe(model=TINY, source="s", layers=[LayerRule(match=[g], block=b, density=d) for g, b, d in chosen])

    last = {glob: (glob, block, density) for glob, block, density in entries}
    assert hw.prune(tiny(), rules(entries)) == hw.prune(tiny(), rules(list(last.values())))
