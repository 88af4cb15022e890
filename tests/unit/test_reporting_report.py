"""The page: self-contained, escaped, the same bytes every time, whole or not there at all."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting_fakes import GPU, PE, card, estimate, on_four_machines, pruned, score, sourced, variants, vit

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.content import content_folder
from hwmodel.errors import HwmodelError
from hwmodel.reporting.report import FigureFolder, Variant, report_csv, report_html, write_report
from hwmodel.reporting.units import ratio, si
from hwmodel.reporting.variants import machines_of

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def page() -> str:
    return report_html(variants(), static=True)


class _Elements(HTMLParser):
    """Tags with attributes, and tags left open."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _cells(page: str) -> str:
    """The page's text outside figures and styles."""
    bare = re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "|", bare))


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    elements = _Elements(page)
    assert elements.open == []
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            target = attributes.get(name) or ""
            assert target == "" or target.startswith(("#", "data:image/png;base64,")), (tag, name, target)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in elements.found}
    assert "@import" not in page and "url(http" not in page
    assert "default-src &#39;none&#39;" in page


@pytest.mark.parametrize("static", [True, False])
def test_no_script_runs_but_those_whose_hashes_the_page_names(static: bool) -> None:
    dense = vit(1)
    page = report_html([Variant("dense", dense, (estimate(dense, PE),))], static=static)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1))  # type: ignore[union-attr]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert policy.endswith(f"script-src {' '.join(hashes)}")
    assert len(scripts) == (1 if static else 3)
    assert page.count("plotly.js v") == (0 if static else 1)


def _sheets(page: str) -> dict[str, str]:
    """What the page hands out, unpacked as its script does."""
    packed = re.search(r'id="sheets">([^<]*)<', page)
    assert packed is not None
    found: dict[str, str] = json.loads(gzip.decompress(base64.b64decode(packed.group(1))))
    return found


def test_every_table_is_handed_out_with_the_numbers_it_shows(page: str) -> None:
    sheets = _sheets(page)
    tables = re.findall(r'data-sheet="([^"]+)"', page)
    assert sorted(sheets) == sorted(tables)
    assert sheets["operators"] == report_csv(variants())
    rows = list(csv.DictReader(sheets["results"].splitlines()))
    one = variants()[1].estimates[2]
    row = next(row for row in rows if row["device"] == "gpu-like" and row["variant"] == "32x32 at 26 %")
    assert float(row["latency_s"]) == one.latency_s and float(row["energy_j"]) == one.energy_j
    assert (row["latency_fidelity"], row["latency_error_median"], row["energy_error_median"]) == ("calibrated", "0.051", "")
    work = list(csv.DictReader(sheets["work-1-layers"].splitlines()))
    assert sum(float(row["nominal_macs"]) for row in work) < sum(float(row["dense_macs"]) for row in work)
    fc1 = next(row for row in work if row["layer"] == "blocks.0.mlp.fc1")
    assert float(fc1["dense_macs"]) == 197 * 192 * 768 == float(fc1["executed_macs on edge-like"])


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = [attributes["id"] for _, attributes in _Elements(page).found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)


def test_every_total_in_the_table_is_the_estimates(page: str) -> None:
    text = _cells(page)
    for machine in machines_of(variants()):
        for case, reference in zip(machine.cases, machine.references, strict=True):
            one = case.estimate
            for value, unit in (
                (one.latency_s, "s"),
                (one.energy_j, "J"),
                (one.average_power_w, "W"),
                (one.executed_macs, "MAC"),
                (one.dram_bytes, "B"),
            ):
                assert f"|{si(value, unit)}|" in text
            if case is not machine.baseline:
                assert f"|{ratio(reference.latency_s / one.latency_s)}|" in text
            assert f"|{one.mode}, {one.dtype}|" in text


def test_fidelity_error_and_provenance_are_on_the_page(page: str) -> None:
    text = _cells(page).replace("\N{NO-BREAK SPACE}", " ")
    assert "|calibrated, ±5.1 %, p90 12.0 %|" in text and "|assumed, not measured|" in text
    assert "|clock_hz||" in text.replace("\n", "") and "made up for a test, https://example.org/sheet" in text
    assert "held-out rows" in text  # the scoreboard's line
    assert "Measured error: not measured." in text  # and a machine without one
    assert "power mode 30w" in text
    assert "hwmodel 0.1.0" in text and "torch 2.13.0" in text


def test_all_figures_are_there_in_both_themes(page: str) -> None:
    names = re.findall(r'<section id="([^"]+)"', page)
    figures = ["roles", "blocks", "roofline", "executed", "work-1", "density-1", "masks-1", "work-2", "density-2", "masks-2"]
    assert names == ["results", "limits", "why", *figures, "machines"]
    assert page.count("<svg ") == len(figures) + 2  # and the bars, and where the gain went
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= set(re.findall(r"(--[a-z0-9-]+):", page))


def test_names_are_text_wherever_they_come_from() -> None:
    dense = vit(1, model=EVIL).replace(versions={EVIL: EVIL})
    machine = card("odd", parameters={"clock_hz": sourced(EVIL)}, scores=[score("latency", "full", ["fp16"], against=EVIL)])
    both = [
        Variant(EVIL, dense, (estimate(dense, machine),)),
        Variant(f"{EVIL} again", pruned(dense, 0.5), (estimate(pruned(dense, 0.5), machine),)),
    ]
    page = report_html(both, static=True)
    assert "<script>alert" not in page
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in page
    assert [tag for tag, _ in _Elements(page).found].count("script") == 2  # the packed tables, and ours that sorts them
    assert EVIL in _sheets(page)["operators"]


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path, page: str) -> None:
    """Another hash seed, another time, another process."""
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from reporting_fakes import variants\n"
        "from hwmodel.reporting.report import report_html\n"
        "print(hashlib.sha256(report_html(variants(), static=True).encode()).hexdigest())"
    )
    folder = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONHASHSEED": "4711", "MPLCONFIGDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program, folder], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == hashlib.sha256(page.encode()).hexdigest()


