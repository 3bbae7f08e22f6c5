"""What RecNeXt and RepNeXt share: MetaNeXt's blocks around a mixer, and two classifiers that `fuse` makes one.

Shapes: B batch, C or D channels, H x W map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

__all__ = ["AUTHORS_NAMES", "Block", "Downsample", "check_widths", "conv_norm", "mlp", "one_classifier"]


def check_widths(embed_dims: Sequence[int], mlp_ratio: float) -> None:
    """Raise `ValueError` for channels that leave the stem or an MLP none."""
    if embed_dims[0] < 2:
        raise ValueError(f"embed_dims={embed_dims} must begin with 2 or more: the stem has half as many channels")
    if mlp_ratio * min(embed_dims) < 1:
        raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of embed_dims={embed_dims}")


def conv_norm(
    dim: int,
    out_dim: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    dilation: int = 1,
    **dd: Any,
) -> nn.Sequential:
    pad = dilation * (kernel_size // 2)
    conv = nn.Conv2d(dim, out_dim, kernel_size, stride, pad, dilation, groups, bias, **dd)
    return nn.Sequential(conv, nn.BatchNorm2d(out_dim, **dd))


def mlp(dim: int, mlp_ratio: float, bias: bool = False) -> nn.Sequential:
    hidden = int(dim * mlp_ratio)
    return nn.Sequential(conv_norm(dim, hidden, bias=bias), nn.GELU(), conv_norm(hidden, dim, bias=bias))


class Downsample(nn.Module):
    """A strided convolution, then an MLP beside a shortcut. `(B, C, H, W) -> (B, D, ceil(H / 2), ceil(W / 2))`."""

    def __init__(self, mixer: nn.Module, mlp: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        return x + self.drop_path(self.mlp(x))


class Block(nn.Module):
    """Mixer and MLP, one after the other, beside one shortcut. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm2 = norm
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(self.mixer(x))))


def one_classifier(model: Any) -> None:
    """Fold the two classifiers, each with its norm, into one that computes their mean; the network stays."""
    if model.head_dist is None or not model.num_classes:
        return
    weight, bias = torch.zeros_like(model.head.weight), torch.zeros_like(model.head.bias)
    with torch.no_grad():
        for head, norm in ((model.head, model.head_norm), (model.head_dist, model.head_dist_norm)):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight += head.weight * scale / 2
            bias += (head.bias + head.weight @ (norm.bias - norm.running_mean * scale)) / 2
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
    model.head_dist, model.head_norm, model.head_dist_norm = None, nn.Identity().eval(), nn.Identity().eval()


# The authors' names on the left, of what both have; each file puts those of its mixers in front.
AUTHORS_NAMES: tuple[tuple[str, Any], ...] = (
    (r"^stem\.stem\.0\.", "stem.layers.0."),
    (r"^stem\.stem\.([24])\.", lambda m: f"stage1.downsample.{int(m[1]) - 2}."),
    (r"^stages\.(\d)\.", lambda m: f"stage{int(m[1]) + 1}."),
    (r"^head\.(head|head_dist)\.norm\.", r"\1_norm."),
    (r"^head\.(head|head_dist)\.linear\.", r"\1."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.norm2."),
    (r"\.token_mixer\.", ".mixer."),
    (r"\.channel_mixer\.", ".mlp."),
    (r"\.conv\.(weight|bias)$", r".0.\1"),
    (r"\.norm\.(?=\w+$)", ".1."),
)
