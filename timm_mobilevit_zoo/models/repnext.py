"""RepNeXt: kernels of several sizes, each for a part of the channels, and each trained as a sum of several shapes.

A mixer splits the channels into four parts: one is passed on as it is, a 3x3 kernel processes the second, a 7x7 the
third, and a row of 11 followed by a column of 11 the last. Between two stages a copy of the map goes through each of
the first two. During training such a kernel is a sum of several: smaller ones, rows, columns, rows followed by columns,
and four cells apart. Afterwards the sum is merged into one kernel.

Paper: RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization (2024), https://arxiv.org/abs/2406.16004
Code: https://github.com/suous/RepNeXt, commit f515377 (Apache-2.0).

Changes from the authors' code:
    * the stem is cut after its first convolution, whose map is a level at stride 2;
    * training returns the mean of the two classifiers, as evaluation does, unless `set_distilled_training` asks for
      both;
    * `drop_path_rate`, which they do not have; they trained without.

Shapes: B batch, C channels, H x W map. The blocks are in `_metanext.py`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ._args import check_args, check_sizes, dilations
from ._blocks import centred, depthwise
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._metanext import AUTHORS_NAMES, Block, Downsample, check_widths, conv_norm, mlp, one_classifier
from ._staged import Stage, StagedModel
from .traits import form_of

__all__ = ["ChunkConv", "RepNeXt"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no attention: convolutions mix the cells"}

seeded_gain = 0.6  # of seeded weights: a kernel is a sum of many, and the maps grow from block to block


def _conv(
    dim: int,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: int = 1,
    bias: bool = True,
    **dd: Any,
) -> nn.Conv2d:
    """Return a depthwise convolution of any shape; the cells of a 2x2 are those of a 3x3's corners."""
    step = dilation * (2 if size == (2, 2) else 1)
    pad = (step * (size[0] - 1) // 2, step * (size[1] - 1) // 2)
    return nn.Conv2d(dim, dim, size, stride, pad, step, dim, bias, **dd)


class SummedConv(nn.Module):
    """Depthwise kernels around one cell, summed: for `fuse` one. `(B, C, H, W)`, sides divided by the stride, up.

    Args:
        dim: Channels `C`.
        sizes: Rows and columns of each kernel, the largest first.
        lines: Lengths of rows of cells, each of which a column of that length follows.
        stride: In map cells.
        dilation: How many times closer the map's cells lie than where the weights come from.
        **dd: Device and type of the parameters.
    """

    def __init__(
        self,
        dim: int,
        sizes: Sequence[tuple[int, int]],
        lines: Sequence[int] = (),
        stride: int = 1,
        dilation: int = 1,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(dim, size, (stride, stride), dilation, **dd) for size in sizes)
        pairs = []
        for length in lines:
            row = _conv(dim, (1, length), (1, stride), dilation, bias=False, **dd)
            column = _conv(dim, (length, 1), (stride, 1), dilation, bias=False, **dd)
            pairs.append(nn.Sequential(row, column))
        self.pairs = nn.ModuleList(pairs)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, conv in enumerate(self.convs):
            of_one = conv(x) if torch.jit.is_scripting() else depthwise(conv, x)
            y = y + of_one if i > 0 else of_one
        for pair in self.pairs:
            y = y + pair(x)
        return y


@form_of(SummedConv, kind="fused")
def _one_kernel(layer: SummedConv) -> nn.Module:
    convs: list[Any] = list(layer.convs)
    pairs: list[Any] = list(layer.pairs)
    whole = convs[0]
    with torch.no_grad():
        for conv in convs[1:]:
            step = conv.dilation[0] // whole.dilation[0]
            whole.weight += centred(conv.weight, whole.kernel_size, step)
            whole.bias += conv.bias
        for row, column in pairs:
            whole.weight += centred(column.weight * row.weight, whole.kernel_size)
    return whole


_SMALL, _MEDIUM = ((3, 3), (2, 2)), ((7, 7), (5, 3), (3, 5))


class ChunkConv(nn.Module):
    """A quarter of the channels as it is, the others behind kernels of side 3, 7 and 11. `(B, C, H, W)`, shape kept.

    The kernels of side 3 and 7 are sums of several; that of side 11 is a row and a column.

    Args:
        dim: Channels `C`, a multiple of 4.
        dilation: How many times closer the map's cells lie than where the weights come from.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` that is no multiple of 4, or a size below 1.
    """

    def __init__(self, dim: int, dilation: int = 1, device: Any = None, dtype: Any = None) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "dilation"))
        if dim % 4:
            raise ValueError(f"dim={dim} must be a multiple of 4: each kernel sees a quarter of the channels")
        part = dim // 4
        self.small = SummedConv(part, (*_SMALL, (1, 3), (3, 1)), dilation=dilation, **dd)
        self.medium = SummedConv(part, _MEDIUM, (7, 5), dilation=dilation, **dd)
        row, column = (_conv(part, size, dilation=dilation, **dd) for size in ((1, 11), (11, 1)))
        self.large = nn.Sequential(row, column)

    def forward(self, x: Tensor) -> Tensor:
        kept, small, medium, large = x.chunk(4, dim=1)
        return torch.cat([kept, self.small(small), self.medium(medium), self.large(large)], dim=1)


