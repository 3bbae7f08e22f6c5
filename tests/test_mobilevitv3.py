"""MobileViTv3 has no recording: what stands for one is a second forward pass, and the paper's own figures."""

import einops
import pytest
import timm
import torch
from torch.nn import functional as F  # noqa: N812
from zoo import create

from timm_mobilevit_zoo.attention import MobileViTv3Block
from timm_mobilevit_zoo.models.probe import gmacs, seed_weights

# Multiply-adds at 256 px, in G, as the paper's tables print them.
PAPER = {"xxs": 0.33, "xs": 0.97, "s": 1.83, "xxs_l2": 0.30, "xs_l2": 0.90, "s_l2": 1.67} | {
    "050": 0.48,
    "075": 1.06,
    "100": 1.87,
}


def conv_norm(x, state, name, **kwargs):
    x = F.conv2d(x, state[f"{name}.0.weight"], **kwargs)
    norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *norm, eps=1e-5)


def affine(x, state, name):
    weight = state[f"{name}.weight"]
    return x @ weight.flatten(1).T + state[f"{name}.bias"]


def normed(x, state, name, dims):
    centred = x - x.mean(dims, keepdim=True)
    return (
        centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def second_forward(x, state, depth, separable, num_heads=4):
    """The block again, on tokens laid out (B, P, N, D) throughout, from its state dict alone."""
    dims = (1, 2, 3) if separable else 3
    local = F.silu(conv_norm(x, state, "conv_kxk", padding=1, groups=x.shape[1]))
    local = F.conv2d(local, state["conv_1x1.weight"])
    y = einops.rearrange(local, "b d (r p) (c q) -> b (p q) (r c) d", p=2, q=2)
    for i in range(depth):
        name = f"transformer.{i}"
        z = normed(y, state, f"{name}.norm1", dims)
        if separable:
            query, key, value = affine(z, state, f"{name}.attn.qkv").split([1, z.shape[3], z.shape[3]], dim=3)
            context = torch.einsum("bpnk,bpnd->bpd", query.softmax(2), key)
            y = y + affine(torch.einsum("bpnd,bpd->bpnd", value.relu(), context), state, f"{name}.attn.proj")
        else:
            qkv = affine(z, state, f"{name}.attn.qkv")
            q, k, v = einops.rearrange(qkv, "b p n (three h d) -> three b p h n d", three=3, h=num_heads)
            scores = torch.einsum("bphnd,bphmd->bphnm", q, k) * q.shape[-1] ** -0.5
            z = torch.einsum("bphnm,bphmd->bphnd", scores.softmax(-1), v)
            y = y + affine(einops.rearrange(z, "b p h n d -> b p n (h d)"), state, f"{name}.attn.proj")
        z = affine(normed(y, state, f"{name}.norm2", dims), state, f"{name}.mlp.fc1")
        y = y + affine(F.silu(z), state, f"{name}.mlp.fc2")
    y = normed(y, state, "norm", dims)
    y = einops.rearrange(y, "b (p q) (r c) d -> b d (r p) (c q)", p=2, c=x.shape[3] // 2)
    if separable:
        return x + conv_norm(torch.cat([local, y], dim=1), state, "conv_fusion")
    y = F.silu(conv_norm(y, state, "conv_proj"))
    return x + F.silu(conv_norm(torch.cat([local, y], dim=1), state, "conv_fusion"))


@pytest.mark.parametrize("separable", [False, True], ids=["softmax", "separable"])
def test_the_block_written_out_again(separable):
    block = seed_weights(MobileViTv3Block(24, 32, depth=3, separable=separable)).double().eval()
    x = torch.randn(2, 24, 10, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = second_forward(x, block.state_dict(), 3, separable)
    error = (block(x) - expected).abs().max() / expected.std()
    print(f"largest difference: {error:.1e} of a standard deviation")
    assert error < 1e-10
    assert (expected - x).std() > 0.1  # it is not all shortcut


@pytest.mark.parametrize("size", PAPER)
def test_multiply_adds_are_the_papers(size):
    with torch.device("meta"):
        model = timm.create_model(f"mobilevitv3_{size}")
    assert abs(gmacs(model, (3, 256, 256)) - PAPER[size]) < 0.005


@pytest.mark.parametrize("size", ["xxs", "050"])
def test_any_other_size_is_resized_there_and_back(size):
    backbone = create(f"mobilevitv3_{size}", features_only=True)
    assert [tuple(m.shape[2:]) for m in backbone(torch.rand(1, 3, 33, 75))] == [
        (17, 38),
        (9, 19),
        (5, 10),
        (3, 5),
        (2, 3),
    ]
