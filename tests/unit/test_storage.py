"""Traces on disk: what is saved loads back equal, and whatever else is told in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import pruned, vit
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, traces

import hwmodel as hw
from hwmodel.errors import HwmodelError, TraceFormatError
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.storage import SCHEMA_VERSION, trace_from_document, trace_to_document
from hwmodel.ir.trace import Trace

ENDINGS = [".json", ".parquet"]
MASK = BlockMask((64, 32), (16, 16), np.eye(4, 2))
TRACE = Trace(
    model="small",
    operators=(
        hw.matmul(m=4, k=32, n=64, mask=MASK, name="fc1", role="fc1", block=0, dtype="int8", weight_dtype="int4"),
        hw.gelu(elements=256, name="act", block=0),
        hw.matmul(m=4, k=32, n=64, mask=MASK, name="fc2", dense_macs=5 * 32 * 64, constant=True),
        hw.attention(batch=1, heads=2, queries=3, keys=4, head_dim=5, causal=True, name="attn", attention_group="g"),
    ),
    edges=((0, 1), (1, 2)),
    batch=2,
    input_shape=(2, 3, 224, 224),
    dtype="bf16",
    versions={"torch": "2.13.0"},
    design={"vita": {"pe": "32x32"}},
)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "trace", [TRACE, Trace.from_operators([]), pruned(vit(192, depth=2), (32, 32), 0.3)], ids=["small", "empty", "vit"]
)
def test_what_is_saved_loads_back_equal(tmp_path: Path, trace: Trace, ending: str) -> None:
    path = tmp_path / f"trace{ending}"
    hw.save_trace(trace, path)
    assert hw.load_trace(path) == trace
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@given(traces(dtype=st.sampled_from([None, *DTYPES])))
def test_any_trace_loads_back_equal(trace: Trace) -> None:
    assert trace_from_document(json.loads(json.dumps(trace_to_document(trace)))) == trace


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_trace_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    files = [tmp_path / f"{name}{ending}" for name in "ab"]
    for file in files:
        hw.save_trace(TRACE, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_mask_that_layers_share_is_stored_once() -> None:
    document = trace_to_document(TRACE)
    assert list(document["masks"]) == [MASK.digest]
    assert [row.get("mask") for row in document["operators"]] == [MASK.digest, None, MASK.digest, None]


def test_grids_are_packed_row_by_row_most_significant_bit_first() -> None:
    """A 4 x 2 identity is the bits 10 01 00 00: one byte, 0x90, "kA==" in base64."""
    assert trace_to_document(TRACE)["masks"][MASK.digest]["bits"] == "kA=="


def test_the_output_of_trace_json_is_a_trace(tmp_path: Path) -> None:
    """``hwmodel trace --json`` adds MACs for its readers; the file it is redirected to loads."""
    document = trace_to_document(TRACE) | {"macs": TRACE.macs, "kept_macs": TRACE.kept_macs}
    for row, operator in zip(document["operators"], TRACE.operators, strict=True):
        row |= {"macs": operator.macs, "kept_macs": operator.kept_macs}
    assert trace_from_document(document) == TRACE


# --- what is no trace ---------------------------------------------------------------------------------------------


def changed(**fields: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(trace_to_document(TRACE))), **fields}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in changed().items() if name != field}


def with_row(**fields: Any) -> dict[str, Any]:
    document = changed()
    document["operators"][0] |= fields
    return document


def with_mask(**fields: Any) -> dict[str, Any]:
    document = changed()
    document["masks"][MASK.digest] |= fields
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1, 2], "not a trace"),
        ("trace", "not a trace"),
        ({}, "not a trace: expected a JSON object with format 'hwmodel-trace'"),
        (changed(format="onnx"), "not a trace"),
        (changed(schema_version=99), f"schema_version is 99, this hwmodel reads {SCHEMA_VERSION}"),
        (changed(batch="2"), "field batch: .*integer, found '2'"),
        (changed(batch=0), "field batch: .*greater than or equal to 1"),
        (changed(model=None), "field model"),
        (changed(input_shape="224"), "field input_shape"),
        (changed(versions=[1]), "field versions"),
        (changed(design={"vita": "32x32"}), r"field design\.vita"),
        (changed(edges=[[0]]), r"field edges\.0"),
        (changed(edges=[[0.5, 1]]), r"field edges\.0\.0"),
        (changed(edges=[[2, 1]]), r"edge \(2, 1\) must lead forward"),
        (changed(operators=5), "field operators"),
        (changed(operators=["fc1"]), r"field operators\.0"),
        (changed(dtype="fp12"), "unknown dtype 'fp12'"),
        (changed(surprise=1), "field surprise"),
        (without("edges"), "field edges: Field required"),
        (with_row(m=-4), "fc1: m must not be negative"),
        (with_row(m=4.5), "field m: .*integer, found '4.5'"),
        (with_row(m=float("nan")), "field m"),
        (with_row(m=10**30), r"fc1: m must not be beyond 2\*\*53"),
        (with_row(kind=3), "field kind"),
        (with_row(hidden=3), "field hidden"),
        (with_row(name="act"), "names must be unique; these repeat: act"),
        (with_row(dtype="float"), "unknown dtype 'float'"),
        (with_row(mask="0" * 64), "operator 'fc1': mask '0+' is not in the file"),
        (with_row(n=128), r"fc1: mask is for a weight of \(64, 32\)"),
        (with_mask(bits="AA=="), "mask .*: its content has another digest"),
        (with_mask(bits=""), "0 bytes of mask bits do not hold 4x2 blocks"),
        (with_mask(bits="kJCQ"), "3 bytes of mask bits do not hold 4x2 blocks"),
        (with_mask(bits="not base 64"), f"mask {MASK.digest}: .*base64"),
        (with_mask(shape=[64.0, 32]), "two whole numbers"),
        (with_mask(block=[128, 16]), "128x16 does not fit"),
        (with_mask(rule="magic"), "mask rule is 'magic'"),
        (changed(masks={MASK.digest: {}}), "mask .*: the field 'shape' is missing"),
        (with_mask(shape=5), "mask .*: "),
    ],
)
def test_documents_that_are_no_trace_are_refused(document: Any, message: str) -> None:
    with pytest.raises(HwmodelError, match=message) as caught:
        trace_from_document(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": "hwmodel-trace"', b"\xff\xfe\x00", b"[]", b"null", b"PAR1PAR1", b"<html>"]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_foreign_files_are_refused_with_their_path(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"foreign{ending}"
    path.write_bytes(content)
    with pytest.raises(TraceFormatError, match=f"foreign{ending}: "):
        hw.load_trace(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_files_are_refused(tmp_path: Path, ending: str) -> None:
    whole, part = tmp_path / f"whole{ending}", tmp_path / f"part{ending}"
    hw.save_trace(TRACE, whole)
    data = whole.read_bytes()
    for length in range(0, len(data) - 1, 97):
        part.write_bytes(data[:length])
        with pytest.raises(TraceFormatError, match=f"part{ending}: not "):
            hw.load_trace(part)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_load_or_are_refused_but_never_crash(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"damaged{ending}"
    hw.save_trace(TRACE, path)
    data, dice = path.read_bytes(), random.Random(3)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            hw.load_trace(path)
        except HwmodelError as error:
            assert "damaged" in str(error) and "None" not in str(error)


@pytest.mark.parametrize("header", [None, "{", "[]", "3", '{"format": "hwmodel-trace"}'])
def test_a_parquet_table_of_something_else_is_refused(tmp_path: Path, header: str | None) -> None:
    path = tmp_path / "table.parquet"
    table = pa.table({"name": ["fc1"], "kind": ["matmul"]})
    pq.write_table(table if header is None else table.replace_schema_metadata({"hwmodel": header}), path)
    with pytest.raises(TraceFormatError, match=r"table\.parquet: "):
        hw.load_trace(path)


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match=r"none\.json: cannot be read \(No such file or directory\)"):
        hw.load_trace(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(TraceFormatError, match=r"folder\.json: cannot be read"):
        hw.load_trace(tmp_path / "folder.json")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HwmodelError, match=r"trace\.yaml: expected a file name that ends in \.json or \.parquet"):
        hw.save_trace(TRACE, tmp_path / "trace.yaml")
    assert not list(tmp_path.iterdir())
