"""MogaNet: convolutions of short, medium and long range, and gates that select from them at each position.

A block decomposes the map twice. Over space, each channel's deviation from its mean is rescaled; depthwise convolutions
of three ranges, each for a part of the channels, then make the values, and a gate multiplies them. Over channels, in
the MLP's hidden layer, each channel's deviation from a map common to all channels is rescaled.

Paper: MogaNet: Multi-order Gated Aggregation Network (ICLR 2024), https://arxiv.org/abs/2211.03295
Code: https://github.com/Westlake-AI/MogaNet, commit 386b548 (Apache-2.0)

Changes from the authors' code:
    * the stem is cut after its first convolution, whose map is a level at stride 2;
    * with `output_stride`, which they do not have, convolutions reach as much farther, and means are of the cells that
      the halved map would have had.

The authors' other code, in OpenMixup, applies a gate's activation twice: its files are of another network.

Shapes: B batch, C channels, r MLP ratio, H x W map.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._blocks import ScaledBlock, depthwise, depthwise_conv, init_convs
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .traits import scales_by

__all__ = ["MogaNet", "MultiOrderGatedAggregation"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no softmax: gates weigh what convolutions see"}

_INITIAL_SCALE = 1e-5


@scales_by("factors", 1)
class ChannelScale(nn.Module):
    """Multiplies each channel by a number. Shape kept. The number has a map's shape, so weight decay finds it."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, dim, 1, 1), _INITIAL_SCALE, device=device, dtype=dtype))

    @property
    def factors(self) -> Tensor:
        return self.gamma.flatten()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class MultiOrderConv(nn.Module):
    """Depthwise convolutions of three reaches, then a mix of all channels. `(B, C, H, W) -> (B, C, H, W)`.

    All channels see 5 x 5 cells; of these three eighths then see 5 x 5 with gaps of one cell, half 7 x 7 with two.
    """

    def __init__(self, dim: int, dilation: int, device: Any, dtype: Any) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.widths = [dim // 8, dim * 3 // 8, dim // 2]
        self.near = depthwise_conv(dim, 5, 1, dilation, **dd)
        self.middle = depthwise_conv(self.widths[1], 5, 1, 2 * dilation, **dd)
        self.far = depthwise_conv(self.widths[2], 7, 1, 3 * dilation, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.near(x) if torch.jit.is_scripting() else depthwise(self.near, x)
        near, middle, far = x.split(self.widths, dim=1)
        middle = self.middle(middle) if torch.jit.is_scripting() else depthwise(self.middle, middle)
        far = self.far(far) if torch.jit.is_scripting() else depthwise(self.far, far)
        return self.proj(torch.cat([near, middle, far], dim=1))


class MultiOrderGatedAggregation(nn.Module):
    """Multi-order gated aggregation. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    Returns `proj(silu(gate(y)) * silu(value(y)))`, where `y = silu(z + sigma * (z - mean of z over the map))`, `z` is
    linear in the input, and `value` looks at neighbours. There is no norm and no shortcut inside.

    Args:
        dim: Channels `C`, a multiple of 8.
        dilation: How many times closer the map's cells lie than where the weights come from; convolutions are dilated
            by it, and means are of every so many cells.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` that is no multiple of 8, or a `dilation` that is no whole number from 1.
    """

    def __init__(self, dim: int, dilation: int = 1, device: Any = None, dtype: Any = None) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "dilation"))
        if dim % 8:
            raise ValueError(f"dim={dim} must be a multiple of 8: an eighth, three and four look differently far")
        self.dilation = dilation
        self.proj_in = nn.Conv2d(dim, dim, 1, **dd)
        self.sigma = ChannelScale(dim, **dd)
        self.act = nn.SiLU()
        self.gate = nn.Conv2d(dim, dim, 1, **dd)
        self.gate_act = nn.SiLU()
        self.value = MultiOrderConv(dim, dilation, **dd)
        self.value_act = nn.SiLU()
        self.proj = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj_in(x)
        kept = y[:, :, :: self.dilation, :: self.dilation]
        y = self.act(y + self.sigma(y - kept.mean((2, 3), keepdim=True)))
        return self.proj(self.gate_act(self.gate(y)) * self.value_act(self.value(y)))


class ChannelAggregationMlp(nn.Module):
    """1x1, depthwise 3x3, channels weighed anew, 1x1. `(B, C, H, W) -> (B, C, H, W)`, with r C channels in between."""

    def __init__(self, dim: int, hidden: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = depthwise_conv(hidden, 3, 1, dilation)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.common = nn.Conv2d(hidden, 1, 1)  # one map for all channels
        self.common_act = nn.GELU()
        self.sigma = ChannelScale(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.dwconv(self.fc1(x))))
        x = x + self.sigma(x - self.common_act(self.common(x)))  # (B, r C, H, W) - (B, 1, H, W)
        return self.drop2(self.fc2(x))


