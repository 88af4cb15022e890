"""Figures become SVG that is the same every time, follows the page's colours, and leaves matplotlib's settings alone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from reporting_fakes import PE, changed, estimate, pruned, variants, vit

import hwmodel as hw
from hwmodel.ir.masks import BlockMask
from hwmodel.reporting import figure_parts, figures, interactive, layer_figures, mask_figure, roofline_figure, style
from hwmodel.reporting.breakdown import layers
from hwmodel.reporting.units import prefix_of
from hwmodel.reporting.variants import Variant, machines_of

MACHINES = machines_of(variants())


@pytest.mark.parametrize(
    "draw",
    [
        figures.latency_and_energy,
        figures.stacked_by_role,
        figures.where_the_gain_went,
        roofline_figure.rooflines,
        layer_figures.encoder_blocks,
        figures.effective_work,
    ],
)
def test_a_figure_is_well_formed_svg_without_outside_content(draw: object) -> None:
    text = style.to_svg(draw(MACHINES), "name", "A <title>")  # type: ignore[operator]
    root = ET.fromstring(text)
    assert root.attrib["aria-label"] == "A <title>"
    assert "http" not in text
    assert text == style.to_svg(draw(MACHINES), "name", "A <title>")  # type: ignore[operator]
    assert all(ident.startswith("name-") for ident in re.findall(r' id="([^"]*)"', text))


def test_coordinates_are_rounded_and_ids_numbered() -> None:
    """The layout solver's last bits differ from run to run; neither may reach the page, nor hashes made from them."""
    text = style.to_svg(roofline_figure.rooflines(MACHINES), "name", "title")
    assert not re.findall(r"<[^>]*\d\.\d{4,}[^>]*>", text)
    idents = re.findall(r' id="([^"]*)"', text)
    assert sorted(idents) == sorted(f"name-{number}" for number in range(1, len(idents) + 1))


def test_colours_are_variables_that_the_page_sets() -> None:
    text = style.to_svg(figures.latency_and_energy(MACHINES), "name", "title")
    assert "var(--device-0)" in text and "var(--ink)" in text
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", text)


