"""RecNeXt's own layers: recursive convolution, linear attention on the halved map, and the block of T, S and B.

Shapes: B batch, C channels, H x W map, h heads, d channels of a head's queries and keys, N = H * W cells.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._args import check_sizes
from ._blocks import apart, depthwise, depthwise_conv, depthwise_norm, together
from ._metanext import conv_norm
from .traits import form_of

__all__ = ["LinearAttention", "PartialBlock", "RecAttention", "RecConv", "RepConv"]


class RecConv(nn.Module):
    """Recursive convolution (sec. 3.2). `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    It sees as far as a kernel of `2 ** levels` times the side, with `levels + 2` kernels. The defaults are those of the
    third stage of RecNeXt-M.

    Args:
        dim: Channels `C`.
        levels: How often the map is halved.
        kernel_size: Side of all depthwise convolutions, odd, in map cells.
        dilation: How many times closer the map's cells lie than where the weights come from.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a size below 1 or an even kernel.
    """

    def __init__(
        self, dim: int, levels: int = 2, kernel_size: int = 5, dilation: int = 1, device: Any = None, dtype: Any = None
    ) -> None:
        given = dict(locals())
        conv = partial(depthwise_conv, bias=False, device=device, dtype=dtype)
        super().__init__()
        check_sizes(given, ("dim", "levels", "kernel_size", "dilation"))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        self.levels, self.dilation = levels, dilation
        self.down = conv(dim, kernel_size, 2)
        self.convs = nn.ModuleList(conv(dim, kernel_size) for _ in range(levels + 1))  # the coarsest map's first

    def forward(self, x: Tensor) -> Tensor:
        maps = [apart(x, self.dilation)]
        for _ in range(self.levels):
            maps.append(self.down(maps[-1]) if torch.jit.is_scripting() else depthwise(self.down, maps[-1]))
        y = x
        for level, conv in enumerate(self.convs):
            finer = maps.pop()
            y = finer + F.interpolate(y, size=finer.shape[2:], mode="bilinear") if level > 0 else finer
            y = conv(y) if torch.jit.is_scripting() else depthwise(conv, y)
        return together(y, self.dilation, x)


class LinearAttention(nn.Module):
    """Attention without softmax, and a convolution of its values. `(B, C, H, W) -> (B, C, H, W)`.

    Weights are products of `elu + 1` of queries and keys, divided by their sum over the keys; values are the map. Keys
    meet values first, N C d products, or else queries first, N N (C + d), which are fewer on a map of few cells.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_dim: int,
        groups: int,
        queries_first: bool,
        dilation: int = 1,
        bias: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.queries_first, self.dilation = num_heads, qk_dim, queries_first, dilation
        self.qk = conv_norm(dim, 2 * qk_dim, groups=groups, bias=bias, **dd)
        self.pos = depthwise_norm(dim, 3, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        whole, x = x, apart(x, self.dilation)
        B, C, H, W = x.shape
        h, N = self.num_heads, H * W
        q, k = (F.elu(self.qk(x)) + 1).chunk(2, dim=1)
        q, k = q.reshape(B, h, self.qk_dim // h, N), k.reshape(B, h, self.qk_dim // h, N)
        v = x.reshape(B, h, C // h, N)
        scale = N**-0.5  # of both factors, so that sums over many cells stay within half precision
        if self.queries_first:
            attn = k.transpose(2, 3) @ q  # (B, h, N, N), keys in rows
            y = (v * scale) @ (attn / (attn.mean(2, keepdim=True) + 1e-6) * scale)  # (B, h, C / h, N)
        else:
            context = (v * scale) @ (k * scale).transpose(2, 3)  # (B, h, C / h, d)
            y = context @ q / (k.mean(3, keepdim=True).transpose(2, 3) @ q + 1e-6)  # (B, h, C / h, N)
        return together(y.reshape(B, C, H, W) + self.pos(x), self.dilation, whole)


class RecAttention(nn.Module):
    """Linear attention on the halved map, added to the map and convolved. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    The defaults are those of the second stage of RecNeXt-A.

    Args:
        dim: Channels `C`, even, a multiple of `num_heads`.
        num_heads: Heads.
        kernel_size: Side of the depthwise convolutions before and after, odd, in map cells.
        dilation: How many times closer the map's cells lie than where the weights come from.
        bias: Whether convolutions have biases, though norms follow.
        queries_first: Whether queries meet keys before values do: cheaper on maps of few cells.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` that is odd or that the heads do not divide, a size below 1 or an even kernel.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        kernel_size: int = 5,
        dilation: int = 1,
        bias: bool = False,
        queries_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "num_heads", "kernel_size", "dilation"))
        if dim % num_heads or dim % 2:
            raise ValueError(f"dim={dim} must be even and a multiple of num_heads={num_heads}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        self.dilation = dilation
        self.down = depthwise_norm(dim, kernel_size, 2, bias, **dd)
        self.attn = LinearAttention(dim, num_heads, dim, 2, queries_first, bias=bias, **dd)
        self.conv = depthwise_norm(dim, kernel_size, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = apart(x, self.dilation)
        # By 2 and cut, not to a size: the same cells, for sides are halved upwards, and LiteRT takes others of 4 for 7.
        back = F.interpolate(self.attn(self.down(y)), scale_factor=2.0, mode="nearest")
        y = self.conv(y + back[:, :, : y.shape[2], : y.shape[3]])
        return together(y, self.dilation, x)


class RepConv(nn.Module):
    """A depthwise 3x3, a 1x1 and the map itself, summed: for `fuse` one convolution. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.wide = depthwise_norm(dim, 3, bias=True, dilation=dilation)
        self.narrow = depthwise_norm(dim, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x) + x


@form_of(RepConv, kind="fused")
def _one_convolution(layer: RepConv) -> nn.Module:
    conv, narrow = (fuse_conv_bn_eval(*branch) for branch in (layer.wide, layer.narrow))
    with torch.no_grad():
        conv.weight += F.pad(narrow.weight + 1, (1, 1, 1, 1))
        conv.bias += narrow.bias
    return conv


class PartialBlock(nn.Module):
    """A convolution, then, beside a shortcut, a mixer of the first channels and an MLP. `(B, C, H, W)`, shape kept."""

    def __init__(self, local: nn.Module, mixer: nn.Module, width: int, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.width = width
        self.local = local
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x)
        mixed = torch.cat([self.mixer(x[:, : self.width]), x[:, self.width :]], dim=1)
        return x + self.drop_path(self.mlp(mixed))
