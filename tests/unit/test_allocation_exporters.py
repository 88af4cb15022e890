"""Tables in other allocators' forms: keys as their code builds them, values against single estimates, files as they open them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml
from examples import vit

import hwmodel as hw
from hwmodel.allocation.exports.tables import halp_table, nvit_table, ofa_table, product_seconds, save_halp, save_nvit, save_ofa
from hwmodel.errors import HwmodelError

SYSTOLIC = {"device": "tpu-v3", "mode": "systolic"}
VITA = {"device": "vita", "mode": "full", "overrides": {"pe": "16x16"}}


def alone(m: int, k: int, n: int) -> float:
    return float(hw.estimate(hw.Trace.from_operators([hw.matmul(m=m, k=k, n=n)]), **SYSTOLIC).latency_s)


def test_products_cost_what_each_costs_alone() -> None:
    found = product_seconds([(197, 64, 192), (17, 64, 64), (197, 64, 192)], **SYSTOLIC)
    assert found == {(197, 64, 192): alone(197, 64, 192), (17, 64, 64): alone(17, 64, 64)}


def test_halp_finds_every_key_it_asks_for(tmp_path: Path) -> None:
    trace = vit(64, depth=1, batch=2)
    table = halp_table(trace, step=48, layers="*.fc1", **SYSTOLIC)
    assert len(table) == len([48, 64]) * len([48, 96, 144, 192, 240, 256])
    assert table["2_48_144_197_1_1_1"] == pytest.approx(alone(2 * 197, 48, 144) * 1e3)
    save_halp(table, tmp_path / "lut.pkl")
    with (tmp_path / "lut.pkl").open("rb") as file:
        assert pickle.load(file) == table


def test_once_for_all_reads_records_with_a_mean(tmp_path: Path) -> None:
    table = ofa_table(vit(64, depth=1), step=64, layers="*.fc2", **SYSTOLIC)
    key = "-".join(["Linear", "input:1x197x128", "output:1x197x64"])
    assert table[key]["mean"] == pytest.approx(alone(197, 128, 64) * 1e3)
    save_ofa(table, tmp_path / "lut.yaml")
    assert yaml.safe_load((tmp_path / "lut.yaml").read_text()) == table


def test_nvit_nests_a_block_by_its_widths(tmp_path: Path) -> None:
    table = nvit_table(embeddings=[64, 128], heads=[1, 2], qk=[16, 32], v=[32], mlp=[128, 256], tokens=17, **VITA)
    assert table.keys() == {"EMB_64", "EMB_128"}
    assert table["EMB_64"].keys() == {"QK_1_16", "QK_1_32", "QK_2_16", "QK_2_32"}
    seconds = table["EMB_128"]["QK_2_16"]["V_32"]
    rows = [
        hw.layernorm(rows=17, cols=128, name="norm1"),
        hw.matmul(m=17, k=128, n=2 * (16 + 16 + 32), name="qkv"),
        hw.matmul(m=17, k=16, n=17, batch=2, name="scores", role="scores"),
        hw.softmax(rows=34, cols=17, name="softmax"),
        hw.matmul(m=17, k=17, n=32, batch=2, name="context", role="context"),
        hw.matmul(m=17, k=64, n=128, name="proj"),
        hw.elementwise("add", elements=17 * 128, inputs=2, name="add1"),
        hw.layernorm(rows=17, cols=128, name="norm2"),
        hw.matmul(m=17, k=128, n=256, name="fc1"),
        hw.gelu(elements=17 * 256, name="act"),
        hw.matmul(m=17, k=256, n=128, name="fc2"),
        hw.elementwise("add", elements=17 * 128, inputs=2, name="add2"),
    ]
    assert seconds["MLP_256"] == pytest.approx(
        hw.estimate(hw.Trace.from_operators(rows), **VITA).latency_s, rel=1e-6
    )  # fmt: skip
    assert seconds["MLP_128"] < seconds["MLP_256"]
    save_nvit(table, tmp_path / "lut.json")
    assert json.loads((tmp_path / "lut.json").read_text()) == table


def test_what_cannot_be_tabulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HwmodelError, match="no product with a weight matches fc9"):
        halp_table(vit(64, depth=1), layers="fc9", **SYSTOLIC)
    with pytest.raises(HwmodelError, match="at least one width"):
        nvit_table(device="vita", embeddings=[64], heads=[], qk=[16], v=[16], mlp=[64])
    with pytest.raises(HwmodelError, match="does not exist"):
        save_halp({}, tmp_path / "none" / "lut.pkl")
