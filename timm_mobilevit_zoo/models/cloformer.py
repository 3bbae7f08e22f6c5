"""CloFormer: a convolution in the style of attention, beside attention over a pooled map.

AttnConv, the local branch, aggregates with weights that all positions share (a depthwise convolution of queries, keys
and values) and then re-weights each position by its context (a gate computed from q * k). The pooled branch lets every
position attend to an average-pooled map. The two branches work on disjoint heads of one layer. A stage consists of Clo
blocks and ConvFFNs, and a strided ConvFFN connects two stages.

Paper: Rethinking Local Perception in Lightweight Vision Transformer (2023), https://arxiv.org/abs/2303.17803
Code: https://github.com/qhfan/CloFormer, commit 9181f69 (MIT)

Changes from the authors' code:
    * a level ends before the strided ConvFFN, which opens the next stage; `checkpoint_filter_fn` maps their numbering;
    * partial pooling windows are averaged over the cells they have, so any image size works; where the map divides by
      the window the numbers are theirs;
    * `BatchNorm2d` instead of `SyncBatchNorm`, which TorchScript cannot compile: the same parameters.

There are no published weights. The paper's FLOPs (0.6, 1.1, 2.0 G) fit a depthwise convolution in the strided shortcut,
its parameter counts the dense one that the code has: this file follows the code and measures 0.661, 1.219 and 2.170
GMACs at 224 px.

Shapes: B batch, C channels, H x W map, h heads, d = C / h, N = H * W queries, M pooled keys.
"""

import re
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._blocks import depthwise, depthwise_conv
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._pooled import PooledAttention
from ._staged import Stage, StagedModel
from .traits import scales_by

