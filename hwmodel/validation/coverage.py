"""Which of timm's models extract: every name, family by family (a family is a module of timm), and why others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
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


def coverage(pattern: str = "*", *, workers: int = 1, tell: Callable[[str], None] = lambda text: None) -> Coverage:
    """Extract every timm model whose name, or whose family's name, matches ``pattern``; no weight is made.

    Parameters
    ----------
    pattern : shell pattern over names, as "vit_*" or "swin*"
    workers : processes at once; the table is the same for any number of them
    tell : called with a line of text for each model, in order

    Raises
    ------
    HwmodelError
        A pattern that nothing matches, or fewer than one worker.
    """
    if workers < 1:
        raise HwmodelError(f"workers must be at least 1, got {workers}")
    from hwmodel.extraction.zoo import families

    chosen = families(pattern)
    if not chosen:
        raise HwmodelError(f"no timm model or family matches {pattern!r}; families are timm's modules, as 'swin_transformer'")
    listing = [(family, name) for family, names in chosen.items() for name in names]
    found: defaultdict[str, list[Extracted]] = defaultdict(list)
    with _mapping(min(workers, len(listing))) as each:
        results = each(_extracted, [name for _, name in listing])
        for done, (family, name) in enumerate(listing, start=1):
            tell(f"{done} of {len(listing)}: {name}")
            found[family].append(next(results))
    listed = tuple(Family(name=name, models=tuple(models)) for name, models in found.items())
    return Coverage(families=listed, versions={package: version(package) for package in ("torch", "timm", "hwmodel")})


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[[Callable[[str], Extracted], Sequence[str]], Iterator[Extracted]]]:
    """A ``map`` that keeps the order: the plain one, or one over fresh processes (torch does not survive a fork)."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    """Workers share the cores by processes alone."""
    import torch

    torch.set_num_threads(1)


def _extracted(name: str) -> Extracted:
    from hwmodel.extraction.models import trace

    try:
        traced = trace(name)
    except Exception as error:  # one model that fails, in whatever way, is a line of the table
        kind = "" if isinstance(error, HwmodelError) else f"{type(error).__name__}: "
        return Extracted(name=name, reason=kind + " ".join(str(error).split())[:300])
    return Extracted(name=name, operators=len(traced), macs=traced.macs)
