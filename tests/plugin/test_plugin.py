"""A backend from another package: installed by pip, found by its entry point, priced through its own card."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hwmodel as hw
from hwmodel.backends import registry
from hwmodel.errors import CardError, HwmodelError, UnknownNameError, UnsupportedOperatorError

SOURCE = Path(__file__).parent / "tinymac"
CARD = SOURCE / "card.toml"
LAYER = hw.matmul(m=197, k=192, n=576, name="qkv")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)
    return folder / "site"


def forget() -> None:
    registry._found.cache_clear()
    registry.get_backend.cache_clear()
    sys.modules.pop("tinymac", None)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Folders put on the module path here are left again, and forgotten."""
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.fixture
def installed(site: Path, path: pytest.MonkeyPatch) -> None:
    path.syspath_prepend(str(site))


def a_package(folder: Path, name: str, entry: str) -> str:
    """Metadata of an installed package with one backend."""
    metadata = folder / name / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[hwmodel.backends]\n{entry}\n")
    return str(folder / name)


@pytest.mark.usefixtures("path")
def test_without_the_package_its_backend_is_unknown() -> None:
    assert "tinymac" not in registry.backend_names()
    with pytest.raises(CardError, match="unknown backend 'tinymac'"):
        hw.load_card(CARD)


@pytest.mark.usefixtures("installed")
def test_an_installed_backend_is_found_beside_ours() -> None:
    names = registry.backend_names()
    assert "tinymac" in names and "vita" in names
    assert registry.get_backend("tinymac").modes == ("peak",)


@pytest.mark.usefixtures("installed")
def test_it_prices_through_its_card() -> None:
    estimate = hw.estimate(hw.Trace.from_operators([LAYER]), device=CARD)
    assert estimate.cycles == 197 * 192 * 576 / 1024
    assert estimate.energy_j == pytest.approx(197 * 192 * 576 * 0.1e-12)
    assert (estimate.device, estimate.mode, estimate.dtype) == ("tinymac-1", "peak", "int8")
    swept = hw.estimate(hw.Trace.from_operators([LAYER]), device=CARD, overrides={"macs_per_cycle": [1024, 2048]})
    assert (swept.latency_s[0], swept.latency_s[1]) == (estimate.latency_s, estimate.latency_s / 2)


@pytest.mark.usefixtures("installed")
def test_it_refuses_what_it_does_not_know_with_names_and_counts() -> None:
    rows = [LAYER, hw.softmax(rows=4, cols=4), hw.softmax(rows=4, cols=4), hw.gelu(elements=4)]
    with pytest.raises(UnsupportedOperatorError) as caught:
        hw.estimate(hw.Trace.from_operators(rows), device=CARD)
    assert str(caught.value) == "backend 'tinymac' has no model for softmax x2, gelu x1; it knows matmul"


@pytest.mark.usefixtures("installed")
def test_its_card_is_checked_by_its_own_fields(tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    card.write_text(CARD.read_text(encoding="utf-8").replace("macs_per_cycle", "macs_per_clock"), encoding="utf-8")
    with pytest.raises(CardError, match="macs_per_clock: unknown field; did you mean 'macs_per_cycle'") as caught:
        hw.load_card(card)
    assert "parameters.macs_per_cycle: missing" in str(caught.value)
    with pytest.raises(UnknownNameError, match="unknown field of tinymac-1 'clock'"):
        hw.estimate(hw.Trace.from_operators([LAYER]), device=CARD, overrides={"clock": 1})


def test_the_command_line_finds_it(site: Path, tmp_path: Path) -> None:
    hw.save_trace(hw.Trace.from_operators([LAYER]), tmp_path / "trace.json")
    command = [sys.executable, "-c", "from hwmodel.cli import main; main()", "estimate", "trace.json", "--json", "--device", CARD]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["cycles"] == 197 * 192 * 576 / 1024


@pytest.mark.parametrize("name", ["vita", "tinymac"])
def test_two_backends_with_one_name_are_an_error(site: Path, path: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    path.syspath_prepend(str(site))
    path.syspath_prepend(a_package(tmp_path, "other", f"{name} = other:Other"))
    with pytest.raises(HwmodelError, match=rf"two backends are named '{name}': .*other:Other.*; uninstall one"):
        registry.backend_names()


def test_the_same_entry_twice_is_no_conflict(path: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An editable install and a wheel of one package may both be on the path."""
    path.syspath_prepend(a_package(tmp_path, "copy", "vita = hwmodel.backends.vita:Vita"))
    assert registry.get_backend("vita").name == "vita"


@pytest.mark.parametrize("entry", ["broken = no_such_module:Backend", "broken = json:NoSuchBackend"])
def test_a_package_that_cannot_be_imported_is_told(path: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    """And gets in nobody's way before it is used."""
    path.syspath_prepend(a_package(tmp_path, "broken", entry))
    assert hw.estimate(hw.Trace.from_operators([LAYER]), device="vita", overrides={"pe": "32x32"}).latency_s > 0
    with pytest.raises(HwmodelError, match=r"backend 'broken': .* cannot be loaded \(.*\); reinstall its package"):
        registry.get_backend("broken")
