"""Numbers as people read them: three digits and an SI prefix. Only here; everything else is in SI base units."""

from __future__ import annotations

from math import floor, isfinite, log10

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "n/a"
_PREFIXES = {-5: "f", -4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}


def prefix_of(value: float, digits: int = 3) -> tuple[float, str]:
    """What one prefixed unit is worth and the prefix itself, for a value as it will be rounded: (1e-3, "m")."""
    if value == 0 or not isfinite(value):
        return 1.0, ""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    step = min(max(exponent // 3, min(_PREFIXES)), max(_PREFIXES))
    return float(f"1e{3 * step}"), _PREFIXES[step]


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A quantity with an SI prefix: ``si(0.01649, "s")`` is "16.5 ms"; "n/a" where there is no number."""
    if value is None or not isfinite(value):
        return MISSING
    worth, prefix = prefix_of(value, digits)
    return f"{significant(value / worth, digits)}{SPACE}{prefix}{unit}".rstrip(SPACE)


def significant(value: float, digits: int = 3) -> str:
    """A plain decimal with so many significant digits: 16.5, 4.30, 812."""
    if value == 0:
        return "0"
    leading = floor(log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:.{max(0, digits - 1 - leading)}f}"


def ratio(value: float | None) -> str:
    """A factor: "3.94×"; "n/a" where there is none."""
    return MISSING if value is None or not isfinite(value) else f"{significant(value)}×"


def percent(fraction: float | None, digits: int = 0) -> str:
    """A fraction in percent: "29.7 %"; "under 1 %" rather than a nought that is none."""
    if fraction is None or not isfinite(fraction):
        return MISSING
    if 0 < fraction < 0.5 * 10 ** -(digits + 2):
        return f"under{SPACE}{10**-digits:g}{SPACE}%"
    return f"{100 * fraction:.{digits}f}{SPACE}%"
