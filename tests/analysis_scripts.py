"""The scripts of ``analysis/`` as modules: they are no package."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ANALYSIS = Path(__file__).parents[1] / "analysis"


def script(name: str) -> ModuleType:
    """``analysis/{name}.py``, run afresh."""
    spec = spec_from_file_location(f"script_{name}", ANALYSIS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
