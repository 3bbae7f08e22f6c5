"""Where on an image it lies what a layer attends to.

Networks lay a map out as tokens in their own ways, which the layers say of themselves (`models.traits.keys_of`). Only a
ViT does it for the whole network: `find_vit` knows it.

Shapes: B images, B' = B * groups (windows of Swin, in-patch positions of MobileViT), h heads, Q queries, K keys.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.models.traits import Keys, keys_at

from .recording import Layer

__all__ = ["ViT", "find_vit", "locate", "received"]


def _token_keys(grid: Sequence[int], prefix: int) -> Keys:
    """ViT: patches row by row, behind the prefix tokens (class, distillation, registers)."""
    H, W = grid
    return prefix + torch.arange(H * W).view(H, W), 1, prefix + H * W


class ViT(NamedTuple):
    """How a ViT lays out its tokens."""

    keys: Tensor  # (H', W')
    tokens: int
    has_class_token: bool


def find_vit(network: nn.Module, x: Tensor) -> ViT | None:
    """Return how a ViT lays out images `(B, C, H, W)`; None for another network."""
    for module in network.modules():  # features_only puts the network one level down
        grid_of = getattr(getattr(module, "patch_embed", None), "dynamic_feat_size", None)
        prefix = getattr(module, "num_prefix_tokens", None)
        if grid_of is not None and isinstance(prefix, int):
            keys, _, count = _token_keys(grid_of(tuple(x.shape[2:])), prefix)
            return ViT(keys, count, getattr(module, "cls_token", None) is not None)
    return None


def locate(layer: Layer, vit: ViT | None, batch: int) -> tuple[Tensor, Tensor] | None:
    """Return an attention as `(B', h, Q, K)`, in float32 at least, and its keys; None where nobody knows how they lie.

    Args:
        layer: One of those that `record` returns.
        vit: What `find_vit` returns for the network.
        batch: Number of images.
    """
    values, frame, shape = layer.values, layer.frame, layer.shape
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if layer.is_gate:
        return None
    if frame is None and vit is not None:
        keys, groups, count = vit.keys, 1, vit.tokens
    elif frame is None or len(shape) != 4:
        return None
    else:
        lay_out: Any = keys_at(frame)
        keys, groups, count = lay_out(frame, shape)
        if values.shape[:3] == (batch, 1, groups):  # MobileViT 2: one row of scores for each in-patch position
            values = values.reshape(batch * groups, 1, 1, -1)
    fits = len(values) == batch * groups and values.shape[-1] == count
    return (values, keys.to(values.device)) if fits else None


def received(attn: Tensor, keys: Tensor, batch: int) -> Tensor:
    """Return the attention that each cell's key gets, mean over heads and queries: `(B', h, Q, K) -> (B, H', W')`."""
    attn = attn.mean(1).unflatten(0, (batch, -1))  # (B, groups, Q, K)
    asks = attn.new_ones(attn.shape[1:3])
    if attn.shape[2] == attn.shape[3]:  # self-attention: padding and prefix tokens ask too, from outside the image
        asks = torch.zeros_like(asks).flatten().scatter(0, keys.flatten(), 1).view_as(asks)
    mean = (attn * asks[..., None]).sum(2) / asks.sum(1, keepdim=True)  # (B, groups, K)
    return mean.flatten(1)[:, keys]
