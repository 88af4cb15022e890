"""Which of timm's models extract: every name, family by family (a family is a module of timm), and why others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from hwmodel.errors import HwmodelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """One model name: rows and MACs of its trace at batch 1, or the reason why there is none."""

    name: str
    operators: int = 0
    macs: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All models of one module of timm."""

    name: str
    models: tuple[Extracted, ...]

    @property
    def extracted(self) -> tuple[Extracted, ...]:
        """Those that have a trace."""
        return tuple(model for model in self.models if not model.reason)

    @property
    def failed(self) -> tuple[Extracted, ...]:
        """Those that have none."""
        return tuple(model for model in self.models if model.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """All families asked for, by name."""

    families: tuple[Family, ...]
    versions: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """The whole table as plain values."""
        return {
            "schema_version": 1, "versions": dict(self.versions), "names": sum(len(one.models) for one in self.families),
            "extracted": sum(len(one.extracted) for one in self.families), "families": [_plain(one) for one in self.families],
        }  # fmt: skip


def _plain(family: Family) -> dict[str, Any]:
    return {
        "family": family.name, "names": len(family.models), "extracted": len(family.extracted),
        "failed": [{"model": one.name, "reason": one.reason} for one in family.failed],
        "models": [{"model": one.name, "operators": one.operators, "macs": one.macs} for one in family.extracted],
    }  # fmt: skip


def coverage(pattern: str = "*", *, tell: Callable[[str], None] = lambda text: None) -> Coverage:
    """Extract every timm model whose name, or whose family's name, matches ``pattern``; no weight is made.

    Parameters
    ----------
    pattern : shell pattern over names, as "vit_*" or "swin*"
    tell : called with a line of text before each model

    Raises
    ------
    HwmodelError
        A pattern that nothing matches.
    """
    from hwmodel.extraction.zoo import families

    chosen = families(pattern)
    if not chosen:
        raise HwmodelError(f"no timm model or family matches {pattern!r}; families are timm's modules, as 'swin_transformer'")
    total, done = sum(map(len, chosen.values())), 0
    found: defaultdict[str, list[Extracted]] = defaultdict(list)
    for family, names in chosen.items():
        for name in names:
            done += 1
            tell(f"{done} of {total}: {name}")
            found[family].append(_extracted(name))
    listed = tuple(Family(name=name, models=tuple(models)) for name, models in found.items())
    return Coverage(families=listed, versions={package: version(package) for package in ("torch", "timm", "hwmodel")})


def _extracted(name: str) -> Extracted:
    from hwmodel.extraction.models import trace

    try:
        traced = trace(name)
    except Exception as error:  # one model that fails, in whatever way, is a line of the table
        kind = "" if isinstance(error, HwmodelError) else f"{type(error).__name__}: "
        return Extracted(name=name, reason=kind + " ".join(str(error).split())[:300])
    return Extracted(name=name, operators=len(traced), macs=traced.macs)