def test_four_machines_and_a_pruned_deit_base_stay_small() -> None:
    """Four machines, a dense and three pruned versions: 1.5 MB as SVG only, 8 MB with interactive figures."""
    three = variants(blocks=12, width=768)
    again = pruned(three[0].trace, 0.4, (16, 16))
    four = [*three, Variant("16x16 at 40 %", again, on_four_machines(again))]
    assert len(report_html(four, static=True).encode()) < 1_500_000
    assert len(report_html(four).encode()) < 8_000_000


def test_only_a_dense_model_makes_a_page_without_comparisons() -> None:
    dense = vit(1)
    page = report_html([Variant("dense", dense, (estimate(dense, PE),))], static=True)
    assert "<svg " in page and "faster" not in _cells(page)
    assert 'id="why"' not in page


def test_a_trace_by_hand_makes_a_page() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=8, k=16, n=32), hw.softmax(rows=8, cols=16)])
    page = report_html([Variant("by hand", trace, (estimate(trace, GPU, mode="compiled"),))], static=True)
    assert 'id="blocks"' not in page and 'id="roofline"' in page


def test_writing_goes_through_a_whole_file_and_tells_its_steps(tmp_path: Path) -> None:
    dense, steps = vit(1), []
    path = tmp_path / "report.html"
    write_report([Variant("dense", dense, (estimate(dense, PE),))], path, steps.append, static=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert steps[0] == "drawing latency and energy"


def test_a_failure_leaves_the_old_file_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def stop(step: str) -> None:
        if "roofline" in step:
            raise RuntimeError(step)

    dense = vit(1)
    with pytest.raises(RuntimeError):
        write_report([Variant("dense", dense, (estimate(dense, PE),))], path, stop)
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    steps: list[str] = []
    with pytest.raises(HwmodelError, match="does not exist"):
        write_report(variants(), tmp_path / "no" / "report.html", steps.append)
    assert steps == []


def test_nothing_to_report_and_things_that_do_not_compare_are_refused() -> None:
    dense, other = vit(1), vit(1, batch=2)
    sparse = pruned(dense, 0.5)
    good = Variant("dense", dense, (estimate(dense, PE),))
    with pytest.raises(HwmodelError, match="at least one variant"):
        machines_of([])
    with pytest.raises(HwmodelError, match="at least one device"):
        machines_of([Variant("dense", dense, ())])
    with pytest.raises(HwmodelError, match="sparse: priced on gpu-like, but dense on pe-like"):
        machines_of([good, Variant("sparse", sparse, (estimate(sparse, GPU, mode="compiled"),))])
    with pytest.raises(HwmodelError, match="two: batch 2, but dense has batch 1"):
        machines_of([good, Variant("two", other, (estimate(other, PE),))])
    with pytest.raises(HwmodelError, match="prices another trace"):
        machines_of([good, Variant("sparse", sparse, (estimate(dense, PE),))])


def test_one_device_in_two_modes_is_told_apart() -> None:
    dense = vit(1)
    twice = (estimate(dense, PE, mode="full"), estimate(dense, PE, mode="compiled"), estimate(dense, GPU, mode="compiled"))
    assert [machine.label for machine in machines_of([Variant("dense", dense, twice)])] == [
        "pe-like full",
        "pe-like compiled",
        "gpu-like",
    ]
    same = (estimate(dense, PE), estimate(dense, PE))
    assert [machine.label for machine in machines_of([Variant("dense", dense, same)])] == ["pe-like full #1", "pe-like full #2"]


def test_vita_speed_ups_are_against_dense_on_the_same_pe() -> None:
    """A recipe may ask for a larger PE; what that alone gains is none of pruning's."""
    dense, vita = vit(1, 768), load_card(content_folder("simulators") / "vita" / "card.toml")
    sparse = pruned(dense, 0.5, (64, 64)).replace(design={"vita": {"pe": "64x64"}})
    cases = [
        Variant(label, trace, (hw.estimate(trace, device=vita, mode="paper"),)) for label, trace in (("d", dense), ("s", sparse))
    ]
    (machine,) = machines_of(cases)
    ((case, reference),) = machine.pairs
    same_pe = hw.estimate(dense, device=vita, mode="paper", overrides={"pe": "64x64"})
    assert reference.latency_s == same_pe.latency_s < machine.baseline.latency_s
    text = _cells(report_html(cases))
    assert f"|{ratio(same_pe.latency_s / case.latency_s)}|" in text
    assert "s runs on pe 64x64; its factors are against d there" in text


def test_figures_go_into_a_folder_that_exists(tmp_path: Path) -> None:
    dense = vit(1)
    priced = [Variant("dense", dense, (estimate(dense, PE),))]
    with pytest.raises(HwmodelError, match="not a folder"):
        FigureFolder(tmp_path / "no", "pdf")
    with pytest.raises(HwmodelError, match="unknown format 'jpg'"):
        FigureFolder(tmp_path, "jpg")
    write_report(priced, tmp_path / "report.html", static=True, figures=FigureFolder(tmp_path, "svg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bars.svg", "blocks.svg", "executed.svg", "report.html", "roles.svg", "roofline.svg",
    ]  # fmt: skip
