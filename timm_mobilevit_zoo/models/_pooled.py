"""Attention of every position to an average-pooled map, CloFormer's global branch, and its forms for runtimes.

Shapes: B batch, C channels, H x W map, h heads, d = C / h, N = H * W queries, M pooled keys.
"""

from typing import Any

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .traits import Keys, form_of, keys_of, parts, pooled_keys, scaled

__all__ = ["PartialAvgPool2d", "PooledAttention"]


class PartialAvgPool2d(nn.Module):
    """Mean over windows, the last ones cut at the edge. `(B, C, H, W) -> (B, C, ceil(H / window), ceil(W / window))`.

    torch's `ceil_mode` decides the output size by a branch, which would fix the image size of an exported graph. There
    the same means are taken over a padded map and divided by each window's share of real cells.
    """

    def __init__(self, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not torch.compiler.is_compiling():
            return F.avg_pool2d(x, self.window_size, ceil_mode=True, count_include_pad=False)
        side = self.window_size
        pad = (0, side - 1, 0, side - 1)  # enough for any size; windows that are padding throughout are dropped
        share = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pad), side)
        return F.avg_pool2d(F.pad(x, pad), side) / share


class PooledAttention(nn.Module):
    """Global branch: attention of every position to a pooled map. `(B, C, H, W) -> (B, width, H, W)`."""

    fused_attn: torch.jit.Final[bool]

    def __init__(
        self, dim: int, width: int, head_dim: int, window_size: int, attn_drop: float, device: Any, dtype: Any
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = width // head_dim
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Conv2d(dim, width, 1, **dd)
        self.pool = PartialAvgPool2d(window_size) if window_size > 1 else nn.Identity()
        self.kv = nn.Conv2d(dim, 2 * width, 1, **dd)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        q = self.q(x).reshape(B, self.num_heads, self.head_dim, H * W).transpose(-2, -1)  # (B, h, N, d)
        kv = self.kv(self.pool(x)).flatten(2)  # (B, 2 h d, M)
        kv = kv.reshape(B, 2 * self.num_heads, self.head_dim, kv.shape[-1]).transpose(-2, -1)
        k, v = kv.chunk(2, dim=1)  # (B, h, M, d) each
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        return x.transpose(-2, -1).reshape(B, self.num_heads * self.head_dim, H, W)


@keys_of(PooledAttention)
def _lay_out(attn: PooledAttention, shape: tuple[int, ...]) -> Keys:
    return pooled_keys(shape[2:], getattr(attn.pool, "window_size", 1))


@form_of(PooledAttention)
class _SplitPooledAttention(nn.Module):
    """CloFormer's pooled attention with a layer each for queries, keys and values. `(B, C, H, W) -> (B, width, H, W)`.

    Of each product one side alone is transposed: of one head litert-torch 0.10 would lose a transposition.
    """

    def __init__(self, attn: PooledAttention) -> None:
        super().__init__()
        self.shape = attn.num_heads, attn.head_dim
        self.q, self.pool = scaled(attn.q, attn.scale), attn.pool
        self.k, self.v = parts(attn.kv, 2)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        pooled = self.pool(x)
        q, k, v = (layer.reshape(B, *self.shape, -1) for layer in (self.q(x), self.k(pooled), self.v(pooled)))
        attn = (q.transpose(-2, -1) @ k).softmax(dim=-1)  # (B, h, N, M)
        return (attn @ v.transpose(-2, -1)).transpose(-2, -1).reshape(B, -1, H, W)


@form_of(PooledAttention, kind="columns")
class _ColumnAttention(nn.Module):
    """Pooled attention in which only the keys are transposed. `(B, C, H, W) -> (B, width, H, W)`."""

    def __init__(self, attn: PooledAttention) -> None:
        super().__init__()
        self.q, self.pool, self.kv, self.scale = attn.q, attn.pool, attn.kv, attn.scale
        self.shape = attn.num_heads, attn.head_dim

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        heads, dim = self.shape
        q = self.q(x).reshape(B, heads, dim, H * W)
        k, v = self.kv(self.pool(x)).reshape(B, 2 * heads, dim, -1).chunk(2, dim=1)  # (B, h, d, M)
        attn = ((k * self.scale).transpose(-2, -1) @ q).softmax(dim=-2)  # (B, h, M, N)
        return (v @ attn).reshape(B, heads * dim, H, W)


@form_of(PartialAvgPool2d)
class _PooledWindows(nn.Module):
    """The same means in a graph of one size: torch's own pooling where the windows are whole."""

    def __init__(self, pool: PartialAvgPool2d) -> None:
        super().__init__()
        self.partial = pool
        self.window_size = pool.window_size

    def forward(self, x: Tensor) -> Tensor:
        if any(side % self.window_size for side in x.shape[2:]):
            return self.partial(x)
        return F.avg_pool2d(x, self.window_size, self.window_size)
