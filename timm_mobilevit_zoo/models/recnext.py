"""RecNeXt: a large kernel as a recursion of small ones, on maps that are halved again and again.

In the M series one strided 5x5 convolution, the same at every level, halves a map up to four times. Starting from the
coarsest, each level is convolved, enlarged and added to the next finer one. The A series halves the map once and
applies linear attention to it. T, S and B mix a quarter of the channels, on maps half as fine, after a 3x3 convolution
that is trained with three branches.

Paper: RecConv: Efficient Recursive Convolutions for Multi-Frequency Representations (2024),
    https://arxiv.org/abs/2412.19628
Code: https://github.com/suous/RecNeXt, commit a0277f4 (Apache-2.0). T, S and B are in its folder lsnet alone.

Changes from the authors' code:
    * the stem is cut after its first convolution, whose map is a level at stride 2;
    * in T, S and B queries meet keys before values in the last stage alone, not in the second and third too;
    * training returns the mean of the two classifiers, as evaluation does, unless `set_distilled_training` asks for
      both;
    * `output_stride`, which they do not have, mixes the map that the network would have had and its shifts apart.

Shapes: B batch, C channels, H x W map. The layers are in `_recursive.py`, the blocks in `_metanext.py`.
"""

from functools import partial
from math import gcd
from typing import Any

from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, dilations
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._metanext import AUTHORS_NAMES, Block, Downsample, check_widths, conv_norm, mlp, one_classifier
from ._recursive import LinearAttention, PartialBlock, RecAttention, RecConv, RepConv
from ._staged import Stage, StagedModel
from .traits import form_of