class CopyConv(nn.Module):
    """The map behind a kernel of side 3, then behind one of side 7. `(B, C, H, W) -> (B, 2 C, H / stride, W / stride)`.

    Sides are rounded up.
    """

    def __init__(self, dim: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.small = SummedConv(dim, _SMALL, (3,), stride, dilation)
        self.medium = SummedConv(dim, _MEDIUM, (7, 5), stride, dilation)
        self.norm1 = nn.BatchNorm2d(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(torch.cat([self.small(x), self.medium(x)], dim=1))


@form_of(CopyConv, kind="fused")
def _without_norm(layer: Any) -> None:
    """Fold the norm into the two kernels, each its half; the layer stays."""
    norm = layer.norm1
    told = [x.chunk(2) for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    for conv, (mean, var, weight, bias) in zip((layer.small, layer.medium), zip(*told, strict=True), strict=True):
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, weight, bias)
    layer.norm1 = nn.Identity().eval()


class RepNeXt(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem whose first convolution gives a level at stride 2.

    Args:
        embed_dims: Channels of each stage, each twice those before, multiples of 4.
        depths: Blocks of each stage.
        in_chans: Image channels.
        num_classes: Width of each classifier; 0 removes them.
        global_pool: timm's name of the pooling in front of the classifiers.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights: the cells
            which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int | None = None,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths"))
        check_widths(embed_dims, 2)
        if embed_dims[0] % 4 or any(dim != embed_dims[0] * 2**level for level, dim in enumerate(embed_dims)):
            raise ValueError(f"embed_dims={embed_dims} must begin with a multiple of 4 and double from stage to stage")
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        half = embed_dims[0] // 2
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            downsample: nn.Module = nn.Sequential(conv_norm(half, dim, 3, 2))
            if level > 0:
                downsample = Downsample(CopyConv(dim // 2, stride, opening), mlp(dim, 2))
            blocks = [
                Block(ChunkConv(dim, dilation), nn.BatchNorm2d(dim), mlp(dim, 2), next(rates))
                for _ in range(depths[level])
            ]
            stages.append(Stage(downsample, blocks))
        super().__init__(
            stem=nn.Sequential(conv_norm(in_chans, half, 3, 2), nn.GELU()),
            stages=stages,
            norm=nn.Identity(),
            embed_dims=embed_dims,
            stem_dim=half,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            distilled=True,
            head_std=0.02,
            head_norm=nn.BatchNorm1d,
            output_stride=output_stride,
        )


form_of(RepNeXt, kind="fused")(one_classifier)


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"\.conv_s\.conv_3_3\.", ".small.convs.0."),
    (r"\.conv_s\.conv_2_2\.", ".small.convs.1."),
    (r"(\.blocks\.\d+\.token_mixer)\.conv_s\.conv_3_w\.", r"\1.small.convs.2."),
    (r"(\.blocks\.\d+\.token_mixer)\.conv_s\.conv_3_h\.", r"\1.small.convs.3."),
    (r"\.conv_s\.conv_3_w\.", ".small.pairs.0.0."),
    (r"\.conv_s\.conv_3_h\.", ".small.pairs.0.1."),
    (r"\.conv_m\.conv_7_7\.", ".medium.convs.0."),
    (r"\.conv_m\.conv_5_3\.", ".medium.convs.1."),
    (r"\.conv_m\.conv_3_5\.", ".medium.convs.2."),
    (r"\.conv_m\.conv_([75])_([wh])\.", lambda m: f".medium.pairs.{int(m[1] == '5')}.{int(m[2] == 'h')}."),
    (r"\.conv_l\.", ".large."),
    (r"\.downsample\.norm\.", ".downsample.mixer.norm1."),
    *AUTHORS_NAMES,
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`; one of ours passes through unchanged."""
    return renamed(state_dict.get("model", state_dict), _RENAMES)


# The authors' claims: ImageNet-1k top-1 at 224 px, in percent, of the files that were trained with a teacher.
_TOP1 = {"m0": 74.2, "m1": 78.8, "m2": 80.1, "m3": 80.7, "m4": 82.3, "m5": 83.3}
published_top1 = {f"repnext_{size}.dist_300e_in1k": top1 for size, top1 in _TOP1.items()}

_CODE = "https://github.com/suous/RepNeXt"
source_commits = {_CODE: "f515377837207e883cc9d6bcc38f9c98fcd2bc1f"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0.0",
    classifier=("head", "head_dist"),
    license="apache-2.0",
    paper_ids="arXiv:2406.16004",
    paper_name="RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {
        name: _cfg(url=f"{_CODE}/releases/download/v1.0/{name.partition('.')[0]}_distill_300e.pth")
        for name in published_top1
    }
)
_create = partial(build_staged, RepNeXt, checkpoint_filter_fn)


@register_model
def repnext_m0(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M0."""
    args: dict[str, Any] = dict(embed_dims=(40, 80, 160, 320), depths=(2, 2, 9, 1))
    return _create("repnext_m0", pretrained, **args | kwargs)


@register_model
def repnext_m1(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M1."""
    args: dict[str, Any] = dict(embed_dims=(48, 96, 192, 384), depths=(3, 3, 15, 2))
    return _create("repnext_m1", pretrained, **args | kwargs)


@register_model
def repnext_m2(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M2."""
    args: dict[str, Any] = dict(embed_dims=(56, 112, 224, 448), depths=(3, 3, 15, 2))
    return _create("repnext_m2", pretrained, **args | kwargs)


@register_model
def repnext_m3(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M3."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 256, 512), depths=(3, 3, 13, 2))
    return _create("repnext_m3", pretrained, **args | kwargs)


@register_model
def repnext_m4(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M4."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 256, 512), depths=(5, 5, 25, 4))
    return _create("repnext_m4", pretrained, **args | kwargs)


@register_model
def repnext_m5(pretrained: bool = False, **kwargs: Any) -> RepNeXt:
    """RepNeXt-M5, the largest."""
    args: dict[str, Any] = dict(embed_dims=(80, 160, 320, 640), depths=(7, 7, 35, 2))
    return _create("repnext_m5", pretrained, **args | kwargs)
