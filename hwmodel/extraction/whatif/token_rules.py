"""What the encoder rules of a recipe say about tokens: fixed counts, distributions over images, and steps to apply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from hwmodel.errors import HwmodelError, RecipeError, suggestion
from hwmodel.extraction.whatif.token_steps import Given, Merge, Select, Step, patches_after
from hwmodel.ir.token_counts import TokenDistribution

if TYPE_CHECKING:
    from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
    from hwmodel.extraction.whatif.tokens import Tokens

Selection = Literal["given", "attention", "threshold"]
_DIGITS = 9
"""Decimals of ``keep * tokens`` that count: beyond them is binary rounding (0.07 * 100 is a little more than 7)."""


@dataclass(frozen=True)
class TokenCounts:
    """``tokens = {values = [...], probability = [...]}``: how many tokens stay depends on the image.

    The distributions of one recipe are rows of one joint distribution: the first values of all belong to the same
    images, and so on, so they share their probabilities; one that is ``independent`` of the others says so.
    """

    values: tuple[int, ...]
    probability: tuple[float, ...]
    independent: bool = False

    def __post_init__(self) -> None:
        TokenDistribution(self.values, self.probability)


def counts_document(counts: int | TokenCounts | None) -> Any:
    """Counts as a recipe file has them."""
    if not isinstance(counts, TokenCounts):
        return counts
    plain: dict[str, Any] = {"values": list(counts.values), "probability": list(counts.probability)}
    return plain | ({"independent": True} if counts.independent else {})


def token_counts(value: Any) -> int | TokenCounts | None:
    """A count, or a distribution of counts, as a recipe gives it.

    Raises
    ------
    ValueError
        Anything else, with the reason.
    """
    plain = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    if plain is None or isinstance(plain, TokenCounts):
        return plain
    if isinstance(plain, Mapping):
        return _distribution(plain)
    if isinstance(plain, bool) or not isinstance(plain, int) or plain < 1:
        raise ValueError("expected a count of at least 1, or {values = [...], probability = [...]}")
    return plain


def _distribution(table: Mapping[str, Any]) -> TokenCounts:
    known = ("values", "probability", "independent")
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; {suggestion(str(key), known)}")
    values, shares, independent = (table.get(key) for key in known)
    if not isinstance(values, list | tuple) or not isinstance(shares, list | tuple) or not isinstance(independent, bool | None):
        raise ValueError("needs values = [counts] and probability = [one per count]; independent is true or false")
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in (*values, *shares)):
        raise ValueError("values and probability are lists of numbers")
    try:
        return TokenCounts(tuple(values), tuple(float(share) for share in shares), bool(independent))
    except HwmodelError as error:
        raise ValueError(str(error)) from error


def check_tokens(rule: EncoderRule) -> None:
    """Refuse fields about tokens that contradict each other, with a ValueError."""
    reduces = rule.tokens is not None or rule.keep is not None
    if rule.tokens is not None and rule.keep is not None:
        raise ValueError("tokens and keep exclude each other")
    if rule.merge is not None and reduces:
        raise ValueError("merge and tokens (or keep) exclude each other")
    if rule.select is not None and not reduces:
        raise ValueError("select says how tokens are chosen; there is no tokens or keep")
    if rule.fused is not None and rule.select != "attention":
        raise ValueError('fused adds a token for those that select = "attention" drops')
    if rule.select == "attention" and isinstance(rule.tokens, TokenCounts):
        raise ValueError('select = "attention" keeps a fixed count; a distribution needs "threshold" or "given"')


def distributed(rules: Iterable[EncoderRule]) -> list[int]:
    """Numbers of the rules whose count depends on the image."""
    return [number for number, rule in enumerate(rules) if isinstance(rule.tokens, TokenCounts)]


def joint_distribution(recipe: Recipe, where: str) -> TokenDistribution:
    """Counts of all rules that :func:`distributed` lists, as one joint distribution.

    Raises
    ------
    RecipeError
        No such rule, or rules that belong together with different probabilities.
    """
    numbers = distributed(recipe.encoder)
    found = [recipe.encoder[number].tokens for number in numbers]
    counts = [one for one in found if isinstance(one, TokenCounts)]
    together = [one for one in counts if not one.independent]
    if not counts:
        raise RecipeError(f"{where}: no entry of encoder has tokens = {{values = [...], probability = [...]}}")
    if len({one.probability for one in together}) > 1:
        raise RecipeError(
            f"{where}: encoder.{numbers[0]}.tokens: distributions of one recipe are rows of one joint distribution and share "
            "their probabilities; those that tell nothing about the others need independent = true"
        )
    groups = [[one] for one in counts if one.independent] + ([together] if together else [])
    joined = TokenDistribution.independent(
        *(TokenDistribution(list(zip(*(one.values for one in group), strict=True)), group[0].probability) for group in groups)
    )
    order = sorted(range(len(counts)), key=lambda point: not counts[point].independent)
    rows = [tuple(row[order.index(point)] for point in range(len(counts))) for row in joined.counts]
    return TokenDistribution(rows, joined.probability)


def settled(recipe: Recipe, counts: Sequence[int]) -> Recipe:
    """The recipe with a fixed count wherever it depends on the image."""
    given = dict(zip(distributed(recipe.encoder), counts, strict=True))
    rules = [
        rule.model_copy(update={"tokens": given[number]}) if number in given else rule
        for number, rule in enumerate(recipe.encoder)
    ]  # fmt: skip
    return recipe.model_copy(update={"encoder": tuple(rules)})


def planned(blocks: Iterable[int], rules: Sequence[EncoderRule], tokens: Tokens, where: str) -> dict[int, Step]:
    """What happens to tokens in each of ``blocks``, in execution order; the last rule for a block wins.

    Raises
    ------
    RecipeError
        Counts that rise, that the model does not have, or that depend on the image; merging beside dropping.
    """
    asked = {block: number for number, rule in enumerate(rules) if reduces(rule) for block in rule.indices}
    _check_alone(rules, asked, where)
    steps: dict[int, Step] = {}
    present, since = tokens.patches, "the model has"
    for block in (block for block in blocks if block in asked):
        number = asked[block]
        try:
            steps[block] = _step(rules[number], tokens, present, since)
        except ValueError as error:
            raise RecipeError(f"{where}: encoder.{number}.{field_of(rules[number])}: block {block} {error}") from error
        left = patches_after(steps[block], present)
        if left != present:
            present, since = left, f"dropped tokens never come back and block {block} leaves"
    return steps


def reduces(rule: EncoderRule) -> bool:
    """Whether a rule is about tokens."""
    return rule.tokens is not None or rule.keep is not None or rule.merge is not None


def field_of(rule: EncoderRule) -> str:
    """The field with which a rule speaks about tokens."""
    return next(name for name in ("merge", "keep", "tokens") if getattr(rule, name) is not None)


def _check_alone(rules: Sequence[EncoderRule], asked: Mapping[int, int], where: str) -> None:
    """Merged tokens have sizes, which nothing here drops."""
    merging = [number for number in asked.values() if rules[number].merge is not None]
    if merging and len(merging) < len(asked):
        raise RecipeError(f"{where}: encoder.{merging[0]}.merge: a recipe that merges tokens cannot drop tokens as well")


def _step(rule: EncoderRule, tokens: Tokens, present: int, since: str) -> Step:
    """The step of one rule, or a ValueError with what follows the block's number."""
    if rule.merge is not None:
        return Merge(min(rule.merge, present // 2))
    if isinstance(rule.tokens, TokenCounts):
        raise ValueError("keeps as many as the image asks for: price it with hwmodel estimate or hw.prune_family")
    scored = rule.select in {"attention", "threshold"}
    if scored and not tokens.prefix:
        raise ValueError("is scored by the class token's attention, but the model has no class token")
    of = present if scored else tokens.patches
    count = rule.tokens if rule.keep is None else ceil(round(rule.keep * of, _DIGITS))
    if count is None or count > present:
        raise ValueError(f"asks for {count} patch tokens, but {since} {present}")
    return Select(count, bool(rule.fused), rule.select == "threshold") if scored else Given(count)
