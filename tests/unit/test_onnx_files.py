"""ONNX graphs written by hand: quantised layers, free sizes, external weights, and files that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.extraction.onnx_files.layouts import memory_order, viewed

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT = onnx.TensorProto.FLOAT


def write(
    path: Path, nodes: Sequence[object], weights: dict[str, np.ndarray], shape: Sequence[int | str] = (1, 6, 8), opset: int = 20
) -> Path:
    """A model with input "x" and output "y"."""
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32) + 0.5


def linear(path: Path, shape: Sequence[int | str] = (1, 6, 8)) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["b", "xw"], ["y"], name="/fc/Add")]
    return write(path, nodes, {"w": floats(8, 4), "b": floats(4)}, shape)


def test_a_product_and_the_vector_added_to_it_are_one_linear_layer(tmp_path: Path) -> None:
    trace = hw.trace(linear(tmp_path / "linear.onnx"))
    (only,) = trace.operators
    assert (only.kind, only.m, only.k, only.n) == ("matmul", 6, 8, 4)
    assert only.weight_bytes == 4 * (8 * 4 + 4)
    assert (only.input_bytes, only.output_bytes) == (4 * 6 * 8, 4 * 6 * 4)
    assert (trace.model, trace.input_shape) == ("linear", (1, 6, 8))


def test_a_free_batch_takes_the_one_asked_for_and_a_fixed_one_refuses_another(tmp_path: Path) -> None:
    assert hw.trace(linear(tmp_path / "free.onnx", ("images", 6, 8)), batch=5).operators[0].m == 5 * 6
    with pytest.raises(HwmodelError, match="exported at batch 1, not 5"):
        hw.trace(linear(tmp_path / "fixed.onnx"), batch=5)
    with pytest.raises(HwmodelError, match=r"input 'x' has a free axis 1 \(tokens\)"):
        hw.trace(linear(tmp_path / "tokens.onnx", (1, "tokens", 8)))


def test_image_size_fills_a_free_height_and_width(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "patch_embed.weight"], ["y"], kernel_shape=[8, 8], strides=[8, 8])]
    file = write(tmp_path / "conv.onnx", nodes, {"patch_embed.weight": floats(4, 3, 8, 8)}, ("n", 3, "height", "width"))
    (only,) = hw.trace(file, image_size=(16, 32)).operators
    assert (only.kind, only.role, only.m, only.k, only.n) == ("conv", "patch_embed", 2 * 4, 3 * 64, 4)
    with pytest.raises(HwmodelError, match=r"free height.*give image_size"):
        hw.trace(file)


def test_dequantised_weights_are_int8_and_products_of_two_dequantised_operands_run_in_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "s", "z"], ["hd"]),
        helper.make_node("MatMul", ["hd", "w"], ["y"]),
    ]
    weights = {"w8": np.ones((8, 8), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    first, cast, second = hw.trace(write(tmp_path / "qdq.onnx", nodes, weights)).operators
    assert (first.dtype, first.weight_dtype, first.weight_bytes) == (None, "int8", 8 * 8)
    assert cast.kind == "cast"
    assert (second.dtype, second.input_bytes, second.weight_bytes) == ("int8", 6 * 8, 8 * 8)


def test_arithmetic_on_shapes_is_done_here(tmp_path: Path) -> None:
    """As TorchScript writes ``x.reshape(x.shape[0], -1)`` and 1 / sqrt(depth)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["flat"]),
        helper.make_node("Cast", ["n", ], ["nf"], to=FLOAT),
        helper.make_node("Sqrt", ["nf"], ["root"]),
        helper.make_node("Mul", ["flat", "root"], ["y"]),
    ]  # fmt: skip
    numbers = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1])}
    (only,) = hw.trace(write(tmp_path / "shapes.onnx", nodes, numbers)).operators
    assert (only.kind, only.elements, only.input_elements, only.weight_elements) == ("mul", 48, 48, 0)


def test_a_reshape_copies_only_where_memory_has_to_move(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "flat"], ["f"]),
        helper.make_node("Reshape", ["f", "pairs"], ["y"]),
    ]
    numbers = {"flat": np.array([48]), "pairs": np.array([24, 2])}
    assert [op.kind for op in hw.trace(write(tmp_path / "views.onnx", nodes, numbers)).operators] == ["copy"]
    assert viewed((2, 3, 4), (12, 4, 1), (6, 2, 2)) == (4, 2, 1)
    assert viewed((3, 2), (1, 3), (6,)) is None
    assert memory_order((2, 3, 4), (12, 1, 3)) == (12, 1, 3)


def test_attention_with_both_factors_scaled_is_one_fused_attention(tmp_path: Path) -> None:
    """Eight keys of depth 8 per head; a scale on the queries alone stays a multiplication of its own."""
    scaled = [
        helper.make_node("Mul", ["x", "scale"], ["q"]),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["t", "scale"], ["k"]),
    ]
    plain = [scaled[0], helper.make_node("Transpose", ["x"], ["k"], perm=[0, 2, 1])]
    rest = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["y"]),
    ]
    fused = hw.trace(write(tmp_path / "fused.onnx", [*scaled, *rest], {"scale": np.float32(0.5)}))
    unfused = hw.trace(write(tmp_path / "unfused.onnx", [*plain, *rest], {"scale": np.float32(0.5)}))
    assert [op.kind for op in fused.operators] == ["matmul", "softmax", "matmul"]
    assert [op.kind for op in unfused.operators] == ["mul", "matmul", "softmax", "matmul"]
    assert {op.fused_in_source for op in fused.operators} == {True}
    assert {op.fused_in_source for op in unfused.operators} == {False}
    assert fused.macs == unfused.macs == 2 * 6 * 6 * 8


def test_external_weights_need_not_be_there_unless_their_zeros_are_looked_for(tmp_path: Path) -> None:
    file = linear(tmp_path / "model.onnx")
    model = onnx.load(file)
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    assert hw.trace(tmp_path / "big.onnx").macs == hw.trace(file).macs
    (tmp_path / "big.bin").unlink()
    with pytest.raises(HwmodelError, match=r"big\.onnx: weight .* cannot be read"):
        hw.trace(tmp_path / "big.onnx")


def test_operators_without_a_model_are_listed_with_their_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["square"], ["d"], name="the_det"),
        helper.make_node("Bernoulli", ["x"], ["r"], name="a_coin"),
        helper.make_node("Add", ["r", "d"], ["y"]),
    ]
    weights = {"square": floats(8, 8)}
    with pytest.raises(UnsupportedOperatorError, match=r"Det x1 \(the_det\).*Bernoulli x1 \(a_coin\)"):
        hw.trace(write(tmp_path / "odd.onnx", nodes, weights))
    foreign = [helper.make_node("Frobnicate", ["x"], ["y"], name="theirs", domain="com.acme")]
    with pytest.raises(UnsupportedOperatorError, match=r"com\.acme::Frobnicate x1 \(theirs\)"):
        hw.trace(write(tmp_path / "foreign.onnx", foreign, {}))


def test_shapes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"], name="where")]
    with pytest.raises(HwmodelError, match="'y' depends on data or cannot be inferred"):
        hw.trace(write(tmp_path / "data.onnx", nodes, {}))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_told_in_one_line(tmp_path: Path, share: float) -> None:
    whole = linear(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(HwmodelError, match=r"cut\.onnx: (not an ONNX file|holds no ONNX graph)") as caught:
        hw.trace(tmp_path / "cut.onnx")
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(HwmodelError, match="no such file"):
        hw.trace(tmp_path / "none.onnx")
