"""The models of the page: each read once, with what of it can be pruned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from threading import Lock
from typing import Any

from hwmodel.errors import HwmodelError, RecipeError
from hwmodel.exploration.variants import is_prunable
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.ir.storage import is_trace_file, load_trace
from hwmodel.ir.trace import Trace
from hwmodel.ui.batches import Batches
from hwmodel.ui.state import State

_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?", re.IGNORECASE)
_SAVED = "a saved trace has its own batch"


@dataclass(frozen=True, eq=False)
class Model:
    """One dense model.

    Parameters
    ----------
    batches : its traces by batch
    """

    batches: Batches

    @classmethod
    def read(cls, name: str) -> Model:
        """Extract a timm model, or load a saved trace.

        Raises
        ------
        HwmodelError
            A name or a file that is none.
        """
        if is_trace_file(name):
            return cls(Batches(load_trace(name), None, _SAVED))
        from hwmodel.extraction.models import trace

        return cls(Batches.of(lambda batch: trace(name, batch=batch)))

    @property
    def first(self) -> Trace:
        """The dense trace at its smallest batch."""
        return self.batches.first

    @cached_property
    def prunable(self) -> tuple[str, ...]:
        """Names of the encoder's layers with weights."""
        return tuple(operator.name for operator in self.first.operators if is_prunable(operator))

    @cached_property
    def blocks(self) -> int:
        """Encoder blocks, counted from 0 to the last index."""
        return 1 + max((operator.block for operator in self.first.operators if operator.block is not None), default=-1)

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        """The prunable layers by few patterns ("blocks.*.attn.qkv"), or name by name where patterns would catch others."""
        globs = tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in self.prunable))
        caught = [one.name for one in self.first.operators if any(fnmatchcase(one.name, glob) for glob in globs)]
        return globs if caught == list(self.prunable) else self.prunable

    @property
    def thinned_from(self) -> int:
        """First encoder block that sees fewer tokens: a third of the way in."""
        return self.blocks // 3

    @cached_property
    def heads(self) -> tuple[int, str]:
        """Attention heads of a block, and why their number cannot be moved ("" where it can)."""
        found = [one.batch // self.first.batch for one in self.first.operators if one.role == "scores" and one.block is not None]
        if not found:
            return 0, "no attention is spelled out here"
        least = min(found)
        refused = self._refused({"blocks": f"0-{self.blocks - 1}", "heads": least})
        return least, refused or ("" if least == max(found) else f"blocks have {least} to {max(found)} heads")

    @cached_property
    def tokens(self) -> tuple[int, str]:
        """Patch tokens, and why their number cannot be moved ("" where it can)."""
        embedding = next((one for one in self.first.operators if one.role == "patch_embed"), None)
        if embedding is None or not self.blocks:
            return 0, "no patch embedding or no encoder block is known here"
        patches = embedding.m * embedding.batch // self.first.batch
        return patches, self._refused({"blocks": f"{self.thinned_from}-{self.blocks - 1}", "tokens": patches - 1})

    def _refused(self, encoder: Mapping[str, Any]) -> str:
        """Why the model does not take an entry; "" where it does."""
        try:
            prune(self.first, self._recipe([], [encoder]))
        except RecipeError as error:
            return str(error).rpartition(": ")[2]
        return ""

    def recipe(self, state: State, remarks: str | None = None) -> Recipe:
        """How a state prunes the model."""
        layers = []
        if state.density < 1 and self.prunable:
            sides = [int(side) for side in state.block.split("x")]
            layers = [{"match": list(self._globs), "block": sides, "density": state.density, "expect": state.lie}]
        encoder: list[dict[str, Any]] = []
        if state.heads:
            encoder.append({"blocks": f"0-{self.blocks - 1}", "heads": state.heads})
        if state.tokens:
            encoder.append({"blocks": f"{self.thinned_from}-{self.blocks - 1}", "tokens": state.tokens})
        return self._recipe(layers, encoder, remarks)

    def _recipe(self, layers: Sequence[Any], encoder: Sequence[Any], remarks: str | None = None) -> Recipe:
        document = {"schema_version": 1, "model": self.first.model, "source": "hwmodel explore-ui"}
        told = {} if remarks is None else {"remarks": remarks}
        return Recipe.from_document(document | told | {"layers": list(layers), "encoder": list(encoder)}, "explore-ui")

    def pruned(self, state: State) -> Trace:
        """The trace of a state.

        Raises
        ------
        RecipeError
            Pruning that this model does not take.
        """
        return prune(self.batches.at(state.batch), self.recipe(state))


@dataclass(eq=False)
class Models:
    """Models by name: those the page was started with, and other timm names that an address may ask for.

    Parameters
    ----------
    names : what the page offers, the first one to start with
    """

    names: tuple[str, ...]
    _read: dict[str, Model] = field(default_factory=dict)
    _reading: Lock = field(default_factory=Lock)

    def get(self, name: str) -> Model:
        """The model of that name, read when first asked for. Files are opened only where the command line named them.

        Raises
        ------
        HwmodelError
            No such model.
        """
        if name not in self.names and not _TIMM_NAME.fullmatch(name):
            raise HwmodelError(f"unknown model {name[:80]!r}: expected {', '.join(self.names)} or another timm name")
        with self._reading:
            if name not in self._read:
                self._read[name] = Model.read(name)
            return self._read[name]
