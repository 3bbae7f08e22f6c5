"""What there is to say of timm's and torch's own layers: how `fuse`, exporters and maps are to take them.

XNNPACK, which ExecuTorch uses, knows no norm that is computed from the image: it does know convolutions, linear layers
and the mean over a map. A mean over channels is a 1x1 convolution whose weights are all 1 / C.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, LayerNorm2d, LayerScale, LayerScale2d, to_2tuple
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .traits import Keys, form_of, keys_of, parts, patch_keys, scales_by

__all__ = ["window_keys"]

scales_by("gamma", -1)(LayerScale)
scales_by("gamma", 1)(LayerScale2d)


class _SplitAttention(nn.Module):
    """timm's `Attention` with a layer for each of queries, keys and values, so that no tensor has rank 5."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.shape = attn.num_heads, attn.head_dim
        self.q, self.k, self.v = parts(attn.qkv, 3)
        self.proj = attn.proj

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        B, N, _ = x.shape
        q, k, v = (layer(x).reshape(B, N, *self.shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(B, N, -1))


@form_of(Attention, kind="split")
def _split_attention(attn: Attention) -> nn.Module | None:
    between = (getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm", "norm"))
    plain = all(isinstance(module, nn.Identity) for module in between) and getattr(attn, "gate", None) is None
    return _SplitAttention(attn) if plain else None


class _Means(nn.Module):
    """A norm written as means over channels, which are one layer: `across`. Shape kept.

    The small number that is added to the variance is the bias of the second: coremltools 9.0 fails on a number that is
    added behind a linear layer.
    """

    def __init__(self, norm: Any, across: Any, affine: tuple[int, ...]) -> None:
        super().__init__()
        self.across = across
        self.variance = copy.deepcopy(across)
        self.variance.bias = nn.Parameter(torch.tensor([norm.eps]))
        self.weight = None if norm.weight is None else nn.Parameter(norm.weight.detach().reshape(affine))
        self.bias = None if norm.bias is None else nn.Parameter(norm.bias.detach().reshape(affine))

    def pooled(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.across(self.pooled(x))
        scale = self.variance(self.pooled(x * x)).rsqrt()
        x = x * (scale if self.weight is None else scale * self.weight)
        return x if self.bias is None else x + self.bias


class _OverMap(_Means):
    def pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def _means(norm: Any, layer: Any, cls: type[_Means], affine: tuple[int, ...]) -> nn.Module:
    nn.init.constant_(layer.weight, 1 / math.prod(affine))
    return cls(norm, layer, affine)


@form_of(nn.GroupNorm)
def _group_norm(norm: nn.GroupNorm) -> nn.Module | None:
    dim = norm.num_channels
    return _means(norm, nn.Conv2d(dim, 1, 1, bias=False), _OverMap, (1, dim, 1, 1)) if norm.num_groups == 1 else None


@form_of(LayerNorm2d)
def _layer_norm_2d(norm: Any) -> nn.Module:
    (dim,) = norm.normalized_shape
    return _means(norm, nn.Conv2d(dim, 1, 1, bias=False), _Means, (1, dim, 1, 1))


@form_of(nn.LayerNorm, TimmLayerNorm)
def _layer_norm(norm: Any) -> nn.Module | None:
    if len(norm.normalized_shape) > 1:
        return None
    (dim,) = norm.normalized_shape
    return _means(norm, nn.Linear(dim, 1, bias=False), _Means, (dim,))


# Each version of MobileViT and of Swin has classes of its own, and others write them again.
@keys_of(having=("patch_size", "transformer"))
def _lay_out_patches(block: Any, shape: tuple[int, ...]) -> Keys:
    return patch_keys(shape[2:], block.patch_size)


@keys_of(having=("shift_size", "window_size"))
def _lay_out_windows(block: Any, shape: tuple[int, ...]) -> Keys:
    return window_keys(shape[1:3], to_2tuple(block.window_size), to_2tuple(block.shift_size))


def window_keys(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Keys:
    """Swin: the map rolled up and left by the shift, padded below and right, and cut into windows row by row."""
    (H, W), (h, w) = size, window
    i, j = (torch.arange(H)[:, None] - shift[0]) % H, (torch.arange(W) - shift[1]) % W
    down, across = math.ceil(H / h), math.ceil(W / w)
    return (i // h * across + j // w) * h * w + i % h * w + j % w, down * across, h * w
