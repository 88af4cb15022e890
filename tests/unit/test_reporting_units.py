"""Numbers as people read them."""

from __future__ import annotations

from math import inf, nan

import pytest

from hwmodel.reporting.units import percent, ratio, si, significant

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.01649, "s", f"16.5{NBSP}ms"),
        (0.00043, "s", f"430{NBSP}µs"),
        (0.9996e-3, "s", f"1.00{NBSP}ms"),  # rounds up to the next prefix, not to 1000 µs
        (999.4e-6, "s", f"999{NBSP}µs"),
        (17.56e9, "MAC", f"17.6{NBSP}GMAC"),
        (1.0, "W", f"1.00{NBSP}W"),
        (-0.5, "J", f"-500{NBSP}mJ"),
        (0.0, "s", f"0{NBSP}s"),
        (42.0, "", "42.0"),
        (3e18, "B", f"3000{NBSP}PB"),  # beyond the largest prefix
        (None, "s", "n/a"),
        (nan, "s", "n/a"),
        (inf, "s", "n/a"),
    ],
)
def test_si_keeps_three_digits_and_the_right_prefix(value: float | None, unit: str, text: str) -> None:
    assert si(value, unit) == text


def test_a_missing_number_is_no_zero() -> None:
    assert ratio(None) == percent(None) == ratio(nan) == percent(inf) == "n/a"


def test_a_small_share_is_not_rounded_to_none() -> None:
    assert percent(0.001) == f"under{NBSP}1{NBSP}%"
    assert percent(0.0) == f"0{NBSP}%"
    assert percent(0.2971, 1) == f"29.7{NBSP}%"


def test_ratio_and_significant_digits() -> None:
    assert ratio(3.936) == "3.94×"
    assert significant(0.0) == "0"
    assert significant(99.96) == "100"
