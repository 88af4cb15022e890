"""A structurally pruned trace equals the trace of the structurally pruned model, row by row."""

import pytest

import hwmodel as hw
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe


def pruned(name: str, dense: hw.Trace, **rule: object) -> hw.Trace:
    return hw.prune(dense, Recipe(model=name, source="a test", encoder=[EncoderRule(**rule)]))


def rows(trace: hw.Trace) -> dict[str, hw.Operator]:
    return {op.name: op.replace(dense_macs=None) for op in trace.operators}


@pytest.mark.parametrize(
    ("name", "size", "patches"),
    [
        ("deit_tiny_patch16_224", 160, 100),
        ("deit_tiny_distilled_patch16_224", 160, 100),  # two prefix tokens, two heads
        ("deit3_small_patch16_224", 160, 100),  # a scale per channel, shared by all tokens
        ("vit_wee_patch16_reg1_gap_256", 128, 64),  # a register token, mean over patches; patches divide the width
        ("vit_base_patch16_siglip_224", 160, 100),  # no prefix, attention pooling
        ("beit_base_patch16_224", 160, 100),  # position biases added to the scores
        pytest.param("eva02_tiny_patch14_224", 140, 100, marks=pytest.mark.slow),  # rotary tables per patch, gated MLP
        pytest.param("vit_small_patch16_rope_224", 160, 100, marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_clip_224", 160, 100, marks=pytest.mark.slow),
    ],
)
def test_fewer_tokens_are_a_smaller_image_from_there_on(name: str, size: int, patches: int) -> None:
    dense = hw.trace(name)
    result = pruned(name, dense, blocks="7-8", tokens=patches)
    smaller, now, before = rows(hw.trace(name, image_size=size)), rows(result), rows(dense)
    (cut,) = [row for row, op in enumerate(result.operators) if op.name.endswith("token_gather")]
    assert [now[op.name] for op in result.operators[:cut]] == [before[op.name] for op in result.operators[:cut]]
    late = [op.name for op in result.operators[cut + 1 :] if not op.constant]
    assert [now[op] for op in late] == [smaller[op] for op in late]
    assert result.macs == dense.macs


@pytest.mark.parametrize("fused", [True, False])
def test_fewer_heads_and_a_narrower_mlp_are_a_smaller_model(fused: bool) -> None:
    """Norms of queries, keys and merged heads included."""
    import torch

    from hwmodel.extraction.zoo import build, fused_attention

    name = "deit_tiny_patch16_224"
    example = torch.empty(1, 3, 224, 224, device="meta")

    def traced(heads: int, hidden: int) -> hw.Trace:
        model = build(name)
        block = model.blocks[3]
        norms = {"qk_norm": True, "scale_norm": True, "norm_layer": torch.nn.LayerNorm}
        with torch.device("meta"):
            block.attn = type(block.attn)(192, num_heads=heads, attn_head_dim=64, qkv_bias=True, **norms)
            block.mlp = type(block.mlp)(192, hidden_features=hidden)
        return hw.trace(model.eval(), example=example).replace(model=name)

    with fused_attention(fused):
        dense, smaller = traced(3, 768), traced(2, 500)
    assert rows(pruned(name, dense, blocks="3", heads=2, mlp=500)) == rows(smaller)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (
            {"tokens": 20},
            "attention sees 49x49 (queries x keys) of 49, 196, 784, 3136 tokens: tokens cannot be dropped from windows",
        ),
        ({"heads": 1}, "block 1: one attention product has 49 rows, the block 3136 tokens: heads of windowed or channel attention"),
    ],
)
def test_windows_keep_their_tokens_and_heads(rule: dict, reason: str) -> None:
    name = "swin_tiny_patch4_window7_224"
    with pytest.raises(hw.HwmodelError) as refusal:
        pruned(name, hw.trace(name), blocks="1", **rule)
    assert reason in str(refusal.value)


def test_windowed_models_have_mlps_to_narrow() -> None:
    name = "swin_tiny_patch4_window7_224"
    dense = hw.trace(name)
    assert dense.macs - pruned(name, dense, blocks="1", mlp=100).kept_macs == 2 * 3136 * 96 * (384 - 100)
