"""Sentences say what the numbers say."""

from __future__ import annotations

from reporting_fakes import GPU, PE, changed, estimate, on_four_machines, pruned, variants, vit

from hwmodel.reporting import words
from hwmodel.reporting.variants import Variant, machines_of

DENSE = vit()
MACHINES = machines_of(variants())


def _plain(findings: list[words.Finding]) -> dict[str, str]:
    return {finding.lead: finding.text.replace("\N{NO-BREAK SPACE}", " ") for finding in findings}


def _pair(dense_options: dict[str, object], sparse_density: float = 0.26) -> tuple[Variant, Variant]:
    sparse = pruned(DENSE, sparse_density)
    return tuple(  # type: ignore[return-value]
        Variant(label, trace, (estimate(trace, PE, **dense_options),))  # type: ignore[arg-type]
        for label, trace in (("dense", DENSE), ("sparse", sparse))
    )


def test_the_fastest_and_the_most_frugal_are_named() -> None:
    told = _plain(words.summary(MACHINES))
    fastest = min(MACHINES, key=lambda machine: min(case.latency_s for case in machine.cases))
    frugal = min(MACHINES, key=lambda machine: min(case.energy_j for case in machine.cases))
    assert told["Fastest"].startswith(f"{fastest.label} (")
    assert told["Least energy"].startswith(f"{frugal.label} (")
    assert "fewer MACs" in told["32x32 at 26 %"]


def test_a_machine_that_skips_every_block_gains_all_of_it() -> None:
    """Linear layers are nearly all the MACs of this trace once memory is free, so the speed-up is the MAC ratio."""
    machines = machines_of(_pair({"tile": 32, "bytes_per_s": 1e18}))
    assert "All of the pruned work turns into time." in _plain(words.losses(machines))["pe-like, sparse"]


def test_a_machine_that_skips_nothing_is_told_so() -> None:
    text = _plain(words.losses(machines_of(_pair({"tile": None, "bytes_per_s": 1e18}))))["pe-like, sparse"]
    assert text.startswith("1.00× faster for ")
    assert "nothing is skipped in 8 of 8 pruned layers" in text
    assert "32x32 blocks, or a dense kernel is cheaper" in text


def test_waiting_for_the_host_is_a_reason() -> None:
    text = _plain(words.losses(machines_of(_pair({"tile": 32, "bytes_per_s": 1e18, "gap_s": 1e-3}))))["pe-like, sparse"]
    assert "did not shrink with the work" in text and "limited by the host" in text
    assert "of the time limited by the host" in _plain(words.limits(machines_of(_pair({"gap_s": 1e-3}))))["pe-like"]


def test_operators_that_are_not_pruned_are_a_reason() -> None:
    text = _plain(words.losses(machines_of(_pair({"tile": 32, "bytes_per_s": 5e9}))))["pe-like, sparse"]
    assert "operators that the recipe does not prune" in text and "attention" in text


def test_caveats_name_what_is_assumed_unmeasured_expected_and_changed() -> None:
    sparse = pruned(DENSE, 0.26)
    changed = {"clock_hz": 2e9}
    pair = [Variant(label, trace, (estimate(trace, PE, overrides=changed),)) for label, trace in (("d", DENSE), ("s", sparse))]
    told = _plain(words.caveats(machines_of(pair)))
    assert told["Rests on assumptions"].startswith("latency on pe-like; energy on pe-like")
    assert "latency on pe-like; energy on pe-like" in told["Error not measured"]
    assert told["Masks not given"].startswith("for s only the density")
    assert told["Changed by hand"] == "pe-like clock_hz = 2000000000.0."


def test_a_measured_error_is_no_caveat() -> None:
    told = _plain(words.caveats(machines_of([Variant("dense", DENSE, (estimate(DENSE, GPU, mode="compiled"),))])))
    assert "latency" not in told["Error not measured"]


def test_products_that_a_mode_does_not_execute_are_named() -> None:
    executed = [0.0 if operator.attention_group else float(operator.macs) for operator in DENSE.operators]
    one = changed(estimate(DENSE, PE), executed_macs=executed)
    told = _plain(words.caveats(machines_of([Variant("dense", DENSE, (one,))])))
    assert told["Costs nothing on pe-like"] == "products not executed in this mode: attention."


def test_no_time_at_all_is_no_division_by_zero() -> None:
    nothing = {"latency_s": 0.0, "compute_j": 0.0, "onchip_j": 0.0, "offchip_j": 0.0, "static_j": 0.0}
    pair = _pair({})
    machines = machines_of([Variant(one.label, one.trace, (changed(one.estimates[0], **nothing),)) for one in pair])
    assert "no speed-up can be formed" in _plain(words.losses(machines))["pe-like, sparse"]
    assert words.limits(machines)[0].text == "takes no time in this mode."
    assert "Fastest" not in _plain(words.summary(machines))


def test_the_subject_names_batch_input_and_kept_macs() -> None:
    dense = vit(batch=8)
    sparse = pruned(dense, 0.5)
    both = [Variant("dense", dense, on_four_machines(dense)), Variant("half", sparse, on_four_machines(sparse))]
    text = words.subject(both).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("Price of a batch of 8 images (input 8×3×224×224). dense: ")
    assert f"({100 * sparse.kept_macs / sparse.macs:.1f} %)" in text


def test_listing() -> None:
    assert words.listed([]) == ""
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b"]) == "a and b"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
