"""What is imported when, and which part of the package knows which."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hwmodel

PACKAGE = Path(hwmodel.__file__).parent
HEAVY = ["torch", "torchvision", "timm", "pandas", "scalesim", "matplotlib", "plotly", "pyarrow", "networkx"]
COMMAND = "from hwmodel.cli import main; main({})"

PARTS = ["ir", "backends", "extraction", "pruning", "allocation", "exploration", "reporting", "validation"]
BASE = {"errors", "files", "content"}
MAY_KNOW = {
    "errors": set(),
    "files": {"errors"},
    "content": set(),
    "ir": {"errors", "files"},
    "backends": {"ir", *BASE},
    "extraction": {"ir", *BASE},
    "pruning": {"ir", "extraction", *BASE},
    "reporting": {"ir", "backends", *BASE},
    "allocation": {"ir", "backends", "extraction", "pruning", *BASE},
    "exploration": {"ir", "backends", "extraction", "pruning", "reporting", *BASE},
    "validation": {"ir", "backends", "extraction", *BASE},
    "ui": {"ir", "backends", "extraction", "exploration", "reporting", *BASE},  # prunes, prices, finds fronts and reports at once
}
"""Arrows go one way (DESIGN section 1). ``cli`` and ``hwmodel`` itself may know everything."""

MAY_IMPORT = {
    "torch": ("extraction/", "pruning/", "validation/"),  # measures with torch, and scores torchvision models
    "timm": ("extraction/", "pruning/"),
    "scalesim": ("backends/scale_sim.py",),
}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "content" not in path.relative_to(PACKAGE).parts)


def loaded_after(code: str) -> list[str]:
    """Heavy modules that a fresh interpreter has loaded after ``code``."""
    tell = f"import json, sys; json.dump([name for name in {HEAVY} if name in sys.modules], sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, timeout=120, check=True)
    found: list[str] = json.loads(done.stderr)
    return found


@pytest.mark.parametrize("code", ["import hwmodel", COMMAND.format("['devices', '--json']"), COMMAND.format("['devices']")])
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    assert loaded_after(code) == []


def test_pricing_a_trace_by_hand_needs_neither_torch_nor_pandas() -> None:
    code = "import hwmodel as hw; t = hw.Trace.from_operators([hw.matmul(m=4, k=32, n=32)]); "
    code += "hw.estimate(t, device='vita', overrides={'pe': '32x32'}).document()"
    assert loaded_after(code) == []


def test_every_public_name_resolves() -> None:
    assert set(hwmodel.__all__) == set(hwmodel._HOME)
    namespace: dict[str, object] = {}
    exec("from hwmodel import *", namespace)
    assert sorted(hwmodel.__all__) == sorted(name for name in namespace if not name.startswith("__"))
    assert set(hwmodel.__all__) <= set(dir(hwmodel))
    with pytest.raises(AttributeError, match="no attribute 'estimat'"):
        _ = hwmodel.estimat


def test_type_checkers_see_every_public_name() -> None:
    """The names under TYPE_CHECKING are the ones loaded lazily, from the same homes."""
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    homes = {
        alias.name: node.module
        for branch in body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hwmodel.")
        for alias in node.names
    }
    assert homes == hwmodel._HOME


def test_no_part_of_the_package_has_the_name_of_a_public_function() -> None:
    """``import hwmodel.trace`` would replace the function ``hwmodel.trace``."""
    assert {path.stem for path in PACKAGE.iterdir()} & set(hwmodel.__all__) == set()


def imported(path: Path) -> list[str]:
    """Full names of the modules that a file imports anywhere, functions and TYPE_CHECKING included."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in {"cli", "__init__", "__main__"}:
        return
    known = {name.split(".")[1] for name in imported(path) if name.startswith("hwmodel.")}
    assert known - MAY_KNOW[own] - {own} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_heavy_library_has_one_home(path: Path) -> None:
    inside = path.relative_to(PACKAGE).as_posix()
    found = {name.split(".")[0] for name in imported(path)} & MAY_IMPORT.keys()
    assert [library for library in found if not inside.startswith(MAY_IMPORT[library])] == []


def test_heavy_libraries_are_imported_when_first_used() -> None:
    """Never at the top of a module, but where torch modules are defined, which is itself imported when first used."""
    for path in SOURCES:
        if path.relative_to(PACKAGE).as_posix() == "pruning/token_modules.py":
            continue
        top = ast.parse(path.read_text(encoding="utf-8")).body
        names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        eager = {name.split(".")[0] for name in names} & {"torch", "torchvision", "timm", "scalesim"}
        assert not eager, f"{path.name} imports {eager} at its top"
