"""What the numbers say, in sentences. Plain text: the page escapes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.ir.masks import ExpectedMask
from hwmodel.reporting.breakdown import (
    ROLES,
    WAITING,
    Account,
    account,
    changes,
    group_of,
    latency_by_bound,
    latency_by_role,
    untouched_by_role,
)
from hwmodel.reporting.units import SPACE, percent, ratio, si
from hwmodel.reporting.variants import Case, Machine, Variant, energy_gain, quotient, speed_up

_BOUNDS = {
    "compute": "its multipliers",
    "memory": "off-chip memory",
    "dram": "off-chip memory",
    "onchip": "on-chip memory",
    "l2": "the L2 cache",
    "launch": "kernel launches",
    "host": "the host",
    "vector": "its vector unit",
    "sfu": "its special-function unit",
}
NEAR = 0.93
"""A speed-up above this share of the MAC ratio counts as all of it."""


@dataclass(frozen=True)
class Finding:
    """A sentence or two, and the words in front of them that a reader looks for."""

    lead: str
    text: str


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def subject(variants: Sequence[Variant]) -> str:
    """What was priced: model, batch, input, MACs and what each pruned variant keeps of them."""
    first = variants[0].trace
    shape = "×".join(map(str, first.input_shape))
    of_shape = f" (input {shape})" if shape else ""
    what = images_word(first.batch) if shape else "one forward pass"
    text = f"Price of {what}{of_shape}. {variants[0].label}: {si(first.kept_macs, 'MAC')}"
    kept = [f"{one.label}: {si(one.trace.kept_macs, 'MAC')} ({percent(one.kept_share, 1)})" for one in variants[1:]]
    return "; ".join([text, *kept]) + ". One MAC is two FLOPs."


def images_word(count: int) -> str:
    """ "one image", "a batch of 8 images"."""
    return "one image" if count == 1 else f"a batch of {count}{SPACE}images"


def summary(machines: Sequence[Machine]) -> list[Finding]:
    """The fastest, the most frugal, and where pruning pays most and least."""
    cases = [(machine, case) for machine in machines for case in machine.cases]
    best = [_best("Fastest", cases, "latency_s", "s"), _best("Least energy", cases, "energy_j", "J")]
    gains = [_gain(machines, place) for place in range(len(machines[0].pairs))]
    return [finding for finding in [*best, *gains] if finding is not None]


def _best(lead: str, cases: Sequence[tuple[Machine, Case]], column: str, unit: str) -> Finding | None:
    """The case with the smallest value, then each other machine's best."""
    known = [(float(case.summary[column]), machine, case) for machine, case in cases]
    known = sorted(((value, m, c) for value, m, c in known if isfinite(value) and value > 0), key=lambda item: item[0])
    if not known:
        return None
    value, machine, case = known[0]
    behind: dict[str, str] = {}
    for other, rival, _ in known:
        if rival is not machine:
            behind.setdefault(rival.label, f"{rival.label} with {si(other, unit)}")
    rest = f" Then {listed(list(behind.values()))}, each with its best variant." if behind else ""
    each = f" per batch of {case.trace.batch}" if case.trace.batch > 1 else ""
    return Finding(lead, f"{machine.label} ({case.terms}) with {si(value, unit)}{each}, {case.variant}.{rest}")


def _gain(machines: Sequence[Machine], place: int) -> Finding | None:
    """What one pruned variant saves in MACs, and in time and energy on every machine, largest first."""
    case, base = machines[0].pairs[place]
    macs = f"{ratio(quotient(base.trace.kept_macs, case.trace.kept_macs))} fewer MACs"
    parts = []
    for measure, word in ((speed_up, "faster"), (energy_gain, "less energy")):
        found = [(measure(*machine.pairs[place]), machine.label) for machine in machines]
        known = sorted(((gain, label) for gain, label in found if gain is not None), key=lambda item: -item[0])
        if known:
            (first, where), *others = known
            parts.append(listed([f"{ratio(first)} {word} on {where}", *(f"{ratio(gain)} on {label}" for gain, label in others)]))
    return Finding(case.variant, f"{macs}: {'; '.join(parts)}.") if parts else None


def limits(machines: Sequence[Machine]) -> list[Finding]:
    """What each machine spends its time on, baseline and last variant."""
    return [Finding(machine.label, _limit_text(machine)) for machine in machines]


def _limit_text(machine: Machine) -> str:
    cases = machine.cases if len(machine.cases) < 3 else (machine.cases[0], machine.cases[-1])
    told: dict[str, list[str]] = {}
    for case in cases:
        if case.latency_s > 0:
            told.setdefault(f"{_bound_text(case)}; {_role_text(case)}.", []).append(case.variant)
    return " ".join(f"{listed(names)}: {text}" for text, names in told.items()) or "takes no time in this mode."


