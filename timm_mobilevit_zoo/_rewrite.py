"""Put a network into the form that phones' runtimes take whole: same outputs, plainer layers.

Runtimes hand parts of a network to a fast library of theirs and compute the rest one operation at a time. XNNPACK,
which ExecuTorch uses, knows no norm that is computed from the image: it does know convolutions, linear layers
and the mean over a map. A mean over channels is a 1x1 convolution whose weights are all 1 / C.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention, LayerNorm2d
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from ._fuse import fuse, scaled
from .models.cloformer import PartialAvgPool2d, PooledAttention

__all__ = ["PooledSlices", "portable", "simplified", "split", "transposeless"]


def simplified(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode, without what it does not need for that.

    Norms and scales are folded where torch.fx can trace the network, and else it is a plain copy.
    """
    try:
        return fuse(network)
    except ValueError:
        return copy.deepcopy(network)


def _replace(network: nn.Module, made: Callable[[Any], nn.Module | None]) -> nn.Module:
    """Put what is made of a module in its place, where something is."""
    for name, module in list(network.named_modules()):
        if new := made(module):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, new.eval().requires_grad_(False))
    return network


def split(network: nn.Module) -> nn.Module:
    """Return what `simplified` does, with a layer each for queries, keys and values in timm's `Attention`.

    ncnn does not take them apart, and OpenVINO 2026.4 computes few tokens wrongly behind one layer, in float32.
    """
    return _replace(simplified(network), lambda module: _split_attention(module) if type(module) is Attention else None)


def transposeless(network: nn.Module) -> nn.Module:
    """Return what `split` does, with CloFormer's attention on maps whose channels stay in front of positions."""
    return _replace(
        split(network), lambda module: _ColumnAttention(module) if type(module) is PooledAttention else None
    )


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


@torch.no_grad()
def portable(network: nn.Module, x: Tensor) -> nn.Module:
    """Return what `split` does, with norms, pools and CloFormer's attention as phones' runtimes take them.

    Args:
        network: A network in evaluation mode, on the CPU.
        x: Images of the size that the result is for, `(B, C, H, W)`.
    """
    network = split(network)
    whole: set[nn.Module] = set()

    def look(pool: Any, args: Any) -> None:
        if all(side % pool.window_size == 0 for side in args[0].shape[2:]):
            whole.add(pool)

    pools = [module for module in network.modules() if type(module) is PartialAvgPool2d]
    hooks = [pool.register_forward_pre_hook(look) for pool in pools]
    network(x)
    for hook in hooks:
        hook.remove()

    def made(module: Any) -> nn.Module | None:
        if type(module) is PooledAttention:
            return _SplitPooledAttention(module)
        if module in whole:
            return nn.AvgPool2d(module.window_size)
        make = _MADE.get(type(module))
        return make(module) if make and _is_over_channels(module) else None

    return _replace(network, made)


def _parts(layer: Any, count: int) -> list[Any]:
    """Return layers that compute a part each of the channels of a linear layer or a convolution, in their order."""
    parts = [copy.deepcopy(layer) for _ in range(count)]
    for place, part in enumerate(parts):
        part.weight = nn.Parameter(layer.weight.chunk(count)[place].clone())
        part.bias = None if layer.bias is None else nn.Parameter(layer.bias.chunk(count)[place].clone())
        width = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        setattr(part, width, len(part.weight))
    return parts


class _SplitAttention(nn.Module):
    """timm's `Attention` with a layer for each of queries, keys and values, so that no tensor has rank 5."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.shape = attn.num_heads, attn.head_dim
        self.q, self.k, self.v = _parts(attn.qkv, 3)
        self.proj = attn.proj

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        B, N, _ = x.shape
        q, k, v = (layer(x).reshape(B, N, *self.shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(B, N, -1))


class _SplitPooledAttention(nn.Module):
    """CloFormer's pooled attention with a layer each for queries, keys and values. `(B, C, H, W) -> (B, width, H, W)`.

    Of each product one side alone is transposed: of one head litert-torch 0.10 would lose a transposition.
    """

    def __init__(self, attn: PooledAttention) -> None:
        super().__init__()
        self.shape = attn.num_heads, attn.head_dim
        self.q, self.pool = scaled(attn.q, attn.scale), attn.pool
        self.k, self.v = _parts(attn.kv, 2)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        pooled = self.pool(x)
        q, k, v = (layer.reshape(B, *self.shape, -1) for layer in (self.q(x), self.k(pooled), self.v(pooled)))
        attn = (q.transpose(-2, -1) @ k).softmax(dim=-1)  # (B, h, N, M)
        return (attn @ v.transpose(-2, -1)).transpose(-2, -1).reshape(B, -1, H, W)


def _split_attention(attn: Attention) -> nn.Module | None:
    between = (getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm", "norm"))
    plain = all(isinstance(module, nn.Identity) for module in between) and getattr(attn, "gate", None) is None
    return _SplitAttention(attn) if plain else None


def _is_over_channels(norm: Any) -> bool:
    return norm.num_groups == 1 if isinstance(norm, nn.GroupNorm) else len(norm.normalized_shape) == 1


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


def _averaging(layer: Any, dim: int) -> Any:
    nn.init.constant_(layer.weight, 1 / dim)
    return layer


def _group_norm(norm: nn.GroupNorm) -> nn.Module:
    dim = norm.num_channels
    return _OverMap(norm, _averaging(nn.Conv2d(dim, 1, 1, bias=False), dim), (1, dim, 1, 1))


def _layer_norm_2d(norm: Any) -> nn.Module:
    (dim,) = norm.normalized_shape
    return _Means(norm, _averaging(nn.Conv2d(dim, 1, 1, bias=False), dim), (1, dim, 1, 1))


def _layer_norm(norm: Any) -> nn.Module:
    (dim,) = norm.normalized_shape
    return _Means(norm, _averaging(nn.Linear(dim, 1, bias=False), dim), (dim,))


_MADE: dict[type, Callable[[Any], nn.Module]] = {
    nn.GroupNorm: _group_norm,
    LayerNorm2d: _layer_norm_2d,
    nn.LayerNorm: _layer_norm,
    TimmLayerNorm: _layer_norm,
}


class PooledSlices(TorchFunctionMode):
    """While this is open, slices by a step are pooling with windows of one cell, which ncnn has. Values stay."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _strided(*args) if function is Tensor.__getitem__ else function(*args, **kwargs or {})


def _strided(x: Tensor, index: Any) -> Tensor:
    cuts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(cut, slice) for cut in cuts):
        return x[index]
    for dim, cut in enumerate(cuts):
        if (cut.start, cut.stop) != (None, None):
            x = x[(slice(None),) * dim + (slice(cut.start, cut.stop),)]
        if cut.step not in (None, 1):
            before, after = x.shape[:dim], x.shape[dim + 1 :]
            x = F.max_pool2d(x.reshape(1, math.prod(before), x.shape[dim], math.prod(after)), 1, (cut.step, 1))
            x = x.reshape(*before, x.shape[2], *after)
    return x