__all__ = ["CloAttention", "CloFormer"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_dilated_map_holds_the_cells_of_the_map": "norms and keys average over all cells: dilation makes more"}


@scales_by("scale")
class Scale(nn.Module):
    """Multiply by a number, a layer so that `timm_mobilevit_zoo.fuse` can fold it. Shape kept."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class AttnConv(nn.Module):
    """Local branch: shared weights aggregate, a gate re-weights by context. `(B, C, H, W) -> (B, width, H, W)`."""

    def __init__(
        self, dim: int, width: int, kernel_size: int, dilation: int, scale: float, gate_drop: float, dd: Any
    ) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * width, 1, **dd)
        self.mix = depthwise_conv(3 * width, kernel_size, 1, dilation, **dd)
        hidden = nn.Conv2d(width, width, 1, **dd)
        self.gate = nn.Sequential(hidden, nn.SiLU(), nn.Conv2d(width, width, 1, **dd), Scale(scale), nn.Tanh())
        self.gate_drop = nn.Dropout(gate_drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.qkv(x)
        x = self.mix(x) if torch.jit.is_scripting() else depthwise(self.mix, x)
        q, k, v = x.chunk(3, dim=1)  # (B, width, H, W) each
        return self.gate_drop(self.gate(q * k)) * v


class CloAttention(nn.Module):
    """AttnConv and pooled attention side by side on disjoint heads. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    The defaults are those of CloFormer-XXS's second stage.

    Args:
        dim: Channels `C`, a multiple of `num_heads`.
        num_heads: Heads of both branches together.
        group_split: Heads of AttnConv, heads of the pooled branch; they sum to `num_heads`, either may be 0.
        kernel_size: Side of AttnConv's depthwise convolution, odd, in map cells.
        window_size: Side of the pooling window in front of keys and values, in map cells.
        dilation: How many times closer the map's cells lie than where the weights come from; the convolution is dilated
            and the window grows by it.
        attn_drop: Dropout on the softmax map and on AttnConv's gate.
        proj_drop: Dropout after the output projection.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` that the heads do not divide, a split that does not sum, an even kernel, no window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        group_split: tuple[int, int] = (2, 2),
        kernel_size: int = 5,
        window_size: int = 4,
        dilation: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "num_heads", "kernel_size", "window_size", "dilation"))
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        split = group_split if isinstance(group_split, (tuple, list)) else ()
        if len(split) != 2 or min(split) < 0 or sum(split) != num_heads:
            raise ValueError(f"group_split={group_split} must be two counts of heads that sum to num_heads={num_heads}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        head_dim = dim // num_heads
        local, pooled = (heads * head_dim for heads in group_split)
        self.local = None
        if local:
            self.local = AttnConv(dim, local, kernel_size, dilation, head_dim**-0.5, attn_drop, dd)
        self.pooled_attn = None
        if pooled:
            self.pooled_attn = PooledAttention(dim, pooled, head_dim, dilation * window_size, attn_drop, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        if self.local is not None:
            branches.append(self.local(x))
        if self.pooled_attn is not None:
            branches.append(self.pooled_attn(x))
        x = torch.cat(branches, dim=1) if len(branches) > 1 else branches[0]
        return self.proj_drop(self.proj(x))


class ConvFFN(nn.Module):
    """Norm, 1x1, depthwise 5x5, 1x1, and a shortcut, which has layers of its own where it `connects` two stages.

    `(B, dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))`
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        dilation: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        connects: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm = nn.GroupNorm(1, dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.dwconv = depthwise_conv(hidden, 5, stride, dilation)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, out_dim, 1)
        self.drop2 = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if connects:
            conv = nn.Conv2d(dim, dim, 5, stride, 2 * dilation, dilation)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(dim), nn.Conv2d(dim, out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc1(self.norm(x)))
        y = self.dwconv(y) if torch.jit.is_scripting() else depthwise(self.dwconv, y)
        return self.shortcut(x) + self.drop_path(self.drop2(self.fc2(self.drop1(y))))


class Block(nn.Module):
    """Clo attention with its shortcut, then a ConvFFN unless that one belongs to the next stage. Shape kept."""

    def __init__(self, dim: int, attn: CloAttention, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.drop_path(self.attn(self.norm1(x))))


def _conv_norm_act(in_dim: int, dim: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_dim, dim, 3, stride, 1), nn.BatchNorm2d(dim), nn.ReLU()


class CloFormer(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem whose first convolution gives a level at stride 2.

    Each argument that is a tuple has one entry a stage.

    Args:
        embed_dims: Channels.
        num_heads: Heads of both branches together.
        group_splits: Heads of AttnConv and heads of the pooled branch.
        depths: Clo blocks.
        kernel_sizes: Side of AttnConv's depthwise convolution, in map cells.
        window_sizes: Side of the pooling window in front of keys and values, in map cells.
        mlp_ratio: Width of a ConvFFN's hidden layer, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout on softmax maps and on AttnConv's gates.
        proj_drop_rate: Dropout after output projections and in ConvFFNs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated, and a key still stands for the same area of the image.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        num_heads: tuple[int, ...],
        group_splits: tuple[tuple[int, int], ...],
        depths: tuple[int, ...] = (2, 2, 6, 2),
        kernel_sizes: tuple[int, ...] = (3, 5, 7, 9),
        window_sizes: tuple[int, ...] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        check_args(locals(), ("embed_dims", "num_heads", "group_splits", "depths", "kernel_sizes", "window_sizes"))
        if embed_dims[0] < 2:
            raise ValueError(f"embed_dims={embed_dims} must begin with 2 or more: the stem has half as many channels")
        if mlp_ratio * min(embed_dims) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of embed_dims={embed_dims}")
        dim = embed_dims[0]
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        ffn = partial(ConvFFN, mlp_ratio=mlp_ratio, drop=proj_drop_rate)

        downsample: nn.Module = nn.Sequential(
            *_conv_norm_act(dim // 2, dim, 2),
            *_conv_norm_act(dim, dim, 1),
            *_conv_norm_act(dim, dim, 1),
            nn.Conv2d(dim, dim, 1),
            nn.GroupNorm(1, dim),
        )
        strides, stages = dilations(output_stride), list[nn.Module]()
        for level, dim in enumerate(embed_dims):
            dilation = strides[level][-1]
            heads, kernel, window = num_heads[level], kernel_sizes[level], window_sizes[level]
            blocks: list[nn.Module] = []
            for block in range(depths[level]):
                rate = next(rates)
                split, drops = group_splits[level], (attn_drop_rate, proj_drop_rate)
                attn = CloAttention(dim, heads, split, kernel, window, dilation, *drops)
                connects = block == depths[level] - 1 and level < len(embed_dims) - 1
                mlp = nn.Identity() if connects else ffn(dim, dim, 1, dilation, drop_path=rate)
                blocks.append(Block(dim, attn, mlp, rate))
            stages.append(Stage(downsample, blocks))
            if level < len(embed_dims) - 1:
                stride, opening, _ = strides[level + 1]
                downsample = ffn(dim, embed_dims[level + 1], stride, opening, drop_path=rate, connects=True)
        super().__init__(
            stem=nn.Sequential(*_conv_norm_act(in_chans, embed_dims[0] // 2, 2)),
            stages=stages,
            norm=nn.GroupNorm(1, dim),
            embed_dims=embed_dims,
            stem_dim=embed_dims[0] // 2,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^patch_embed\.conv1\.conv\.", "stem.layers."),
    (r"^patch_embed\.conv([234])\.conv\.(\d)", lambda m: f"stage1.downsample.{3 * int(m[1]) - 6 + int(m[2])}"),
    (r"^patch_embed\.conv5\.", "stage1.downsample.9."),
    (r"^patch_embed\.layernorm\.", "stage1.downsample.10."),
    (r"\.norm2\.", ".mlp.norm."),
    (r"^(layers\.\d\.blocks\.\d+)\.downsample\.", r"\1.mlp.shortcut."),
    (r"^layers\.(\d)\.blocks\.", lambda m: f"stage{int(m[1]) + 1}.blocks."),
    (r"\.attn\.qkvs\.0\.", ".attn.local.qkv."),
    (r"\.attn\.convs\.0\.", ".attn.local.mix."),
    (r"\.attn\.act_blocks\.0\.act_block\.", ".attn.local.gate."),
    (r"\.attn\.global_(q|kv)\.", r".attn.pooled_attn.\1."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`; one of ours passes through unchanged."""
    state_dict = state_dict.get("model", state_dict)
    out = renamed(state_dict, _RENAMES)
    # A ConvFFN with a shortcut is strided: it closes the authors' stage and opens our next one.
    strided = {key.partition("shortcut.")[0] for key in out if re.match(r"stage\d\.blocks\.\d+\.mlp\.shortcut\.", key)}
    for prefix in strided:
        opens = f"stage{int(prefix[5]) + 1}.downsample."
        out = {opens + key.removeprefix(prefix) if key.startswith(prefix) else key: value for key, value in out.items()}
    return out


# The authors' claims: ImageNet-1k top-1 at 224 px, in percent. No weights come with them.
published_top1 = {"cloformer_xxs": 77.0, "cloformer_xs": 79.8, "cloformer_s": 81.6}

_CODE = "https://github.com/qhfan/CloFormer"
source_commits = {_CODE: "9181f692306bc4384d98b493a67a1b2dff9a738f"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0",
    license="mit",
    paper_ids="arXiv:2303.17803",
    paper_name="Rethinking Local Perception in Lightweight Vision Transformer",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {
        "cloformer_xxs.untrained": _cfg(),
        "cloformer_xxs_local.untrained": _cfg(),
        "cloformer_xxs_global.untrained": _cfg(),
        "cloformer_xs.untrained": _cfg(),
        "cloformer_s.untrained": _cfg(),
    }
)

_create = partial(build_staged, CloFormer, checkpoint_filter_fn)
_XXS: dict[str, Any] = dict(
    embed_dims=(32, 64, 128, 256), num_heads=(4, 4, 8, 16), group_splits=((3, 1), (2, 2), (4, 4), (4, 12))
)


@register_model
def cloformer_xxs(pretrained: bool = False, **kwargs: Any) -> CloFormer:
    """CloFormer-XXS."""
    return _create("cloformer_xxs", pretrained, **_XXS | kwargs)


@register_model
def cloformer_xxs_local(pretrained: bool = False, **kwargs: Any) -> CloFormer:
    """CloFormer-XXS with every head in AttnConv, the authors' ablation."""
    args: dict[str, Any] = _XXS | dict(group_splits=((4, 0), (4, 0), (8, 0), (16, 0)))
    return _create("cloformer_xxs_local", pretrained, **args | kwargs)


