"""From model to trace: names, roles, blocks, edges, dtypes, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwmodel as hw
from hwmodel.errors import HwmodelError, UnknownNameError, UnsupportedOperatorError
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace


@pytest.fixture(scope="module")
def deit() -> Trace:
    return hw.trace("deit_tiny_patch16_224")


@pytest.fixture(scope="module")
def swin() -> Trace:
    return hw.trace("swin_tiny_patch4_window7_224")


def _roles(trace: Trace) -> Counter[str]:
    return Counter(operator.role for operator in trace.operators if operator.role)


def _producers(trace: Trace, name: str) -> set[str]:
    return {trace.operators[a].name for a, b in trace.edges if trace.operators[b].name == name}


def test_deit_rows_of_one_block_in_order(deit: Trace) -> None:
    rows = [operator.name.removeprefix("blocks.3.") for operator in deit.operators if operator.block == 3]
    assert rows == [
        "norm1", "attn.qkv", "attn.scores", "attn.softmax", "attn.context", "attn.copy", "attn.proj", "add",
        "norm2", "mlp.fc1", "mlp.act", "mlp.fc2", "add_1",
    ]  # fmt: skip


def test_deit_roles(deit: Trace) -> None:
    per_block = dict.fromkeys(["qkv", "scores", "context", "proj", "fc1", "fc2"], 12)
    assert _roles(deit) == {"patch_embed": 1, "head": 1, **per_block}


def test_deit_shapes_follow_the_conventions(deit: Trace) -> None:
    tokens, width, heads = 14 * 14 + 1, 192, 3
    shapes = {name: (row.batch, row.m, row.k, row.n) for name in _PRODUCTS if (row := deit[name])}
    assert shapes == {
        "patch_embed.proj": (1, 14 * 14, 3 * 16 * 16, width),
        "blocks.0.attn.qkv": (1, tokens, width, 3 * width),
        "blocks.0.attn.scores": (heads, tokens, width // heads, tokens),
        "blocks.0.attn.context": (heads, tokens, tokens, width // heads),
        "blocks.0.mlp.fc1": (1, tokens, width, 4 * width),
        "head": (1, 1, width, 1000),
    }


_PRODUCTS = ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.scores", "blocks.0.attn.context", "blocks.0.mlp.fc1", "head")


def test_bias_rides_in_the_product(deit: Trace) -> None:
    qkv = deit["blocks.0.attn.qkv"]
    assert qkv.weight_elements == 192 * 576 + 576
    assert qkv.parameter
    assert not deit["blocks.0.attn.scores"].parameter


def test_attention_group_is_fused_in_source(deit: Trace) -> None:
    group = [operator for operator in deit.operators if operator.attention_group == "blocks.3.attn"]
    assert [operator.kind for operator in group] == ["matmul", "softmax", "matmul", "copy"]
    assert all(operator.fused_in_source for operator in group)


def test_edges_pass_through_views(deit: Trace) -> None:
    assert _producers(deit, "blocks.0.attn.scores") == {"blocks.0.attn.qkv"}
    assert _producers(deit, "blocks.0.attn.context") == {"blocks.0.attn.qkv", "blocks.0.attn.softmax"}
    assert _producers(deit, "blocks.0.add_1") == {"blocks.0.add", "blocks.0.mlp.fc2"}
    assert _producers(deit, "head") == {"norm"}


def test_every_row_but_the_last_is_read(deit: Trace) -> None:
    assert {a for a, _ in deit.edges} == set(range(len(deit) - 1))


def test_batch_multiplies_tokens_and_heads() -> None:
    trace = hw.trace("deit_tiny_patch16_224", batch=4)
    assert trace.batch == 4
    assert trace.input_shape == (4, 3, 224, 224)
    assert trace["blocks.0.attn.qkv"].m == 4 * 197
    assert trace["blocks.0.attn.scores"].batch == 4 * 3
    assert trace["head"].m == 4


@pytest.mark.parametrize(("size", "tokens"), [(384, 24 * 24 + 1), ((224, 320), 14 * 20 + 1)])
def test_image_size(size: int | tuple[int, int], tokens: int) -> None:
    assert hw.trace("deit_tiny_patch16_224", image_size=size)["blocks.0.attn.qkv"].m == tokens


def test_math_attention_gives_the_same_roles_and_macs(deit: Trace) -> None:
    math = hw.trace("deit_tiny_patch16_224", fused_attention=False)
    assert math.macs == deit.macs
    assert _roles(math) == _roles(deit)
    group = [operator for operator in math.operators if operator.attention_group == "blocks.3.attn"]
    assert [operator.kind for operator in group] == ["mul", "matmul", "softmax", "matmul", "copy"]
    assert not any(operator.fused_in_source for operator in math.operators)


def test_building_with_math_attention_leaves_timm_as_it_was(deit: Trace) -> None:
    hw.trace("deit_tiny_patch16_224", fused_attention=False)
    assert hw.trace("deit_tiny_patch16_224") == deit


def test_a_module_gives_the_rows_of_its_name(deit: Trace) -> None:
    import timm

    model = timm.create_model("deit_tiny_patch16_224")
    assert hw.trace(model, example=torch.zeros(1, 3, 224, 224)) == deit
    assert hw.trace(model) == deit


def test_same_bytes_twice(tmp_path, swin: Trace) -> None:
    again = hw.trace("swin_tiny_patch4_window7_224")
    for number, trace in enumerate((swin, again)):
        hw.save_trace(trace, tmp_path / f"{number}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert hw.load_trace(tmp_path / "0.json") == swin


def test_versions_of_the_makers(deit: Trace) -> None:
    assert set(deit.versions) == {"torch", "timm", "hwmodel"}


def test_swin_blocks_are_numbered_through(swin: Trace) -> None:
    assert swin["layers.2.blocks.1.attn.qkv"].block == 2 + 2 + 1
    assert max(operator.block or 0 for operator in swin.operators) == 2 + 2 + 6 + 2 - 1
    assert swin["layers.1.downsample.reduction"].block is None


def test_swin_windows_are_in_the_batch(swin: Trace) -> None:
    windows, heads, width = 8 * 8, 3, 96
    scores = swin["layers.0.blocks.0.attn.scores"]
    assert (scores.batch, scores.m, scores.k, scores.n) == (windows * heads, 49, width // heads, 49)


def test_swin_group_holds_bias_and_shift_mask(swin: Trace) -> None:
    group = [operator for operator in swin.operators if operator.attention_group == "layers.0.blocks.1.attn"]
    assert [operator.kind for operator in group] == ["mul", "matmul", "add", "add", "softmax", "matmul", "copy"]


def test_swin_position_bias_is_constant(swin: Trace) -> None:
    bias = swin["layers.0.blocks.0.attn.gather"]
    assert bias.constant
    assert bias.kind == "gather"
    assert bias.elements == 49 * 49 * 3
    assert not swin["layers.0.blocks.0.attn.softmax"].constant


def test_swin_shift_is_a_roll_each_way(swin: Trace) -> None:
    assert Counter(operator.kind for operator in swin.operators)["roll"] == 2 * 5  # every second block but the last one


def test_swin_v2_constant_products_still_count() -> None:
    trace = hw.trace("swinv2_tiny_window8_256")
    bias = trace["layers.0.blocks.0.attn.cpb_mlp.0"]
    assert bias.constant
    assert bias.role == ""
    assert bias.macs == 15 * 15 * 2 * 512
    assert _producers(trace, "layers.0.blocks.0.attn.cpb_mlp.2") == {"layers.0.blocks.0.attn.cpb_mlp.1"}  # after an in-place relu


def test_distilled_has_two_heads() -> None:
    trace = hw.trace("deit_tiny_distilled_patch16_224")
    assert [operator.name for operator in trace.operators if operator.role == "head"] == ["head", "head_dist"]
    assert trace["blocks.0.attn.qkv"].m == 14 * 14 + 2


def test_layer_scale_and_norms_of_queries_are_rows() -> None:
    scaled = hw.trace("deit3_small_patch16_224")
    assert scaled["blocks.0.ls1"].kind == "mul"
    assert scaled["blocks.0.ls1"].weight_elements == 384


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Selecting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0] * 2


class Reading(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.detach().numpy().sum())


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Branching(), "inner"),
        (Selecting(), "forward"),
        (nn.Sequential(nn.Identity(), Selecting()), "1"),
        (nn.Sequential(Reading()), "0"),
    ],
)
def test_a_forward_that_depends_on_data_is_refused(model: nn.Module, where: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HwmodelError, match=f"depends on.* data.*{where}|{where}.*depends on the data") as caught:
        hw.trace(model, example=torch.zeros(2, 3))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_forward_that_fails_names_the_module() -> None:
    with pytest.raises(HwmodelError, match="module '1'"):
        hw.trace(nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 5)), example=torch.zeros(2, 4))


@torch.library.custom_op("hwmodel_test::frobnicate", mutates_args=())
def frobnicate(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@frobnicate.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return frobnicate(frobnicate(x)).digamma()


def test_unknown_operators_are_refused_all_at_once() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"hwmodel_test::frobnicate x2, aten\.digamma x1"):
        hw.trace(Unknown(), example=torch.zeros(2, 3))


def test_unknown_model_suggests_near_names() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'deit_base_patch16_224'"):
        hw.trace("deit_bas_patch16_224")


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="fp61"):
        hw.trace("deit_tiny_patch16_224", dtype="fp61")


@pytest.mark.parametrize("size", [100, (224, 225), 7])
def test_an_image_the_patches_do_not_tile_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(HwmodelError, match=r"image size \d+x\d+ does not fit deit_tiny_patch16_224: it takes 224x224") as caught:
        hw.trace("deit_tiny_patch16_224", image_size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [({"batch": 0}, "batch"), ({"image_size": 0}, "image_size")])
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(HwmodelError, match=message):
        hw.trace("deit_tiny_patch16_224", **options)


def test_a_module_needs_an_example() -> None:
    with pytest.raises(HwmodelError, match="example="):
        hw.trace(nn.Linear(3, 4))


def test_something_else_is_no_model() -> None:
    with pytest.raises(HwmodelError, match="got int"):
        hw.trace(3)  # type: ignore[arg-type]


def test_one_example_image_is_repeated() -> None:
    trace = hw.trace(nn.Linear(8, 4), batch=5, example=torch.zeros(1, 8))
    assert trace.operators[0].m == 5
    with pytest.raises(HwmodelError, match="2 images"):
        hw.trace(nn.Linear(8, 4), batch=5, example=torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("torch_dtype", "dtype", "expected"),
    [(torch.float32, None, None), (torch.bfloat16, None, "bf16"), (torch.float16, None, "fp16"), (torch.float32, "int8", "int8")],
)
def test_dtype_of_the_trace(torch_dtype: torch.dtype, dtype: str | None, expected: str | None) -> None:
    model = nn.Linear(8, 4).to(torch_dtype)
    trace = hw.trace(model, example=torch.zeros(1, 8, dtype=torch_dtype), dtype=dtype)
    assert trace.dtype == expected
    assert trace.operators[0].dtype is None


class Upcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).float().softmax(-1).to(x.dtype)


def test_a_row_in_another_format_says_so() -> None:
    trace = hw.trace(Upcast().bfloat16(), example=torch.zeros(2, 8, dtype=torch.bfloat16))
    assert [(row.kind, row.dtype) for row in trace.operators] == [
        ("matmul", None), ("cast", "fp32"), ("softmax", "fp32"), ("cast", None),
    ]  # fmt: skip


def test_the_module_is_not_changed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    hw.trace(model, example=torch.zeros(4, 8))
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    assert not model[0]._forward_hooks


def test_the_twin_shares_every_tensor() -> None:
    from hwmodel.extraction.recording.export import twin

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[0].scale = torch.zeros(3)
    copy = twin(model)
    assert copy is not model
    assert [value.data_ptr() for value in copy.state_dict().values()] == [value.data_ptr() for value in model.state_dict().values()]
    assert copy[0].scale is model[0].scale


def test_masked_weights_are_still_parameters() -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(8, 4))
    prune.random_unstructured(model[0], "weight", amount=0.5)
    trace = hw.trace(model, example=torch.zeros(2, 8))
    (product,) = [row for row in trace.operators if row.family == "product"]
    assert (product.name, product.parameter, product.weight_elements) == ("0", True, 8 * 4 + 4)


def _encoder(layers: int = 2) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@pytest.mark.parametrize("frozen", [False, True])
def test_torch_encoder_layers(frozen: bool) -> None:
    trace = hw.trace(_encoder().requires_grad_(not frozen), example=torch.zeros(3, 10, 32))
    named = {row.name: (row.role, row.block) for row in trace.operators if row.family == "product" and row.block == 1}
    assert named == {
        "layers.1.self_attn.in_proj": ("qkv", 1),
        "layers.1.self_attn.scores": ("scores", 1),
        "layers.1.self_attn.context": ("context", 1),
        "layers.1.self_attn.out_proj": ("proj", 1),
        "layers.1.linear1": ("fc1", 1),
        "layers.1.linear2": ("fc2", 1),
    }
    assert trace["layers.1.self_attn.softmax"].attention_group == "layers.1.self_attn"


def test_torch_attention_alone() -> None:
    x = torch.zeros(2, 5, 32)
    trace = hw.trace(nn.MultiheadAttention(32, 4, batch_first=True), example=(x, x, x))
    assert {row.name: row.role for row in trace.operators if row.role} == {
        "in_proj": "qkv", "scores": "scores", "context": "context", "out_proj": "proj",
    }  # fmt: skip


def test_a_module_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = _encoder()
    assert hw.trace(model, example=torch.zeros(3, 10, 32)) == hw.trace(_encoder(), example=torch.zeros(3, 10, 32))


def test_compiled_modules_are_seen_through() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    assert hw.trace(torch.compile(model), example=torch.zeros(2, 8)) == hw.trace(model, example=torch.zeros(2, 8))


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_block_sparse_storage_is_a_dense_product() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_bsr((16, 16)))
    (row,) = hw.trace(model, example=torch.zeros(4, 32)).operators
    assert (row.name, row.m, row.k, row.n, row.parameter) == ("0", 4, 32, 32, True)


@pytest.mark.filterwarnings("ignore")
def test_packed_layers_are_refused() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(8, 8)))
    with pytest.raises(HwmodelError, match="packed for int8"):
        hw.trace(model, example=torch.zeros(1, 8))


def test_named_entries_of_a_sequential_are_blocks() -> None:
    from hwmodel.extraction.torchvision_repair import import_torchvision

    import_torchvision()
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.VisionTransformer(32, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64)
    trace = hw.trace(model, example=torch.zeros(1, 3, 32, 32))
    assert trace["encoder.layers.encoder_layer_2.mlp.0"].block == 2
    assert _roles(trace) == {"patch_embed": 1, "head": 1, **dict.fromkeys(["qkv", "scores", "context", "proj", "fc1", "fc2"], 3)}


class OtherAttention(nn.Module):
    """As other code bases spell it: separate projections, names of their own, an attention bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * 0.25).softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", weights, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class OtherEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        feed = [nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)]
        self.layers = nn.ModuleList(nn.ModuleList([OtherAttention(32, 4), part]) for part in feed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x) + x
        return x


