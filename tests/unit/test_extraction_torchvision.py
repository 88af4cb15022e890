"""The repair acts on the broken install alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from hwmodel.extraction.torchvision_repair import import_torchvision
try:
    import_torchvision()
except Exception as error:
    print(type(error).__name__, hasattr(torch.ops.torchvision, "nms"))
else:
    print(hasattr(torch.ops.torchvision, "nms"), sys.modules.get("torchvision") is not None)
"""


def _run(folder: Path, init: str) -> str:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    done = subprocess.run([sys.executable, "-c", _CODE, str(folder)], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_a_healthy_install_is_not_touched(tmp_path: Path) -> None:
    assert _run(tmp_path, "version = 1") == "False True"


def test_missing_operators_are_declared_and_the_import_retried(tmp_path: Path) -> None:
    broken = (
        "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(*_): ...\n"
        "@torch.library.register_fake('torchvision::qnms')\ndef qnms(*_): ...\n"
    )
    assert _run(tmp_path, broken) == "True True"


def test_another_error_is_passed_on_and_nothing_declared(tmp_path: Path) -> None:
    assert _run(tmp_path, "raise RuntimeError('operator torchvision::roi_align does not exist')") == "RuntimeError False"