def test_tokens_are_distinct_in_light_so_that_each_can_be_told() -> None:
    light = [pair[0] for name, pair in style.TOKENS.items()]
    assert len(set(light)) == len(light)


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_a_filled_segment_is_readable(dark: bool) -> None:
    """Contrast of at least 4.5 to 1, as WCAG asks for text."""
    for name, pair in style.TOKENS.items():
        if name.startswith("on-"):
            fill = style.TOKENS[name.removeprefix("on-")][dark]
            lighter, darker = sorted((style.luminance(pair[dark]), style.luminance(fill)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, name


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(mpl.rcParams)
    style.to_svg(figures.latency_and_energy(MACHINES), "name", "title")
    assert dict(mpl.rcParams) == before


def test_a_label_is_neither_mathematics_nor_markup() -> None:
    trace = vit(1)
    label = "$x_1$ <b>&"
    machines = machines_of([Variant(label, trace, (estimate(trace, PE),))])
    text = style.to_svg(figures.latency_and_energy(machines), "name", "title")
    assert "$x_1$ &lt;b&gt;&amp;" in text


def test_a_mode_without_energy_says_so_instead_of_drawing_a_zero() -> None:
    trace = vit(1)
    machines = machines_of([Variant("dense", trace, (estimate(trace, PE, power_w=float("nan")),))])
    assert "not modelled in this mode" in style.to_svg(figures.latency_and_energy(machines), "name", "title")


def test_a_mode_without_off_chip_traffic_has_no_roofline() -> None:
    trace = vit(1)
    one = changed(estimate(trace, PE), dram_bytes=0.0)
    text = style.to_svg(roofline_figure.rooflines(machines_of([Variant("dense", trace, (one,))])), "name", "title")
    assert "this mode counts no off-chip traffic" in text


def test_a_trace_without_encoder_blocks_has_no_such_figure() -> None:
    trace = vit(0)
    assert layer_figures.encoder_blocks(machines_of([Variant("dense", trace, (estimate(trace, PE),))])) is None


def test_spread_keeps_order_and_distance_below_the_top() -> None:
    moved = figure_parts.spread([1.0, 0.95, 0.2], 0.2, 1.0)
    assert moved == pytest.approx([1.0, 0.8, 0.2])
    assert figure_parts.spread([0.1, 0.5], 0.2, 1.0) == [0.1, 0.5]
    assert figure_parts.spread([], 0.2, 1.0) == []


def test_stored_masks_are_pictures_and_expected_ones_flat_shades() -> None:
    dense = vit()
    stored = mask_figure.pictured(pruned(dense, 0.5, (64, 64), stored=True))
    expected = mask_figure.pictured(pruned(dense, 0.5, (64, 64)))
    assert [operator.name.rpartition(".")[2] for operator in stored] == ["qkv", "proj", "fc1", "fc2"] * 2
    assert style.to_svg(mask_figure.mask_pictures(stored), "m", "t").count("<image") == 8
    assert "<image" not in style.to_svg(mask_figure.mask_pictures(expected), "m", "t")
    assert "Only the density is known" in mask_figure.caption(expected)
    assert "Only the density is known" not in mask_figure.caption(stored)
    assert mask_figure.pictured(dense) == []


def test_labels_of_mask_pictures_stay_apart() -> None:
    """Square weights are drawn narrower but taller than long ones; their labels need room below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = mask_figure.mask_pictures(mask_figure.pictured(pruned(vit(2, 768), 0.5, (64, 64))))
    FigureCanvasAgg(figure).draw()
    panels = [axes for strip in figure.subfigs for axes in strip.axes]
    labels = [text for axes in panels for text in axes.findobj(Text) if text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    assert len(boxes) == 2 * len(panels) == 16
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(Bbox.intersection(first, second) for first, second in combinations(boxes, 2))


def test_a_picture_tells_kept_weights_where_blocks_are_ragged() -> None:
    """A 192 x 192 weight in 128 x 128 blocks: the left two hold two thirds of the weights, though they are half of the blocks."""
    mask = BlockMask((192, 192), (128, 128), np.array([[True, False], [True, False]]))
    proj = hw.matmul(name="blocks.0.attn.proj", m=197, k=192, n=192, mask=mask)
    assert "66.7\N{NO-BREAK SPACE}% kept" in style.to_svg(mask_figure.mask_pictures([proj]), "m", "t")


def test_a_huge_mask_is_pooled_to_a_small_picture() -> None:
    """Elementwise pruning of a 3072 x 768 weight has 2.4 million blocks; the picture shows their density."""
    dense = vit(1, 768)
    rows = [
        operator.replace(mask=BlockMask.full((operator.n, operator.k), (1, 1))) if operator.role == "fc1" else operator
        for operator in dense.operators
    ]
    text = style.to_svg(mask_figure.mask_pictures(mask_figure.pictured(dense.replace(operators=tuple(rows)))), "m", "t")
    assert len(text) < 20_000


def test_density_and_work_by_layer_have_a_bar_per_layer_and_a_mark_per_machine() -> None:
    sparse = variants()[1]
    count = len(layers(sparse.trace))
    density = layer_figures.kept_density(sparse.trace).axes[0]
    assert len(density.patches) == count == 10  # embedding, two blocks of four, head
    cases = [(machine, machine.cases[1]) for machine in MACHINES]
    work = layer_figures.work_by_layer(cases).axes[0]
    marks = {line.get_label(): line.get_ydata() for line in work.lines if len(line.get_ydata()) == count}
    assert [label.removeprefix("executed on ") for label in marks] == [machine.label for machine in MACHINES]
    dense = np.array([operator.macs for operator in layers(MACHINES[0].baseline.trace)]) / 1e6
    assert np.allclose(marks["executed on edge-like"], dense)  # which skips nothing
    assert np.allclose(marks["executed on pe-like"][1:5], 0.26 * dense[1:5], rtol=0.05)  # which skips 32x32 blocks


@pytest.mark.parametrize("column", ["latency_s", "energy_j"])
def test_stacks_end_at_the_totals(column: str) -> None:
    """The drawn segments of each bar add up to what the estimate says."""
    case = MACHINES[2].cases[1]
    quantity = figures.LATENCY if column == "latency_s" else figures.ENERGY
    axes = Figure().subplots()
    figures.role_panel(axes, [case], quantity)
    drawn = sum(patch.get_width() for patch in axes.patches)
    assert drawn * prefix_of(quantity.of(case))[0] == pytest.approx(quantity.of(case))


@pytest.mark.parametrize("suffix", [".pdf", ".png", ".svg"])
def test_files_for_a_paper_fit_a_page_and_are_the_same_every_time(suffix: str) -> None:
    content = [style.paper_file(figures.where_the_gain_went(MACHINES), suffix) for _ in range(2)]
    assert content[0] == content[1]
    assert content[0].startswith({".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])
    if suffix == ".pdf":
        assert b"/Type3" not in content[0] and b"CreationDate" not in content[0]


def test_interactive_figures_are_what_plotly_accepts() -> None:
    """Every document passes plotly's own validation, and its colours are tokens that the page sets."""
    go = pytest.importorskip("plotly.graph_objects")
    plots = [*interactive.roles(MACHINES), *interactive.encoder_blocks(MACHINES), *interactive.rooflines(MACHINES)]
    plots += [*interactive.work(1, MACHINES), *interactive.density(variants()[1])]
    page = style.css_variables(dark=False)
    for plot in plots:
        go.Figure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(plot, allow_nan=False))))
    tokens = set(re.findall(r"var\((--[a-z0-9-]+)\)", json.dumps(plots)))
    assert tokens and all(f"{token}:" in page for token in tokens)


def test_the_interactive_roofline_has_every_kernel_that_multiplies() -> None:
    machine = MACHINES[0]
    data = interactive.rooflines([machine])[0]["data"]
    clouds = [trace for trace in data if trace["mode"] == "markers"]
    products = [operator.name for operator in machine.baseline.trace.operators if operator.macs]
    assert [len(cloud["x"]) for cloud in clouds] == [len(products)] * 3
    assert all(any(f"<b>{name}</b>" in text for text in clouds[0]["text"]) for name in products)
    assert clouds[-1]["marker"]["symbol"].endswith("-open") and not clouds[0]["marker"]["symbol"].endswith("-open")
