"""The tutorial's checkpoints in the forms that its code writes, beyond the one that is recorded."""

import re

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from zoo import GOLDEN, author_weights, close, image

NAME = "vit_nano_patch4_32"
SEPARATE = author_weights(next(path for path in GOLDEN if path.stem == NAME))  # a query, key and value for each head


def merged(weights):
    """What `use_faster_attention` writes: one linear, whose outputs are all heads' queries, then keys, then values."""
    parts = [key for key in weights if ".heads." in key]
    out = {key: value for key, value in weights.items() if key not in parts}
    for block in range(4):
        for kind in ("weight", "bias"):
            heads = [f"encoder.blocks.{block}.attention.heads.{head}." for head in range(4)]
            out[f"encoder.blocks.{block}.attention.qkv_projection.{kind}"] = torch.cat(
                [weights[f"{head}{part}.{kind}"] for part in ("query", "key", "value") for head in heads]
            )
    return out


def load(weights, folder, **kwargs):
    torch.save(weights, folder / "checkpoint.pt")
    overlay = {"file": str(folder / "checkpoint.pt")}
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.mark.parametrize("attention", [dict, merged], ids=["separate", "merged"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda weights: {"model": weights},
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
    ],
    ids=["bare", "model", "state_dict", "module"],
)
def test_every_form_loads_the_same(attention, wrap, tmp_path):
    expected = load(SEPARATE, tmp_path).state_dict()
    ours = load(wrap(attention(SEPARATE)), tmp_path).state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


def test_positions_follow_the_size(tmp_path):
    model, larger = load(SEPARATE, tmp_path), load(SEPARATE, tmp_path, img_size=(40, 64))
    close(larger.pos_embed, resample_abs_pos_embed(model.pos_embed, (10, 16), (8, 8), num_prefix_tokens=1))
    assert larger(image(40, 64)).shape == (2, 10)


def test_a_lost_head_is_refused_by_name(tmp_path):
    lost = "encoder.blocks.2.attention.heads.1.key.bias"
    names = re.escape("1 missing: blocks.2.attn.qkv.bias; 11 unexpected: blocks.2.attn.heads.0.key.bias, ")
    with pytest.raises(ValueError, match=names):
        load({key: value for key, value in SEPARATE.items() if key != lost}, tmp_path)
