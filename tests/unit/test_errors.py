"""What an error suggests."""

from __future__ import annotations

import pytest

from hwmodel.errors import suggestion

NAMES = ["v100", "h100", "a100-40gb", "a100-80gb", "deit_tiny_patch16_224", "rdnet_tiny"]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("a100", "did you mean 'a100-40gb' or 'a100-80gb' or 'v100'?"),
        ("deit_tiny", "did you mean 'deit_tiny_patch16_224' or 'rdnet_tiny'?"),
        ("h10", "did you mean 'h100' or 'v100'?"),
    ],
)
def test_names_that_begin_so_come_first(found: str, told: str) -> None:
    assert suggestion(found, NAMES) == told


def test_where_nothing_is_near_the_names_are_listed() -> None:
    assert suggestion("", NAMES).startswith("expected one of a100-40gb, ")
    assert suggestion("zzz", ["a", "b"]) == "expected one of a, b"
    assert suggestion("zzz", [f"name{index}" for index in range(14)]).endswith(", and 2 more")
