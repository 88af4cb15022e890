"""Which heads and tokens of a model stay: made real on its modules, and told as the rules of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwmodel.extraction.whatif.found_recipes import recipe_of
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.ir.trace import Trace
from hwmodel.pruning.gates.heads import remove_heads
from hwmodel.pruning.live_models import LiveModel
from hwmodel.pruning.tokens import topk_tokens

_OF_WEIGHTS = ("mask", "sparsity", "dtype", "weight_dtype", "scale_bytes")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What stays of a model beside weight blocks.

    Parameters
    ----------
    heads : encoder block to the indices of the heads that stay; blocks that are not named keep all of theirs
    tokens : encoder block to the part of the patch tokens present that stays behind its attention
    """

    heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    tokens: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        heads = ", ".join(f"{' '.join(map(str, kept))} of block {block}" for block, kept in sorted(self.heads.items()))
        tokens = ", ".join(f"{keep:.1%} behind the attention of block {block}" for block, keep in sorted(self.tokens.items()))
        return f"heads kept: {heads or 'all'}; patch tokens kept: {tokens or 'all'}"

    @property
    def head_rules(self) -> tuple[EncoderRule, ...]:
        """The heads as rules of a recipe."""
        return tuple(EncoderRule(blocks=str(block), heads=kept) for block, kept in sorted(self.heads.items()))

    @property
    def token_rules(self) -> tuple[EncoderRule, ...]:
        """The tokens as rules of a recipe."""
        return tuple(EncoderRule(blocks=str(block), keep=keep, select="attention") for block, keep in sorted(self.tokens.items()))

    def of(self, live: LiveModel) -> LiveModel:
        """A model with this structure and the weights of ``live``."""
        narrowed = self.narrowed(live)
        if not self.tokens:
            return narrowed
        return narrowed.holding(topk_tokens(narrowed.module, self.tokens), by_name=False)

    def narrowed(self, live: LiveModel) -> LiveModel:
        """A model with these heads and all tokens."""
        return live.holding(remove_heads(live.module, self.heads)) if self.heads else live

    def recipe(self, live: LiveModel, published: Trace, pruned: Trace, *, source: str) -> Recipe:
        """The recipe from the published dense model to the pruned one.

        Parameters
        ----------
        live : the model as it was given
        pruned : the trace of the one with this structure, with masks
        """
        sides: tuple[int, ...] = (live.image_size,) if isinstance(live.image_size, int) else live.image_size or ()
        found = pruned if not self.tokens else _with_weights_of(pruned, self.narrowed(live).structure)
        recipe = recipe_of(found, published, source=source, image_size=sides[0] if len(set(sides)) == 1 else None)
        oblong = f"for images of {' x '.join(map(str, sides))} pixels (height x width)" if len(set(sides)) > 1 else None
        remarks = "; ".join(filter(None, (recipe.remarks, oblong))) or None
        return recipe.model_copy(update={"remarks": remarks, "encoder": (*recipe.encoder, *self.token_rules)})


def _with_weights_of(pruned: Trace, whole: Trace) -> Trace:
    """The trace of a model that keeps all its tokens, with the notes, masks and number formats of the one that loses some."""
    twins = {operator.name: operator for operator in pruned.operators}
    known = ((operator, twins.get(operator.name, operator)) for operator in whole.operators)
    operators = tuple(operator.replace(**{field: getattr(twin, field) for field in _OF_WEIGHTS}) for operator, twin in known)
    return whole.replace(operators=operators, notes=pruned.notes)
