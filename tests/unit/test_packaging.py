"""The wheel: what is in it, and that it works on its own, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import hwmodel

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout; without isolation where hatchling is here, so that no network is needed."""
    folder = tmp_path_factory.mktemp("dist")
    isolation = [] if find_spec("hatchling") is None else ["--no-isolation"]
    run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", folder, CHECKOUT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment of its own that has the wheel, and this environment's packages behind it.

    A path file inside a folder that is itself only named by a path file is not followed, so an editable hwmodel of this
    environment stays out.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "behind.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    binaries = Path(paths["scripts"])
    options = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", binaries / "python", *options, wheel, cwd=folder)
    return binaries


def test_the_wheel_holds_one_package_and_its_metadata(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"hwmodel", f"hwmodel-{hwmodel.__version__}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc") or "/tests/" in name]


def test_the_wheel_holds_all_code_and_content(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = CHECKOUT / "hwmodel"
    code = {f"hwmodel/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    content = {
        f"hwmodel/content/{folder}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder in ("simulators", "models")
        for path in (CHECKOUT / folder).rglob("*.toml")
    }
    assert {"hwmodel/py.typed", "hwmodel/reporting/report.html.j2"} <= names
    assert "hwmodel/content/simulators/vita/card.toml" in content
    assert (code | content) - names == set()


def test_the_metadata_says_what_pyproject_says(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (head,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
    metadata = archive.read(head).decode()
    assert f"Version: {hwmodel.__version__}\n" in metadata
    assert hwmodel.__version__ == PROJECT["version"]
    (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    told = archive.read(entries).decode()
    assert all(f"{name} = {value}" in told for name, value in PROJECT["entry-points"]["hwmodel.backends"].items())


def test_the_installed_wheel_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    found = Path(run(installed / "python", "-c", "import hwmodel; print(hwmodel.__file__)", cwd=tmp_path).strip())
    assert found.is_relative_to(installed.parent)
    assert CHECKOUT not in found.parents


def test_the_installed_command_finds_its_cards_from_another_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()  # a user's own folder must not get in the way
    (tmp_path / "simulators").mkdir()
    found = json.loads(run(installed / "hwmodel", "devices", "--json", cwd=tmp_path))
    assert {card["name"] for card in found} == {path.parent.name for path in (CHECKOUT / "simulators").glob("*/card.toml")}
    assert not list((tmp_path / "models").iterdir())


def test_the_installed_package_prices_by_a_shipped_recipe(installed: Path, tmp_path: Path) -> None:
    code = (
        "import hwmodel as hw; r = hw.load_recipe('deit_tiny_lsp_b16x16');"
        "t = hw.Trace.from_operators([hw.matmul(m=197, k=192, n=576)]);"
        "print(r.model, hw.estimate(t, device='vita', mode='paper', overrides={'pe': '16x16'}).cycles)"
    )
    assert run(installed / "python", "-c", code, cwd=tmp_path).split() == ["deit_tiny_patch16_224", str(197.0 * 36 * 12 + 770)]
