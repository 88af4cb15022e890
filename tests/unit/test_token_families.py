"""Token counts that depend on the image: distributions, families of traces, and what they cost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_models import IMAGES, shallow, small_vit

import hwmodel as hw
from hwmodel.backends.families import Spread
from hwmodel.cli import main
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.extraction.zoo import build
from hwmodel.pruning.tokens import measured_tokens, threshold_tokens

TINY = "deit_tiny_patch16_224"
SMALLEST = "test_vit"
THREE = hw.TokenDistribution([(60, 30), (80, 50), (100, 40)], [0.5, 0.25, 0.25])


@cache
def dense(batch: int = 1) -> hw.Trace:
    return hw.trace(shallow(TINY, blocks=6), batch=batch).replace(model=TINY)


def two_points(select: str = "threshold", *, independent: bool = False, model: str = TINY) -> Recipe:
    shared = {"probability": [0.5, 0.25, 0.25], "independent": independent}
    return Recipe(
        model=model,
        source="a test",
        encoder=[
            EncoderRule(blocks="3", tokens={"values": [60, 80, 100], **shared}, select=select),
            EncoderRule(blocks="5", tokens={"values": [30, 50, 40], **shared}, select=select),
        ],
    )


distributions = st.integers(1, 2).flatmap(
    lambda points: st.lists(
        st.tuples(st.tuples(*[st.integers(1, 6)] * points), st.integers(1, 9)), min_size=1, max_size=4, unique_by=lambda row: row[0]
    )
)


@given(distributions, st.integers(1, 4))
def test_the_longest_of_a_batch_is_what_drawing_every_batch_says(rows: list, images: int) -> None:
    total = sum(weight for _, weight in rows)
    found = hw.TokenDistribution([counts for counts, _ in rows], [weight / total for _, weight in rows]).longest_of(images)
    expected: dict[tuple[int, ...], float] = {}
    for drawn in product(rows, repeat=images):
        longest = tuple(map(max, zip(*(counts for counts, _ in drawn), strict=True)))
        expected[longest] = expected.get(longest, 0) + prod(weight / total for _, weight in drawn)
    assert dict(zip(found.counts, found.probability, strict=True)) == pytest.approx(expected)


def test_the_longest_of_one_image_is_the_image() -> None:
    assert THREE.longest_of(1) is THREE


def test_distributions_are_sorted_and_equal_rows_are_one() -> None:
    found = hw.TokenDistribution([9, 4, 9], [0.25, 0.5, 0.25])
    assert (found.counts, found.probability) == (((4,), (9,)), (0.5, 0.5))
    assert found == hw.TokenDistribution.measured([9, 4]) == hw.TokenDistribution.measured([[4], [9], [4], [9]])
    assert found.mean == (6.5,)
    assert hw.TokenDistribution.independent(found, found).probability == (0.25,) * 4


@pytest.mark.parametrize(
    ("counts", "probability", "reason"),
    [
        ([1, 2], [0.5, 0.4], "must sum to 1, found 0.9"),
        ([1, 2], [1.5, -0.5], r"must lie in \[0, 1\]"),
        ([1, 2], [1.0], "one probability per row of counts, found 2 and 1"),
        ([], [], "one probability per row of counts, found 0 and 0"),
        ([(1, 2), (1,)], [0.5, 0.5], "one count per point"),
        ([1.5], [1.0], "whole numbers of at least 1, found 1.5"),
        ([0], [1.0], "whole numbers of at least 1, found 0"),
        ([1], [float("nan")], r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_distribution(counts: list, probability: list, reason: str) -> None:
    with pytest.raises(hw.HwmodelError, match=reason):
        hw.TokenDistribution(counts, probability)


def test_too_many_padded_shapes_are_refused_not_guessed() -> None:
    rows = [(count, count + 1, count + 2) for count in range(1, 40)]
    with pytest.raises(hw.HwmodelError, match="39 x 39 x 39 possible token counts"):
        hw.TokenDistribution(rows, [1 / 39] * 39).longest_of(2)


def test_spread_is_mean_quantile_and_maximum() -> None:
    assert Spread.of([1.0, 3.0, 2.0], [0.9, 0.04, 0.06]) == Spread(mean=0.9 + 0.12 + 0.12, p95=2.0, worst=3.0)
    assert Spread.of([1.0, 2.0], [0.95, 0.05]).p95 == 1.0
    assert Spread.of([1.0, 2.0], [0.94, 0.06]).p95 == 2.0
    assert Spread.of([float(value) for value in range(1, 21)], [0.05] * 20).p95 == 19.0


@pytest.mark.parametrize("batch", [1, 2])
def test_symbolic_extraction_equals_the_recipe_at_every_count(batch: int) -> None:
    model = threshold_tokens(shallow(TINY, blocks=6), {3: 1.0, 5: 1.0})
    extracted, by_recipe = hw.trace_family(model, THREE, batch=batch), hw.prune_family(dense(batch), two_points())
    assert extracted.distribution == by_recipe.distribution == THREE.longest_of(batch)
    for real, told in zip(extracted.traces, by_recipe.traces, strict=True):
        assert list(real.operators) == [operator.replace(dense_macs=None) for operator in told.operators]
        assert real.edges == told.edges
        assert real.macs == told.kept_macs
    for device in ("a100-40gb", "vita", "tpu-v3"):
        real, told = (hw.estimate_family(family, device=device) for family in (extracted, by_recipe))
        assert (real.latency_s, real.energy_j) == (told.latency_s, told.energy_j)


def test_a_trace_of_the_family_is_what_runs() -> None:
    """Token counts of the extraction at measured counts are those that real tensors have."""
    model = threshold_tokens(small_vit(), {1: 1.1, 2: 1.0})
    measured = measured_tokens(model, IMAGES)
    family = hw.trace_family(model, measured, example=IMAGES[:1])
    assert measured.points == 2
    for trace, counts in zip(family.traces, measured.counts, strict=True):
        assert trace["blocks.1.attn.qkv"].m == 1 + 16
        assert trace["blocks.1.mlp.fc1"].m == trace["blocks.2.attn.qkv"].m == 1 + counts[0]
        assert trace["blocks.2.mlp.fc1"].m == trace["blocks.3.mlp.fc1"].m == 1 + counts[1]
        scored = [row.kind for row in trace.operators if row.name.startswith("blocks.1.select.")]
        assert scored == ["mean", "gt", "sum", "max", "clamp", "copy", "topk", "gather", "concat"]


def test_every_count_is_priced_then_averaged() -> None:
    family = hw.prune_family(dense(), two_points("given"))
    priced = hw.estimate_family(family, device="tpu-v3")
    apart = [hw.estimate(trace, device="tpu-v3").latency_s for trace in family.traces]
    assert priced.latency_s.mean == pytest.approx(0.5 * apart[0] + 0.25 * apart[1] + 0.25 * apart[2])
    assert priced.latency_s.worst == max(apart)


def test_the_price_of_the_mean_is_not_the_mean_price() -> None:
    """A GPU computes tiles of tokens and waves of tiles, so its latency is a staircase over the count."""
    spread = {"values": [60, 100], "probability": [0.9, 0.1]}
    rule = {"blocks": "0"}
    family = hw.prune_family(dense(), Recipe(model=TINY, source="s", encoder=[EncoderRule(**rule, tokens=spread)]))
    mean = round(family.distribution.mean[0])
    of_mean = hw.estimate(
        hw.prune(dense(), Recipe(model=TINY, source="s", encoder=[EncoderRule(**rule, tokens=mean)])), device="a100-40gb"
    )
    assert hw.estimate_family(family, device="a100-40gb").latency_s.mean != pytest.approx(of_mean.latency_s, rel=1e-4)


def test_a_distribution_of_one_count_is_that_count() -> None:
    rule = {"blocks": "3", "select": "threshold"}
    one = Recipe(model=TINY, source="s", encoder=[EncoderRule(**rule, tokens={"values": [60], "probability": [1.0]})])
    fixed = Recipe(model=TINY, source="s", encoder=[EncoderRule(**rule, tokens=60)])
    (trace,) = hw.prune_family(dense(2), one).traces
    assert trace.operators == hw.prune(dense(2), fixed).operators


def test_rules_are_rows_of_one_joint_distribution_unless_told() -> None:
    assert hw.prune_family(dense(), two_points()).distribution.counts == ((60, 30), (80, 50), (100, 40))
    crossed = hw.prune_family(dense(), two_points(independent=True)).distribution
    assert len(crossed.counts) == 9
    assert dict(zip(crossed.counts, crossed.probability, strict=True))[60, 50] == 0.5 * 0.25
    mixed = [{"values": [60, 80], "probability": [0.5, 0.5]}, {"values": [30, 40], "probability": [0.4, 0.6]}]
    rules = [EncoderRule(blocks=block, tokens=tokens) for block, tokens in zip("35", mixed, strict=True)]
    with pytest.raises(hw.HwmodelError, match=r"share their probabilities; .* independent = true"):
        hw.prune_family(dense(), Recipe(model=TINY, source="s", encoder=rules))
    half = [
        rules[0],
        EncoderRule(blocks="4", tokens={**mixed[1], "independent": True}),
        EncoderRule(blocks="5", tokens={**mixed[0], "values": [9, 8]}),
    ]
    found = hw.prune_family(dense(), Recipe(model=TINY, source="s", encoder=half)).distribution
    assert dict(zip(found.counts, found.probability, strict=True)) == pytest.approx(
        {(60, 30, 9): 0.2, (60, 40, 9): 0.3, (80, 30, 8): 0.2, (80, 40, 8): 0.3}
    )


def of_small(tokens: hw.TokenDistribution, blocks: tuple[int, ...] = (1, 2)) -> hw.TraceFamily:
    return hw.trace_family(threshold_tokens(small_vit(), dict.fromkeys(blocks, 1.0)), tokens, example=IMAGES[:1])


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: of_small(hw.TokenDistribution([5], [1.0])), "2 token counts depend on the data, the distribution has 1 points"),
        (lambda: of_small(hw.TokenDistribution([(5, 9)], [1.0])), r"counts \(5, 9\) contradict .* u1 <= u0 with u0 = 5, u1 = 9"),
        (lambda: of_small(hw.TokenDistribution([(17, 9)], [1.0])), "contradict .* u0 <= 16 with u0 = 17"),
        (lambda: of_small(THREE, ()), "no token count depends on the data; trace it with hw.trace"),
        (lambda: hw.trace_family(TINY, THREE), "a model by name keeps every token; pass the torch.nn.Module"),
        (lambda: hw.trace_family(small_vit(), THREE, batch=0), "batch must be at least 1, got 0"),
        (lambda: measured_tokens(threshold_tokens(build(TINY), {3: 1.0}), IMAGES), "is on the meta device"),
        (lambda: hw.prune_family(dense(), Recipe(model=TINY, source="s")), "no entry of encoder has tokens = {values"),
    ],
)
def test_what_families_refuse(ask: Callable[[], object], reason: str) -> None:
    with pytest.raises(hw.HwmodelError, match=reason):
        ask()


def test_counts_beyond_the_models_patches_are_refused() -> None:
    tokens = {"values": [60, 300], "probability": [0.5, 0.5]}
    with pytest.raises(hw.HwmodelError, match="block 3 asks for 300 patch tokens, but the model has 196"):
        hw.prune_family(dense(), Recipe(model=TINY, source="s", encoder=[EncoderRule(blocks="3", tokens=tokens)]))


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "spread.toml"
    hw.save_recipe(two_points(model=SMALLEST), path)
    return str(path)


def test_estimate_prints_json(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", SMALLEST, "--device", "host-cpu", "--batch", "2", "--recipe", recipe_file, "--json"])
    one, padded = json.loads(capsys.readouterr().out)
    assert (one["batch"], padded["batch"]) == (1, 2)
    expected = hw.estimate_family(hw.prune_family(hw.trace(SMALLEST), two_points(model=SMALLEST)), device="host-cpu")
    assert one["latency_s"]["mean"] == expected.latency_s.mean
    assert [row["tokens"] for row in padded["rows"]] == [[60, 30], [80, 50], [100, 40], [100, 50]]
    assert padded["latency_s"]["worst"] == max(row["latency_s"] for row in padded["rows"])
    assert {"fidelity", "error_band", "energy_scope", "versions"} <= one.keys()


def test_estimate_prints_csv_and_a_table(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", SMALLEST, "--device", "host-cpu", "--recipe", recipe_file, "--csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["tokens"] for line in lines] == ["60 30", "80 50", "100 40", "mean", "p95", "worst"]
    shares = [(float(line["probability"]), float(line["latency_s"])) for line in lines[:3]]
    assert float(lines[3]["latency_s"]) == pytest.approx(sum(share * latency for share, latency in shares))
    main(["estimate", SMALLEST, "--device", "host-cpu", "--recipe", recipe_file])
    table = capsys.readouterr().out
    assert "p95" in table
    assert "assumed" in table


@pytest.mark.parametrize("command", [["report", SMALLEST, "--device", "host-cpu", "-o", "x.html"], ["trace", SMALLEST]])
def test_other_commands_say_what_to_do(
    command: list, recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--recipe", recipe_file])
    assert stopped.value.code == 2
    assert "hwmodel estimate" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["spread.toml"]