def test_other_spellings_find_their_roles() -> None:
    trace = hw.trace(OtherEncoder(), example=torch.zeros(2, 10, 32))
    found = {row.name: row.role for row in trace.operators if row.family == "product" and row.block == 1}
    assert found == {
        "layers.1.0.to_q": "q",
        "layers.1.0.to_k": "k",
        "layers.1.0.to_v": "v",
        "layers.1.0.scores": "scores",
        "layers.1.0.context": "context",
        "layers.1.0.to_out.0": "proj",
        "layers.1.1.1": "fc1",
        "layers.1.1.3": "fc2",
    }
    assert trace["layers.1.0.scores"].batch == 2 * 4


class MaskedAttention(nn.Module):
    def forward(self, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)


def test_attention_mask_is_added_between() -> None:
    trace = hw.trace(MaskedAttention(), example=(torch.zeros(2, 3, 5, 8), torch.zeros(5, 5)))
    assert [row.name for row in trace.operators] == ["scores", "add", "softmax", "context"]
    assert trace.operators[1].input_elements == 2 * 3 * 5 * 5 + 5 * 5
    assert {row.attention_group for row in trace.operators} == {"attention"}


def test_pruned_attention_keeps_the_numbering() -> None:
    import timm

    model = timm.create_model("deit_tiny_patch16_224")

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
            return torch.zeros_like(x)

    model.blocks[2].attn = Nothing()
    trace = hw.trace(model)
    assert trace["blocks.2.mlp.fc1"].block == 2
    assert trace["blocks.3.mlp.fc1"].block == 3