def _bound_text(case: Case) -> str:
    """Limiting resources that hold at least a tenth of the time."""
    shares = [(bound, seconds / case.latency_s) for bound, seconds in latency_by_bound(case).items()]
    large = [f"{percent(share)} by {resource(bound)}" for bound, share in shares if share >= 0.1 and bound != "none"]
    large[:1] = [text.replace(" by ", " of the time limited by ", 1) for text in large[:1]]
    return listed(large) or "no resource stands out"


def resource(bound: str) -> str:
    """A limiting resource as a reader calls it."""
    return _BOUNDS.get(bound, bound)


def _role_text(case: Case) -> str:
    """The two largest groups of operators."""
    parts = [(role, seconds) for role, seconds in latency_by_role(case).items() if role != WAITING and seconds > 0]
    largest = sorted(parts, key=lambda item: -item[1])[:2]
    return "most of it in " + listed([f"{ROLES[role]} ({percent(seconds / case.latency_s)})" for role, seconds in largest])


def losses(machines: Sequence[Machine]) -> list[Finding]:
    """For each machine and pruned variant: whether the speed-up reaches the MAC ratio, and why not."""
    return [
        Finding(f"{machine.label}, {case.variant}", _loss_text(case, reference))
        for machine in machines
        for case, reference in machine.pairs
    ]


def _loss_text(case: Case, baseline: Case) -> str:
    gain = speed_up(case, baseline)
    fewer = quotient(baseline.trace.kept_macs, case.trace.kept_macs)
    if gain is None or fewer is None:
        return "no speed-up can be formed, for one of the two takes no time or no work is left."
    opening = f"{ratio(gain)} faster for {ratio(fewer)} fewer MACs."
    if gain >= NEAR * fewer:
        return f"{opening} All of the pruned work turns into time."
    parts = account(case, baseline)
    reasons = sorted(_reasons(parts, case, baseline), key=lambda item: -item[0])
    told = [text for seconds, text in reasons if seconds >= 0.04 * case.latency_s]
    best = quotient(baseline.latency_s, parts.kept_s + parts.untouched_s)
    bound = f" Had every pruned MAC saved its time, it would be {ratio(best)}." if best else ""
    return f"{opening} Of its {si(case.latency_s, 's')}, {'; '.join(told)}.{bound}" if told else f"{opening}{bound}"


def _reasons(parts: Account, case: Case, baseline: Case) -> list[tuple[float, str]]:
    """Seconds and explanation of each part that is no gain."""
    untouched, coarse, rest = (si(seconds, "s") for seconds in (parts.untouched_s, parts.coarse_s, parts.rest_s))
    return [
        (parts.untouched_s, f"{untouched} are operators that the recipe does not prune ({_untouched_text(case, baseline)})"),
        (parts.coarse_s, f"{coarse} multiply pruned weights ({_coarse_text(case, baseline)})"),
        (parts.rest_s, f"{rest} did not shrink with the work ({_rest_text(case, baseline)})"),
    ]


def _untouched_text(case: Case, baseline: Case) -> str:
    """The largest groups among operators that kept all their work."""
    parts = [(role, seconds) for role, seconds in untouched_by_role(case, baseline).items() if seconds > 0]
    return listed([f"{ROLES[role]} {si(seconds, 's')}" for role, seconds in parts[:2]])


def _coarse_text(case: Case, baseline: Case) -> str:
    """In how many pruned layers nothing is skipped, what is executed in all, and what that may come from."""
    operators = case.trace.operators
    pruned = [(change, change.now) for change in changes(case, baseline) if change.kept < 1.0 and change.now is not None]
    layers = [(change, row) for change, row in pruned if operators[row].macs]
    whole = sum(change.executed >= 0.995 for change, _ in layers)
    executed = float(case.estimate.costs.executed_macs[[row for _, row in layers]].sum())
    kept = sum(operators[row].kept_macs for _, row in layers)
    skipped = f"nothing is skipped in {whole} of {len(layers)} pruned layers: " if whole else ""
    dense_kernel = ", or a dense kernel is cheaper" if whole else ""
    return (
        f"{skipped}{si(executed, 'MAC')} executed where {si(kept, 'MAC')} are kept; "
        f"what it skips at once is coarser than {blocks_text(case)} blocks{dense_kernel}"
    )


def blocks_text(case: Case) -> str:
    """Block shapes of the masks, (out, in): "32x32" or "32x32, 64x64"."""
    shapes = dict.fromkeys(operator.mask.block for operator in case.trace.operators if operator.mask is not None)
    return ", ".join(f"{out}x{in_}" for out, in_ in shapes) or "pruned"


def _rest_text(case: Case, baseline: Case) -> str:
    """How fast the pruned layers multiply now and before, and what limits them."""
    pruned = [(change.before, change.now) for change in changes(case, baseline) if change.kept < 1.0 and change.now is not None]
    now, before = _rate(case, [row for _, row in pruned]), _rate(baseline, [row for row, _ in pruned])
    slower = f"they reach {si(now, 'MAC/s')}, when dense {si(before, 'MAC/s')}; " if now and before and now < 0.9 * before else ""
    parts = [(bound, seconds) for bound, seconds in latency_by_bound(case, [row for _, row in pruned]).items() if bound != "none"]
    told = [f"{resource(bound)} for {si(seconds, 's')}" for bound, seconds in parts[:2]]
    return f"{slower}pruned layers are limited by {listed(told)}" if told else f"{slower}the rest is overhead of the kernels"


