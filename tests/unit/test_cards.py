"""Cards: read, checked with every problem at once, and resolved to the numbers a backend uses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit

from hwmodel.backends.cards import Card, listed_cards, load_card, read_card, shipped_cards
from hwmodel.backends.registry import get_backend
from hwmodel.content import content_folder
from hwmodel.errors import CardError, HwmodelError, UnknownNameError

VITA = content_folder("simulators") / "vita" / "card.toml"


@pytest.fixture
def document() -> Any:
    """The shipped ViTA card, to be changed."""
    return tomlkit.parse(VITA.read_text(encoding="utf-8"))


@pytest.fixture
def read(tmp_path: Path):
    """Write a document (or text) as a card file and read it."""

    def write_and_read(document: Any) -> Card:
        path = tmp_path / "card.toml"
        path.write_text(document if isinstance(document, str) else tomlkit.dumps(document), encoding="utf-8")
        return read_card(path)

    return write_and_read


def with_power_modes(document: Any) -> Any:
    document["default_mode"] = "full+high"
    slow = {"value": 5e8, "fidelity": "published", "source": "a test"}
    document["power_modes"] = {"low": {"clock_hz": slow}, "high": {}}
    return document


# --- names and modes ----------------------------------------------------------------------------------------------


def test_shipped_cards_are_named_like_their_folders() -> None:
    folders = sorted(path.parent.name for path in content_folder("simulators").glob("*/card.toml"))
    assert sorted(shipped_cards()) == folders
    assert "vita" in folders


def test_no_two_machines_share_a_name() -> None:
    names = Counter(name for card in shipped_cards().values() for name in [card.name, *card.aliases])
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("card", shipped_cards().values(), ids=lambda card: card.name)
def test_assumed_numbers_of_shipped_cards_lie_within_their_range(card: Card) -> None:
    tables = {"parameters": card.parameters, **card.power_modes}
    outside = [
        f"{table}.{name}"
        for table, entries in tables.items()
        for name, entry in entries.items()
        if entry.range is not None and isinstance(entry.value, float | int) and not entry.range[0] <= entry.value <= entry.range[1]
    ]
    assert outside == []


def test_a_card_is_found_by_name_alias_and_path(read, document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_card("vita") is shipped_cards()["vita"]
    for card in shipped_cards().values():
        assert all(load_card(alias) is card for alias in card.aliases)
    document["name"] = "mine"
    read(document)
    monkeypatch.chdir(tmp_path)
    assert [load_card(path).name for path in (tmp_path / "card.toml", "card.toml", "./card.toml")] == ["mine"] * 3


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'vitta': did you mean 'vita'"):
        load_card("vitta")
    with pytest.raises(UnknownNameError, match=r"unknown device 'zzz': expected one of a100-\S+, .*, and \d+ more"):
        load_card("zzz")
    with pytest.raises(CardError, match=r"none/card\.toml: cannot be read \(No such file or directory\)"):
        load_card("none/card.toml")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ("full", "high")),
        ("paper", ("paper", "high")),
        ("low", ("full", "low")),
        ("paper+low", ("paper", "low")),
        ("low+paper", ("paper", "low")),
    ],
)
def test_modes_name_an_execution_mode_a_power_mode_or_both(read, document, asked: str | None, expected: tuple[str, str]) -> None:
    assert read(with_power_modes(document)).split_mode(asked) == expected


@pytest.mark.parametrize("asked", ["", "fast", "paper+fast", "paper+full", "low+high", "paper+", "+low", "paper+low+low"])
def test_modes_that_do_not_exist_are_refused(read, document, asked: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown mode for vita"):
        read(with_power_modes(document)).split_mode(asked)


def test_a_card_without_power_modes_has_none() -> None:
    vita = load_card("vita")
    assert vita.split_mode(None) == ("full", None)
    with pytest.raises(UnknownNameError, match="unknown mode for vita 'papr': did you mean 'paper'"):
        vita.split_mode("papr")


def test_formats_of_another_device_are_refused() -> None:
    load_card("vita").check_dtype("int8")
    with pytest.raises(UnknownNameError, match="unknown dtype for vita 'tf32': did you mean"):
        load_card("vita").check_dtype("tf32")


# --- what a file may hold -----------------------------------------------------------------------------------------


def entry(value: Any) -> dict[str, Any]:
    return {"value": value, "fidelity": "assumed", "source": "a test"}


NO_NUMBERS = [-1.0, 0.0, float("nan"), float("inf"), float("-inf"), True, "1e9", [1e9], {"int8": 1e9}]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_numbers_must_be_positive_and_finite(read, document, value: Any) -> None:
    document["parameters"]["clock_hz"] = entry(value)
    with pytest.raises(CardError, match=r"card\.toml: parameters\.clock_hz"):
        read(document)


@pytest.mark.parametrize("value", [-1e-12, 0.0, float("nan"), float("inf"), "1e-12", True], ids=repr)
def test_numbers_in_tables_must_be_positive_and_finite(read, document, value: Any) -> None:
    document["parameters"]["mac_j"] = entry({"int8": value})
    with pytest.raises(CardError, match=r"parameters\.mac_j"):
        read(document)


def test_a_wrong_unit_is_named_with_the_right_field(read, document) -> None:
    document["parameters"]["clock_mhz"] = document["parameters"].pop("clock_hz")
    with pytest.raises(CardError) as caught:
        read(document)
    told = str(caught.value)
    assert "parameters.clock_mhz: unknown field; did you mean 'clock_hz'?" in told
    assert "parameters.clock_hz: missing" in told


def test_every_problem_is_told_at_once_in_one_line(read, document) -> None:
    del document["title"]
    document["nmae"] = "x"
    document["dtypes"] = ["int8", "float8"]
    document["default_dtype"] = "fp16"
    document["default_mode"] = "fast"
    document["parameters"]["buffer_bytes"]["value"] = -1
    document["parameters"]["dram_bytes_per_s"]["value"] = float("nan")
    del document["parameters"]["mac_j"]["source"]
    document["title"] = ""
    document["fidelity"]["chip"] = document["fidelity"].pop("paper")
    with pytest.raises(CardError) as caught:
        read(document)
    told = str(caught.value)
    assert "\n" not in told
    for field in ("title", "nmae", "parameters.buffer_bytes", "parameters.dram_bytes_per_s", "parameters.mac_j.source: missing"):
        assert field in told


def test_names_that_must_agree_are_all_compared(read, document) -> None:
    document["dtypes"] = ["int8", "float8"]
    document["default_dtype"] = "fp16"
    document["default_mode"] = "fast"
    document["fidelity"]["chop"] = document["fidelity"].pop("paper")
    with pytest.raises(CardError) as caught:
        read(document)
    told = str(caught.value)
    assert "dtypes: unknown dtype 'float8'" in told
    assert "default_dtype: 'fp16' is not among dtypes" in told
    assert "default_mode: unknown mode for vita 'fast'" in told
    assert "fidelity.paper: missing" in told
    assert "fidelity.chop: the backend has no such mode" in told


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "schema_version"),
        ("schema_version", "1", "schema_version"),
        ("name", "Vita 2", "name"),
        ("backend", "vitta", "backend: unknown backend 'vitta': did you mean 'vita'"),
        ("backend", ["vita"], "backend"),
        ("dtypes", [], "dtypes"),
        ("dtypes", "int8", "dtypes"),
        ("parameters", 3, "parameters"),
        ("power_modes", 3, "power_modes"),
        ("power_modes", {"low": 3}, r"power_modes\.low"),
        ("aliases", "v", "aliases"),
        ("surprise", 1, "surprise: unknown field"),
    ],
)
def test_fields_of_another_type_are_refused(read, document, field: str, value: Any, message: str) -> None:
    document[field] = value
    with pytest.raises(CardError, match=message):
        read(document)


def test_a_bare_number_without_source_is_refused_once(read, document) -> None:
    document["parameters"]["clock_hz"] = 1e9
    with pytest.raises(CardError, match=r"parameters\.clock_hz") as caught:
        read(document)
    assert "clock_hz: missing" not in str(caught.value)


@pytest.mark.parametrize("bounds", [[9.0, 4.0], [4.0], [1.0, 2.0, 3.0], [float("nan"), 1.0]])
def test_ranges_ascend(read, document, bounds: list[float]) -> None:
    document["parameters"]["cycles_per_layer"]["range"] = bounds
    with pytest.raises(CardError, match=r"parameters\.cycles_per_layer\.range"):
        read(document)


def test_a_repeated_key_and_broken_toml_are_refused(read, tmp_path: Path) -> None:
    text = VITA.read_text(encoding="utf-8")
    with pytest.raises(CardError, match=r"card\.toml: not valid TOML: .*(?i:overwrite|twice|duplicate)"):
        read(text.replace('name = "vita"\n', 'name = "vita"\nname = "vita"\n'))
    with pytest.raises(CardError, match="not valid TOML"):
        read(text[: len(text) // 2] + "[")
    (tmp_path / "card.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CardError, match="not valid TOML"):
        read_card(tmp_path / "card.toml")
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path)


# --- power modes --------------------------------------------------------------------------------------------------


def test_a_power_mode_replaces_some_numbers(read, document) -> None:
    card = read(with_power_modes(document))
    assert card.resolve("full").clock_hz == 1e9
    assert card.resolve("low").clock_hz == 5e8
    assert card.resolve("paper+low", {"clock_hz": 7e8}).clock_hz == 7e8


def test_a_card_with_power_modes_has_a_default_one(read, document) -> None:
    with_power_modes(document)["default_mode"] = "full"
    with pytest.raises(CardError, match=r"default_mode: must name a power mode after '\+'"):
        read(document)


def test_problems_of_every_power_mode_are_told_each_once(read, document) -> None:
    with_power_modes(document)
    document["parameters"]["buffer_bytes"]["value"] = -1
    document["power_modes"]["low"]["clock_hz"]["value"] = -1
    document["power_modes"]["high"]["dram_bytes_per_s"] = entry(float("inf"))
    document["power_modes"]["high"]["clock_mhz"] = entry(3.0)
    with pytest.raises(CardError) as caught:
        read(document)
    told = str(caught.value)
    for field in ("parameters.buffer_bytes", "power_modes.low.clock_hz", "power_modes.high.dram_bytes_per_s", "high.clock_mhz"):
        assert told.count(field) == 1, told


# --- resolving ----------------------------------------------------------------------------------------------------


def test_resolved_numbers_are_the_cards() -> None:
    card = load_card("vita")
    parameters = card.resolve()
    assert parameters.clock_hz == card.parameters["clock_hz"].value == 1e9
    assert card.resolve(overrides={"clock_hz": 2e9}).clock_hz == 2e9
    assert card.resolve().clock_hz == 1e9
    assert card.resolve(overrides={"clock_hz": np.float32(2e9)}).clock_hz == 2e9
    assert card.resolve(overrides={"clock_hz": np.int64(2_000_000_000)}).clock_hz == 2e9


def test_an_entry_of_a_table_has_a_dotted_name() -> None:
    changed = load_card("vita").resolve(overrides={"mac_j.int8": 1e-12, "paper_pe_by_width.512": "32x16"})
    assert changed.mac_j == {**load_card("vita").resolve().mac_j, "int8": 1e-12}
    assert changed.paper_pe_by_width["512"] == "32x16"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"clock_mhz": 1e3}, "unknown field of vita 'clock_mhz': did you mean 'clock_hz'"),
        ({"mac_j.in8": 1e-12}, "unknown dtype 'in8': did you mean 'int8'"),
        ({"clock_hz.fp16": 1e9}, "clock_hz is no table"),
        ({"clock_hz": -1e9}, "vita: clock_hz: .*greater than"),
        ({"clock_hz": float("nan")}, "vita: clock_hz"),
        ({"clock_hz": "fast"}, "vita: clock_hz: .*found 'fast'"),
        ({"clock_hz": True}, "vita: clock_hz"),
        ({"clock_hz": None}, "vita: clock_hz"),
        ({"mac_j.int8": 0}, r"vita: mac_j\.int8"),
        ({"pe": "32"}, "vita: pe"),
        ({"pe": "0x32"}, "vita: pe"),
        ({"clock_hz": [1e9, -1e9]}, "vita: clock_hz"),
        ({"clock_hz": [1e9, float("nan")]}, "vita: clock_hz"),
        ({"clock_hz": []}, "vita: clock_hz: only numbers can be swept"),
        ({"pe": ["32x32", "16x16"]}, "vita: pe: only numbers can be swept"),
        ({"clock_hz": [1e9, 2e9], "buffer_bytes": [1.0, 2.0, 3.0]}, "clock_hz has 2, buffer_bytes has 3"),
    ],
    ids=str,
)
def test_overrides_that_cannot_be_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmodelError, match=message):
        load_card("vita").resolve(overrides=overrides)


@pytest.mark.parametrize("given", [[1e9, 2e9], (1e9, 2e9), np.array([1e9, 2e9]), np.array([[1e9], [2e9]]), [10**9, 2 * 10**9]])
def test_swept_numbers_become_columns_of_designs(given: Any) -> None:
    swept = load_card("vita").resolve(overrides={"clock_hz": given}).clock_hz
    assert swept.tolist() == [[1e9], [2e9]]
    assert swept.dtype == np.float64


def test_one_entry_of_a_table_can_be_swept() -> None:
    swept = load_card("vita").resolve(overrides={"mac_j.int8": [1e-13, 2e-13], "clock_hz": [1e9, 2e9]})
    assert swept.mac_j["int8"].tolist() == [[1e-13], [2e-13]]
    assert swept.mac_j["fp16"] == load_card("vita").resolve().mac_j["fp16"]


def test_a_field_that_is_a_list_is_replaced_not_swept() -> None:
    tpu = load_card("tpu-v3")
    steps = tpu.resolve().host_step_s
    doubled = [2 * step for step in steps]
    assert tpu.resolve(overrides={"host_step_s": doubled}).host_step_s == doubled


# --- the scoreboard beside a card ---------------------------------------------------------------------------------

SCORE = {
    "quantity": "latency", "mode": "paper", "dtypes": ["int8"], "against": "LSP Table 5", "rows": 12,
    "median": 0.01, "mean": 0.015, "p90": 0.03, "max": 0.05, "bias": -0.001, "rank": 0.99, "band": True,
}  # fmt: skip


def test_scores_beside_a_card_are_read(read, document, tmp_path: Path) -> None:
    (tmp_path / "scores.toml").write_text(tomlkit.dumps({"scores": [SCORE]}))
    (score,) = read(document).scores
    assert score.model_dump() == SCORE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("median", -0.1),
        ("p90", float("nan")),
        ("max", float("inf")),
        ("bias", float("nan")),
        ("rank", 1.1),
        ("rows", 0),
        ("quantity", "speed"),
    ],
)
def test_scores_that_are_no_error_are_refused(read, document, tmp_path: Path, field: str, value: Any) -> None:
    (tmp_path / "scores.toml").write_text(tomlkit.dumps({"scores": [SCORE | {field: value}]}))
    with pytest.raises(CardError, match=rf"scores\.toml: scores\.0\.{field}"):
        read(document)


# --- the registry -------------------------------------------------------------------------------------------------


def test_unknown_backends_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown backend 'tpuu': did you mean 'tpu'"):
        get_backend("tpuu")


def test_backends_keep_no_state_and_are_made_once() -> None:
    assert get_backend("vita") is get_backend("vita")
    assert get_backend("vita").name == "vita"


@pytest.mark.parametrize(
    ("field", "value"), [("dram_j_per_byte", 64.0), ("mac_j.int8", 0.15), ("static_w_per_mac", 2e5), ("dram_bytes_per_s", 1e17)]
)
def test_a_number_in_another_unit_is_refused(field: str, value: float) -> None:
    """Picojoules or milliwatts where the field's name says joules and watts."""
    with pytest.raises(CardError, match=field.partition(".")[0]):
        load_card("vita").resolve(None, {field: value})


def test_the_quick_list_shows_the_cards_that_are_checked_in_full() -> None:
    assert {card.name: card for card in listed_cards()} == dict(shipped_cards())
    assert all(set(card.fidelity) == set(get_backend(card.backend).modes) for card in listed_cards())