def test_heads_pruned_per_layer_are_read_from_shapes() -> None:
    import timm

    model = timm.create_model("deit_tiny_patch16_224")
    attention = model.blocks[1].attn
    attention.num_heads, attention.attn_dim = 2, 128
    attention.qkv, attention.proj = nn.Linear(192, 3 * 128), nn.Linear(128, 192)
    trace = hw.trace(model)
    assert trace["blocks.1.attn.scores"].batch == 2
    assert trace["blocks.0.attn.scores"].batch == 3


class Ordered(nn.Module):
    """In-place writes through a view, under no_grad and autocast wrappers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = torch.zeros_like(x)
        y[:, 0] = x[:, 0].exp()
        y.mul_(2)
        return y.sin()


def test_writes_in_place_are_seen_by_later_readers() -> None:
    trace = hw.trace(Ordered(), example=torch.zeros(2, 3))
    assert [row.kind for row in trace.operators] == ["fill", "exp", "copy", "mul", "sin"]
    assert _producers(trace, "mul") == {"fill", "copy"}
    assert _producers(trace, "sin") == {"mul"}
    assert [row.constant for row in trace.operators] == [True, False, False, False, False]


class Grid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, columns = torch.meshgrid(x.sin(), x.cos(), indexing="ij")
        return columns.exp()


def test_each_result_of_a_view_has_its_own_producer() -> None:
    assert _producers(hw.trace(Grid(), example=torch.zeros(3)), "exp") == {"cos"}


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def test_importing_extraction_does_not_import_torch() -> None:
    code = "import sys, hwmodel, hwmodel.extraction.models, hwmodel.extraction; hwmodel.trace; print('torch' in sys.modules)"
    assert _run(code) == "False"


def test_extraction_of_deit_base_is_small() -> None:
    code = (
        "import resource, hwmodel as hw; hw.trace('deit_base_patch16_224');"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    assert int(_run(code)) * 1024 < 1.5e9


def test_registered_twice_is_an_error() -> None:
    from hwmodel.extraction.recording.lowering import Call, Registry, Row

    registry = Registry()

    @registry.lowers("frobnicate")
    def lower(call: Call) -> tuple[Row, ...]:
        return (Row(Operator(name="", kind="frobnicate")),)

    with pytest.raises(ValueError, match="frobnicate"):
        registry.lowers("frobnicate")(lower)
    assert registry.find("frobnicate_") is lower