@register_model
def cloformer_xxs_global(pretrained: bool = False, **kwargs: Any) -> CloFormer:
    """CloFormer-XXS with every head in the pooled branch, the authors' ablation."""
    args: dict[str, Any] = _XXS | dict(group_splits=((0, 4), (0, 4), (0, 8), (0, 16)))
    return _create("cloformer_xxs_global", pretrained, **args | kwargs)


@register_model
def cloformer_xs(pretrained: bool = False, **kwargs: Any) -> CloFormer:
    """CloFormer-XS."""
    args: dict[str, Any] = dict(
        embed_dims=(48, 96, 160, 352),
        num_heads=(3, 6, 10, 22),
        group_splits=((2, 1), (3, 3), (5, 5), (7, 15)),
        drop_path_rate=0.06,
    )
    return _create("cloformer_xs", pretrained, **args | kwargs)


@register_model
def cloformer_s(pretrained: bool = False, **kwargs: Any) -> CloFormer:
    """CloFormer-S."""
    args: dict[str, Any] = dict(
        embed_dims=(64, 128, 224, 448),
        num_heads=(4, 8, 14, 28),
        group_splits=((3, 1), (4, 4), (7, 7), (7, 21)),
        drop_path_rate=0.06,
    )
    return _create("cloformer_s", pretrained, **args | kwargs)
