"""Study files: what is wrong is told in one line, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_examples import document, model_file

from hwmodel.exploration.axes import Axis
from hwmodel.exploration.problem import prepare
from hwmodel.exploration.study import Study, StudyError
from hwmodel.exploration.study_files import load_study, study_from_document


@pytest.fixture
def example(tmp_path: Path) -> dict[str, Any]:
    return document(model_file(tmp_path))


def axis(**fields: Any) -> Axis:
    return Axis.model_validate({"knob": "density", **fields})


def test_ranges_have_both_ends() -> None:
    assert axis(**{"from": 0.0, "to": 1.0}, count=5).points() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert axis(**{"from": 0.0, "to": 1.0}, step=0.4).points() == (0.0, 0.4, 0.8)
    assert axis(**{"from": 16, "to": 256}, count=5, spacing="log", whole=True).points() == (16, 32, 64, 128, 256)
    assert axis(**{"from": 1, "to": 3}, count=9, whole=True).points() == (1, 2, 3)
    assert axis(values=[[32, 64], "16x16"]).points() == ("32x64", "16x16")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vary": [{"knob": "density", "values": []}]}, "vary.0: values is empty, which leaves an empty grid"),
        ({"vary": [{"knob": "density", "from": 0.0, "to": 1.0}]}, "density: a range without count or step is an infinite grid"),
        ({"vary": [{"knob": "density", "from": 0.0}]}, "vary.0: a range needs both from and to; without one end it is infinite"),
        (
            {"vary": [{"knob": "density", "from": 1.0, "to": 0.5, "count": 3}]},
            "from = 1 must be below to = 0.5; the range is empty",
        ),
        ({"vary": [{"knob": "density", "values": [1.0, 1.0]}]}, "values has entries twice"),
        ({"vary": [{"knob": "density", "valeus": [1.0]}]}, "vary.0.valeus: unknown key; did you mean 'values'"),
        ({"vary": [{"knob": "density", "values": [1.0], "relative": True}]}, "the knob is no card field"),
        ({"objectifs": []}, "objectifs: unknown key; did you mean 'objectives'"),
        ({"devices": []}, "devices: "),
        ({"devices": [{"name": "vita"}, {"name": "vita"}]}, "devices: two entries are called vita; give each a name or label"),
        ({"constraints": [{"quantity": "latency_s"}]}, "constraints.0: expected min or max"),
    ],
)
def test_a_file_that_does_not_validate_is_told_by_path(example: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(StudyError, match=r"study\.toml: ") as error:
        study_from_document({**example, **changes}, "study.toml")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vary": [{"knob": "card.clok_hz", "values": [1e9]}]}, "has a field 'clok_hz': did you mean 'card.clock_hz'"),
        ({"vary": [{"knob": "densty", "values": [1.0]}]}, "unknown knob 'densty': did you mean 'density'"),
        ({"vary": [{"knob": "keep", "values": [1.0]}], "pruning": []}, "'keep' prunes, and no [[pruning]] table"),
        ({"vary": [{"knob": "density", "values": [1.0]}], "pruning": [{"layers": "qkv"}]}, "density needs a block shape"),
        ({"vary": [{"knob": "density", "values": [0.5, 1.5]}]}, "density = 1.5: tiny on vita, full: study: pruning"),
        ({"vary": [{"knob": "card.clock_hz", "values": [1e9, 5.0]}]}, "vita: clock_hz: Input should be greater than"),
        ({"vary": [{"knob": "card.array_rows", "values": [64, 100.5, 128]}]}, "array_rows = 100.5: tiny on tpu-v3"),
        ({"vary": [{"knob": "dtype", "values": ["int8", "fp9"]}]}, "dtype = fp9"),
        ({"vary": [{"knob": "card.pe", "values": [1, 2], "relative": True}]}, "card.pe is relative, but vita has no number"),
        ({"objectives": ["latncy_s"]}, "objectives.0.quantity: unknown quantity 'latncy_s': did you mean 'latency_s'"),
        ({"objectives": ["accuracy"]}, "'accuracy' needs an [accuracy] table"),
        (
            {"constraints": [{"quantity": "energy_j", "min": 2.0}, {"quantity": "energy_j", "max": 1.0}]},
            "constraints: energy_j must be at least 2 and at most 1, which leaves nothing",
        ),
        ({"devices": [{"name": "vitta"}]}, "unknown device 'vitta': did you mean 'vita'"),
        ({"devices": [{"name": "vita", "modes": ["ful"]}]}, "unknown mode for vita 'ful': did you mean 'full'"),
        ({"devices": [{"name": "tpu-v3", "set": {"core": 1}}]}, "devices: tpu-v3: set: no field 'core': did you mean 'cores'"),
        ({"proxies": [{"name": "cycles", "terms": [{"of": ["density"]}]}]}, "cycles: quantities, proxies and axes need names"),
    ],
)  # fmt: skip
def test_what_no_card_and_no_model_has_is_told(example: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=r".") as error:
        prepare(Study.model_validate({**example, **changes}))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_lead_from_the_studys_own_folder(example: dict[str, Any], tmp_path: Path) -> None:
    text = 'name = "x"\n[[models]]\nname = "tiny.json"\n[[devices]]\nname = "vita"\nset = { pe = "16x16" }\n'
    (tmp_path / "x.toml").write_text(text)
    assert prepare(load_study(tmp_path / "x.toml")).size == 1
    with pytest.raises(StudyError, match=r"none\.toml: cannot be read"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(StudyError, match=r"x\.toml: not valid TOML"):
        load_study(tmp_path / "x.toml")