__all__ = ["PartialRecNeXt", "RecAttention", "RecConv", "RecNeXt"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no softmax: attention is linear, or there are convolutions in its place"}
limits |= {  # timm's test
    f"test_reset_classifier_keeps_pool[recnext_{size}]": "of 64 pixels one cell is left, so all ways to pool it agree"
    for size in "tsb"
}

seeded_gain = 0.5  # of seeded weights: maps are multiplied by what was computed from them, again and again


class RecNeXt(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem whose first convolution gives a level at stride 2.

    Args:
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage's linear attention; None for recursive convolutions.
        mlp_ratio: Width of an MLP's hidden layer, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of each classifier; 0 removes them.
        global_pool: timm's name of the pooling in front of the classifiers.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of every block, the same for all.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights: the cells
            which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_heads: tuple[int, ...] | None = None,
        mlp_ratio: float = 2.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int | None = None,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths", *(["num_heads"] if num_heads is not None else [])))
        check_widths(embed_dims, mlp_ratio)
        before = embed_dims[0] // 2
        stem = nn.Sequential(conv_norm(in_chans, before, 3, 2), nn.GELU())
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            downsample: nn.Module = nn.Sequential(conv_norm(before, dim, 3, 2))
            if level > 0:
                conv = conv_norm(before, dim, 7, stride, gcd(before, dim), True, opening)
                downsample = Downsample(conv, mlp(dim, mlp_ratio))
            blocks = []
            for _ in range(depths[level]):
                mixer: nn.Module = RecConv(dim, 4 - level, dilation=dilation)
                norm: nn.Module = nn.BatchNorm2d(dim)
                if num_heads is not None:
                    mixer = RecAttention(dim, num_heads[level], dilation=dilation, queries_first=level == 3)
                    norm = nn.Identity()
                blocks.append(Block(mixer, norm, mlp(dim, mlp_ratio), drop_path_rate))
            stages.append(Stage(downsample, blocks))
            before = dim
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.Identity(),
            embed_dims=embed_dims,
            stem_dim=embed_dims[0] // 2,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            distilled=True,
            head_std=0.02,
            head_norm=nn.BatchNorm1d,
            output_stride=output_stride,
        )


class PartialRecNeXt(StagedModel):
    """Four levels at strides 8, 16, 32, 64; mixers see a quarter of the channels. A level at stride 2 comes before.

    Args:
        embed_dims: Channels of each stage, multiples of 8.
        depths: Blocks of each stage, none or more in the first.
        in_chans: Image channels.
        num_classes: Width of each classifier; 0 removes them.
        global_pool: timm's name of the pooling in front of the classifiers.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8, 16 or 32 to keep the last maps at that stride, in image pixels, with the same weights: the
            cells which the network would have kept have the same values.

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
        check_args(locals(), ("embed_dims",))
        counts = depths if isinstance(depths, (tuple, list)) else ()
        if len(counts) != 4 or not all(isinstance(n, int) and n >= (i > 0) for i, n in enumerate(counts)):
            raise ValueError(f"depths={depths} needs 4 entries, one a stage, whole numbers from 1, in the first from 0")
        if any(dim % 8 for dim in embed_dims):
            raise ValueError(f"embed_dims={embed_dims} must be multiples of 8: a quarter is mixed, in pairs")
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        before, strides = embed_dims[0] // 4, (8, 16, 32, 64)
        stem = nn.Sequential(conv_norm(in_chans, before, 3, 2, bias=True), nn.GELU())
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride, strides)[level]
            ratio = 1.5 if level == 3 else 2.0
            drops = [next(rates) for _ in range(depths[level])]
            downsample: nn.Module
            if level == 0:
                halves = (conv_norm(before, dim // 2, 3, 2, bias=True), conv_norm(dim // 2, dim, 3, 2, bias=True))
                downsample = nn.Sequential(halves[0], nn.GELU(), halves[1], nn.Identity() if drops else nn.GELU())
            else:
                conv = conv_norm(before, dim, 5, stride, gcd(before, dim), True, opening)
                downsample = Downsample(conv, mlp(dim, ratio, True), drops[0])
            blocks, part = [], dim // 4
            for drop in drops:
                mixer: nn.Module = RecAttention(part, 1, dilation=dilation, bias=True)
                if level == 3:
                    mixer = LinearAttention(part, 1, part // 2, 1, True, dilation, True)
                blocks.append(PartialBlock(RepConv(dim, dilation), mixer, part, mlp(dim, ratio, True), drop))
            stages.append(Stage(downsample, blocks))
            before = dim
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.Identity(),
            embed_dims=embed_dims,
            stem_dim=embed_dims[0] // 4,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            distilled=True,
            head_std=0.02,
            head_norm=nn.BatchNorm1d,
            strides=strides,
            output_stride=output_stride,
        )


form_of(RecNeXt, PartialRecNeXt, kind="fused")(one_classifier)


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"\.downsample\.token_mixer\.(weight|bias)$", r".downsample.mixer.0.\1"),
    (r"\.downsample\.norm\.", ".downsample.mixer.1."),
    (r"\.token_mixer\.(?:attn\.)?down\.0\.", ".mixer.down."),
    (r"\.token_mixer\.(?:attn\.)?down\.1\.", ".mixer.attn."),
    (r"\.token_mixer\.attn\.", ".mixer."),
    (r"\.rep_mixer\.lk\.", ".local.wide."),
    (r"\.rep_mixer\.sk\.", ".local.narrow."),
    (r"\.pe\.", ".pos."),
    *AUTHORS_NAMES,
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`; one of ours passes through unchanged."""
    return renamed(state_dict.get("model", state_dict), _RENAMES)


# The authors' claims: ImageNet-1k top-1 at 224 px, in percent, of the files with and without a teacher.
_TOP1 = {
    "m0": (74.68, 73.21),
    "m1": (79.23, 77.98),
    "m2": (80.32, 79.17),
    "m3": (80.86, 79.57),
    "m4": (82.52, 81.43),
    "m5": (83.34, 82.85),
    "a0": (75.02, 73.65),
    "a1": (79.58, 78.28),
    "a2": (80.77, 79.60),
    "a3": (81.10, 80.08),
    "a4": (82.47, 81.63),
    "a5": (83.50, 83.09),
    "t": (76.55, 75.11),
    "s": (79.55, 78.33),
    "b": (81.35, 80.26),
}
_TAGS = ("dist_300e_in1k", "base_300e_in1k")  # timm takes the first where none is named
published_top1 = {f"recnext_{size}.{tag}": top1[i] for size, top1 in _TOP1.items() for i, tag in enumerate(_TAGS)}

_CODE = "https://github.com/suous/RecNeXt"
source_commits = {_CODE: "a0277f46e0b00f633ff8ef69c807e4ec5dd01062"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0.0",
    classifier=("head", "head_dist"),
    license="apache-2.0",
    paper_ids="arXiv:2412.19628",
    paper_name="RecConv: Efficient Recursive Convolutions for Multi-Frequency Representations",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {name: _cfg(hf_hub_id=f"suous/{name}", pool_size=(4, 4) if name[8] in "tsb" else (7, 7)) for name in published_top1}
)
_create = partial(build_staged, RecNeXt, checkpoint_filter_fn)
_create_partial = partial(build_staged, PartialRecNeXt, checkpoint_filter_fn)
_SIZES: tuple[dict[str, Any], ...] = (
    dict(embed_dims=(40, 80, 160, 320), depths=(2, 2, 9, 1)),
    dict(embed_dims=(48, 96, 192, 384), depths=(3, 3, 15, 2)),
    dict(embed_dims=(56, 112, 224, 448), depths=(3, 3, 15, 2)),
    dict(embed_dims=(64, 128, 256, 512), depths=(3, 3, 13, 2)),
    dict(embed_dims=(64, 128, 256, 512), depths=(5, 5, 25, 4), drop_path_rate=0.2),
    dict(embed_dims=(80, 160, 320, 640), depths=(7, 7, 35, 2), drop_path_rate=0.3),
)
_HEADS: dict[str, Any] = dict(num_heads=(2, 4, 8, 16))
_NARROW: dict[str, Any] = _HEADS | dict(mlp_ratio=1.875)


@register_model
def recnext_m0(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M0, with recursive convolutions."""
    return _create("recnext_m0", pretrained, **_SIZES[0] | kwargs)


@register_model
def recnext_m1(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M1, with recursive convolutions."""
    return _create("recnext_m1", pretrained, **_SIZES[1] | kwargs)


@register_model
def recnext_m2(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M2, with recursive convolutions."""
    return _create("recnext_m2", pretrained, **_SIZES[2] | kwargs)


@register_model
def recnext_m3(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M3, with recursive convolutions."""
    return _create("recnext_m3", pretrained, **_SIZES[3] | kwargs)


@register_model
def recnext_m4(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M4, with recursive convolutions."""
    return _create("recnext_m4", pretrained, **_SIZES[4] | kwargs)


@register_model
def recnext_m5(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-M5, with recursive convolutions."""
    return _create("recnext_m5", pretrained, **_SIZES[5] | kwargs)


@register_model
def recnext_a0(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A0, with linear attention."""
    return _create("recnext_a0", pretrained, **_SIZES[0] | _HEADS | kwargs)


@register_model
def recnext_a1(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A1, with linear attention."""
    return _create("recnext_a1", pretrained, **_SIZES[1] | _HEADS | kwargs)


@register_model
def recnext_a2(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A2, with linear attention."""
    return _create("recnext_a2", pretrained, **_SIZES[2] | _HEADS | kwargs)


@register_model
def recnext_a3(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A3, with linear attention."""
    return _create("recnext_a3", pretrained, **_SIZES[3] | _NARROW | kwargs)


@register_model
def recnext_a4(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A4, with linear attention."""
    return _create("recnext_a4", pretrained, **_SIZES[4] | _NARROW | kwargs)


@register_model
def recnext_a5(pretrained: bool = False, **kwargs: Any) -> RecNeXt:
    """RecNeXt-A5, with linear attention."""
    return _create("recnext_a5", pretrained, **_SIZES[5] | _NARROW | kwargs)


@register_model
def recnext_t(pretrained: bool = False, **kwargs: Any) -> PartialRecNeXt:
    """RecNeXt-T, whose mixers see a quarter of the channels."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 256, 512), depths=(0, 2, 8, 10))
    return _create_partial("recnext_t", pretrained, **args | kwargs)


@register_model
def recnext_s(pretrained: bool = False, **kwargs: Any) -> PartialRecNeXt:
    """RecNeXt-S, whose mixers see a quarter of the channels."""
    args: dict[str, Any] = dict(embed_dims=(128, 256, 384, 512), depths=(0, 2, 8, 10), drop_path_rate=0.1)
    return _create_partial("recnext_s", pretrained, **args | kwargs)


@register_model
def recnext_b(pretrained: bool = False, **kwargs: Any) -> PartialRecNeXt:
    """RecNeXt-B, whose mixers see a quarter of the channels."""
    args: dict[str, Any] = dict(embed_dims=(128, 256, 384, 512), depths=(2, 8, 8, 12), drop_path_rate=0.2)
    return _create_partial("recnext_b", pretrained, **args | kwargs)