def _rate(case: Case, rows: list[int]) -> float | None:
    """Executed MACs per second of these rows while they run."""
    costs = case.estimate.costs
    return quotient(float(costs.executed_macs[rows].sum()), float((costs.latency_s - costs.gap_s)[rows].sum()))


def caveats(machines: Sequence[Machine]) -> list[Finding]:
    """How far to trust the comparison."""
    found = [_assumed(machines), _unmeasured(machines), _expected(machines), _overridden(machines)]
    found += [*_left_out(machines), *_designs(machines)]
    return [finding for finding in found if finding is not None]


def _where(machines: Sequence[Machine], holds: Callable[[Case, str], bool]) -> str:
    """Quantities and machines for which something holds: "latency on a; energy on a and b"."""
    told = []
    for quantity in ("latency", "energy"):
        labels = [machine.label for machine in machines if any(holds(case, quantity) for case in machine.cases)]
        if labels:
            told.append(f"{quantity} on {listed(labels)}")
    return "; ".join(told)


def _assumed(machines: Sequence[Machine]) -> Finding | None:
    weak = _where(machines, lambda case, quantity: bool(case.summary["fidelity"][quantity] == "assumed"))
    return Finding("Rests on assumptions", f"{weak}. Compare variants there, not machines.") if weak else None


def _unmeasured(machines: Sequence[Machine]) -> Finding | None:
    missing = _where(machines, lambda case, quantity: case.estimate.error_band(quantity) is None)
    return Finding("Error not measured", f"{missing}: nothing was held out in this mode and number format.") if missing else None


def _expected(machines: Sequence[Machine]) -> Finding | None:
    """Variants whose masks are known by their density only."""
    blurred = [
        case.variant
        for case in machines[0].cases
        if any(isinstance(operator.mask, ExpectedMask) for operator in case.trace.operators)
    ]
    if not blurred:
        return None
    text = (
        "only the density of the masks is known; blocks are taken to lie anywhere. Clustered masks let coarse machines skip more."
    )
    return Finding("Masks not given", f"for {listed(blurred)} {text}")


def _overridden(machines: Sequence[Machine]) -> Finding | None:
    changed = dict.fromkeys(
        f"{machine.label} {field} = {value}"
        for machine in machines
        for case in machine.cases
        for field, value in case.estimate.overrides.items()
    )
    return Finding("Changed by hand", f"{listed(list(changed))}.") if changed else None


def _left_out(machines: Sequence[Machine]) -> list[Finding]:
    """Operators that cost nothing in a machine's mode: on purpose, with the backend's reasons, and products not executed."""
    found = []
    for machine in machines:
        parts = [f"{listed(kinds)}: {reason}" for reason, kinds in _free_kinds(machine.baseline).items()]
        idle = [ROLES[role] for role in _idle_products(machine.baseline)]
        parts += [f"products not executed in this mode: {listed(idle)}"] if idle else []
        found += [Finding(f"Costs nothing on {machine.label}", f"{'; '.join(parts)}.")] if parts else []
    return found


def _free_kinds(case: Case) -> dict[str, list[str]]:
    """Kinds of the trace that the backend prices at nothing in this mode, by reason."""
    if case.card.backend not in backend_names():
        return {}
    free = get_backend(case.card.backend).free(case.estimate.execution_mode)
    reasons: dict[str, list[str]] = {}
    for kind, family in dict.fromkeys((operator.kind, operator.family) for operator in case.trace.operators):
        if kind in free or family in free:
            reasons.setdefault(free.get(kind, free.get(family, "")), []).append(kind)
    return reasons


def _idle_products(case: Case) -> list[str]:
    """Groups of operators that have MACs and execute none, in a dense model."""
    executed = case.estimate.costs.executed_macs.tolist()
    rows = zip(case.trace.operators, executed, strict=True)
    return list(dict.fromkeys(group_of(operator) for operator, done in rows if operator.kept_macs and not done))


def _designs(machines: Sequence[Machine]) -> list[Finding]:
    """Where a recipe asks for another design point than the baseline's, and what the baseline costs there."""
    return [
        Finding(f"Design point of {machine.label}", design_text(case, reference))
        for machine in machines
        for case, reference in machine.pairs
        if reference is not machine.baseline
    ]


def design_text(case: Case, reference: Case) -> str:
    """The design point of a pruned variant and what the dense model costs on it."""
    asked = ", ".join(f"{field} {value}" for field, value in reference.trace.design[case.card.backend].items())
    costs = f"{si(reference.latency_s, 's')} and {si(reference.energy_j, 'J')}"
    return f"{case.variant} runs on {asked or 'the default'}; its factors are against {reference.variant} there, {costs}."