def _conv_norm(dim: int, out_dim: int, stride: int = 2, dilation: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(dim, out_dim, 3, stride, dilation, dilation), nn.BatchNorm2d(out_dim)


class MogaNet(StagedModel):
    """Four levels at strides 4, 8, 16, 32, each ending with a norm, behind a level at stride 2.

    Args:
        embed_dims: Channels of each stage, multiples of 8.
        depths: Blocks of each stage.
        mlp_ratios: Width of the MLPs' hidden layer in each stage, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout in MLPs, on the hidden layer and after them.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated, and the cells which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths", "mlp_ratios"))
        if any(dim % 8 for dim in embed_dims):
            raise ValueError(f"embed_dims={embed_dims} must be multiples of 8: parts of the channels look farther")
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        before = embed_dims[0] // 2
        stem = nn.Sequential(*_conv_norm(in_chans, before), nn.GELU())
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            downsample = nn.Sequential(*_conv_norm(before, dim, stride, opening))
            blocks = []
            for _ in range(depths[level]):
                attn = MultiOrderGatedAggregation(dim, dilation)
                mlp = ChannelAggregationMlp(dim, mlp_ratios[level] * dim, dilation, proj_drop_rate)
                blocks.append(ScaledBlock(dim, attn, mlp, ChannelScale, next(rates)))
            stages.append(Stage(downsample, blocks, nn.BatchNorm2d(dim)))
            before = dim
        init_convs(nn.ModuleList([stem, *stages]))
        super().__init__(
            stem=stem,
            stem_dim=embed_dims[0] // 2,
            stages=stages,
            embed_dims=embed_dims,
            norm=nn.Identity(),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^patch_embed1\.projection\.([01])\.", r"stem.layers.\1."),
    (r"^patch_embed1\.projection\.([34])\.", lambda m: f"stage1.downsample.{int(m[1]) - 3}."),
    (r"^patch_embed(\d)\.(projection|norm)\.", lambda m: f"stage{m[1]}.downsample.{int(m[2] == 'norm')}."),
    (r"^blocks(\d)\.", r"stage\1.blocks."),
    (r"^norm(\d)\.", r"stage\1.norm."),
    (r"\.layer_scale_(\d)$", r".scale\1.gamma"),
    (r"\.sigma\.scale$", ".sigma.gamma"),
    (r"\.attn\.proj_1\.", ".attn.proj_in."),
    (r"\.attn\.proj_2\.", ".attn.proj."),
    (r"\.value\.DW_conv([012])\.", lambda m: f".value.{('near', 'middle', 'far')[int(m[1])]}."),
    (r"\.value\.PW_conv\.", ".value.proj."),
    (r"\.mlp\.decompose\.", ".mlp.common."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `state_dict`; one of ours passes through unchanged."""
    return renamed(state_dict.get("state_dict", state_dict.get("model", state_dict)), _RENAMES)


# The authors' files, in a release of their repository, and what they claim of each: ImageNet-1k top-1, in percent.
_FILES = {
    "moganet_xt.in1k": ("xtiny_sz224", 76.5),
    "moganet_xt.in1k_256": ("xtiny_sz256", 77.2),
    "moganet_t.in1k": ("tiny_sz224", 79.0),
    "moganet_t.in1k_256": ("tiny_sz256", 79.6),
    "moganet_s.in1k": ("small_sz224", 83.4),  # of the averaged weights, TRAINING.md says
}
published_top1 = {variant: top1 for variant, (_, top1) in _FILES.items()}

_CODE = "https://github.com/Westlake-AI/MogaNet"
_RELEASE = f"{_CODE}/releases/download/moganet-in1k-weights"
source_commits = {_CODE: "386b548c5f0b0287b45c04397aa4ef46a28f7a26"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0",
    crop_pct=0.9,
    license="apache-2.0",
    paper_ids="arXiv:2211.03295",
    paper_name="MogaNet: Multi-order Gated Aggregation Network",
    origin_url=_CODE,
)
_256 = dict(input_size=(3, 256, 256), pool_size=(8, 8))
default_cfgs = pinned_default_cfgs(
    {
        variant: _cfg(
            url=f"{_RELEASE}/moganet_{file}_8xbs128_ep300.pth.tar", **_256 if variant.endswith("_256") else {}
        )
        for variant, (file, _) in _FILES.items()
    }
)
_create = partial(build_staged, MogaNet, checkpoint_filter_fn)


@register_model
def moganet_xt(pretrained: bool = False, **kwargs: Any) -> MogaNet:
    """MogaNet-XT."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 96, 192), depths=(3, 3, 10, 2), drop_path_rate=0.05)
    return _create("moganet_xt", pretrained, **args | kwargs)


@register_model
def moganet_t(pretrained: bool = False, **kwargs: Any) -> MogaNet:
    """MogaNet-T."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 128, 256), depths=(3, 3, 12, 2), drop_path_rate=0.1)
    return _create("moganet_t", pretrained, **args | kwargs)


@register_model
def moganet_s(pretrained: bool = False, **kwargs: Any) -> MogaNet:
    """MogaNet-S, the largest here."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), depths=(2, 3, 12, 2), drop_path_rate=0.1)
    return _create("moganet_s", pretrained, **args | kwargs)
