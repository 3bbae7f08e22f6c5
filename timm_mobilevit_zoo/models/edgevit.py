"""EdgeViT: a few cells collect what lies around them, attend to each other, and pass the result on to the rest.

A local-global-local block first aggregates each cell's neighbourhood with a depthwise convolution. Then one cell of
each window attends to those of all others. A transposed convolution as wide as a window propagates the result to the
window's other cells. In the last stage, where the map is small, every cell attends, and the other steps are left out.

Paper: EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers (2022),
    https://arxiv.org/abs/2205.03436
Code: https://github.com/saic-fi/edgevit, commit df3d070 (Apache-2.0)

Changes from the authors' code:
    * any image size works: zeros complete a patch that the map cuts off, and what is propagated beyond the map is cut.
      Theirs is built for one square size: a multiple of 32, with the same numbers; with others it drops rows or fails.

The authors have published no weights. Their paper prints 11.1 M parameters for S, their code has 13.1 M, as here.

Shapes: B batch, C channels, H x W map, h heads, d = C / h, N sampled cells, M of these that are keys.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp, calculate_drop_path_rates, use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ._args import check_args, check_sizes, dilations
from ._blocks import depthwise, depthwise_conv, every, init_linear
from ._build import build_staged, renamed, with_zero_biases
from ._cfg import birder_cfg, imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .traits import Keys, keys_of, pooled_keys

__all__ = ["EdgeViT", "LocalGlobalLocalAttention"]


class Aggregation(nn.Sequential):
    """1x1, depthwise 5x5, 1x1: tells each cell what lies around it. Shape kept."""

    def __init__(self, dim: int, dilation: int, dd: Any) -> None:
        mix = depthwise_conv(dim, 5, 1, dilation, **dd)
        super().__init__(nn.Conv2d(dim, dim, 1, **dd), mix, nn.Conv2d(dim, dim, 1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        x = self[1](x) if torch.jit.is_scripting() else depthwise(self[1], x)
        return self[2](x)


class SparseAttention(nn.Module):
    """Attention among one cell of each window, then propagation to the others. `(B, H, W, C) -> (B, H, W, C)`."""

    fused_attn: torch.jit.Final[bool]

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int, dilation: int, attn_drop: float, proj_drop: float, dd: Any
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        # A dilated map has the keys of the map without dilation. All its cells ask, unless propagation tells them.
        self.query_step = dilation * sr_ratio if sr_ratio > 1 else 1
        self.key_step = dilation * sr_ratio // self.query_step
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.propagate = None
        if sr_ratio > 1:
            self.propagate = nn.ConvTranspose2d(dim, dim, sr_ratio, sr_ratio, groups=dim, **dd)
            self.repeat = nn.Upsample(scale_factor=dilation) if dilation > 1 else nn.Identity()
            self.norm = nn.LayerNorm(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: Tensor, step: int) -> Tensor:
        x = every(x, step)
        B, rows, columns, C = x.shape
        return x.reshape(B, rows * columns, self.num_heads, C // self.num_heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        x = every(x, self.query_step)
        B, rows, columns, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = self._heads(q, 1), self._heads(k, self.key_step), self._heads(v, self.key_step)  # (B, h, N or M, d)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        x = x.transpose(1, 2).reshape(B, rows, columns, C)
        if self.propagate is not None:
            x = self.repeat(self.propagate(x.permute(0, 3, 1, 2)))
            x = F.pad(x, (0, W - x.shape[3], 0, H - x.shape[2]))  # cuts; a slice would fix the size of a graph
            x = self.norm(x.permute(0, 2, 3, 1))
        return self.proj_drop(self.proj(x))


@keys_of(SparseAttention)
def _lay_out(attn: SparseAttention, shape: tuple[int, ...]) -> Keys:
    return pooled_keys(shape[1:3], attn.query_step * attn.key_step)


class Half(nn.Module):
    """Position encoding, `attn`, MLP, with shortcuts: on maps or, the global half, on tokens. `(B, C, H, W)` kept."""

    def __init__(
        self, attn: nn.Module, mlp: Mlp, tokens: bool, dim: int, dilation: int, drop_path: float, dd: Any
    ) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=1e-6) if tokens else nn.BatchNorm2d
        self.tokens = tokens
        self.pos_embed = nn.Conv2d(dim, dim, 3, 1, dilation, dilation, groups=dim, **dd)
        self.norm1 = norm(dim, **dd)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm(dim, **dd)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x.permute(0, 2, 3, 1) if self.tokens else x
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2) if self.tokens else x


class LocalGlobalLocalAttention(nn.Module):
    """The whole local-global-local block, with its shortcuts and MLPs. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    The defaults are those of EdgeViT-XXS's third stage.

    Args:
        dim: Channels `C`, a multiple of `num_heads`.
        num_heads: Attention heads `h`.
        sr_ratio: Side of the window that one attending cell, its first, stands for, in map cells. A map that it does
            not divide has smaller windows at its end. With 1 there are neither aggregation nor propagation.
        mlp_ratio: Width of an MLP's hidden layer, relative to the channels.
        dilation: How many times closer the cells lie than where the weights come from; kernels and windows grow by it.
        attn_drop: Dropout on the softmax map.
        proj_drop: Dropout after the attention's projection and in the MLPs.
        drop_path: Stochastic depth of each of the four branches.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a size below 1, a `dim` that the heads do not divide, an MLP without hidden channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        sr_ratio: int = 2,
        mlp_ratio: float = 4.0,
        dilation: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_sizes(locals(), ("dim", "num_heads", "sr_ratio", "dilation"))
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        if not isinstance(drop_path, (int, float)) or not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} must be one rate of at least 0 and below 1")
        mlp_dim = int(dim * mlp_ratio)
        if mlp_dim < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of dim={dim}")
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        mlp = partial(Mlp, dim, mlp_dim, drop=proj_drop, **dd)
        self.local_half: nn.Module = nn.Identity()
        if sr_ratio > 1:
            self.local_half = Half(
                Aggregation(dim, dilation, dd), mlp(use_conv=True), False, dim, dilation, drop_path, dd
            )
        attn = SparseAttention(dim, num_heads, sr_ratio, dilation, attn_drop, proj_drop, dd)
        self.global_half = Half(attn, mlp(), True, dim, dilation, drop_path, dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.global_half(self.local_half(x))


class PatchEmbed(nn.Module):
    """Patches become cells. `(B, in_dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))`."""

    def __init__(self, in_dim: int, dim: int, patch_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.pad = dilation * (patch_size - 1)  # completes a patch that the map cuts off; no whole patch reaches it
        self.proj = nn.Conv2d(in_dim, dim, patch_size, stride, dilation=dilation)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(F.pad(x, (0, self.pad, 0, self.pad))))


class EdgeViT(StagedModel):
    """Four levels at strides 4, 8, 16, 32, each opened by a patch embedding. A tuple has one entry a stage.

    Args:
        embed_dims: Channels.
        num_heads: Attention heads.
        depths: Local-global-local blocks.
        sr_ratios: Side of the window that one attending cell stands for, in map cells.
        mlp_ratio: Width of an MLP's hidden layer, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout on softmax maps.
        proj_drop_rate: Dropout after the first patch embedding, after the attention's projections and in MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights;
            the cells which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        num_heads: tuple[int, ...],
        depths: tuple[int, ...],
        sr_ratios: tuple[int, ...] = (4, 2, 2, 1),
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        output_stride: int = 32,
    ) -> None:
        check_args(locals(), ("embed_dims", "num_heads", "depths", "sr_ratios"))
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        for level, (stride, opening, dilation) in enumerate(dilations(output_stride)):
            dim = embed_dims[level]
            block = partial(LocalGlobalLocalAttention, dim, num_heads[level], sr_ratios[level], mlp_ratio, dilation)
            blocks = [block(attn_drop_rate, proj_drop_rate, next(rates)) for _ in range(depths[level])]
            embed = PatchEmbed(embed_dims[level - 1], dim, 2, stride, opening) if level else nn.Dropout(proj_drop_rate)
            stages.append(Stage(embed, blocks))
        for module in nn.ModuleList(stages).modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        super().__init__(
            stem=PatchEmbed(in_chans, embed_dims[0], 4, 4),
            stages=stages,
            norm=nn.BatchNorm2d(embed_dims[-1]),
            embed_dims=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left.
_RENAMES = (
    (r"^patch_embed1\.", "stem.layers."),
    (r"^patch_embed([234])\.", r"stage\1.downsample."),
    (r"^blocks([1234])\.", r"stage\1.blocks."),
    (r"\.LocalAgg\.conv1\.", ".local_half.attn.0."),
    (r"\.LocalAgg\.attn\.", ".local_half.attn.1."),
    (r"\.LocalAgg\.conv2\.", ".local_half.attn.2."),
    (r"\.LocalAgg\.", ".local_half."),
    (r"\.SelfAttn\.", ".global_half."),
    (r"\.LocalProp\.", ".propagate."),
    # birder's
    (r"^body\.stage1\.patch_embed\.", "stem.layers."),
    (r"^body\.(stage\d)\.patch_embed\.", r"\1.downsample."),
    (r"^body\.", ""),
    (r"\.local_agg\.conv1\.", ".local_half.attn.0."),
    (r"\.local_agg\.attn\.", ".local_half.attn.1."),
    (r"\.local_agg\.conv2\.", ".local_half.attn.2."),
    (r"\.local_agg\.", ".local_half."),
    (r"\.self_attn\.", ".global_half."),
    (r"\.local_prop\.", ".propagate."),
    (r"^features\.0\.", "norm."),
    (r"^classifier\.", "head."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`, or birder's; one of ours passes through unchanged."""
    state_dict = state_dict.get("model", state_dict)
    out = renamed(state_dict, _RENAMES)
    return with_zero_biases(out, model) if "features.0.weight" in state_dict else out


# The authors' claims: ImageNet-1k top-1 at 224 px, in percent. They publish no weights.
published_top1 = {"edgevit_xxs": 74.4, "edgevit_xs": 77.5, "edgevit_s": 81.0}

_CODE = "https://github.com/saic-fi/edgevit"
source_commits = {_CODE: "df3d070addc3dc761173429426eab5edeb0d6343"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.proj",
    license="apache-2.0",
    paper_ids="arXiv:2205.03436",
    paper_name="EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {f"{name}.birder_il_common": birder_cfg(name, _cfg) for name in ("edgevit_xxs", "edgevit_xs")}
    | {f"{name}.untrained*": _cfg() for name in published_top1}  # last, or timm makes the birds the default
)
_create = partial(build_staged, EdgeViT, checkpoint_filter_fn, stem_level=False)


@register_model
def edgevit_xxs(pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    """EdgeViT-XXS."""
    args: dict[str, Any] = dict(embed_dims=(36, 72, 144, 288), num_heads=(1, 2, 4, 8), depths=(1, 1, 3, 2))
    return _create("edgevit_xxs", pretrained, **args | kwargs)


@register_model
def edgevit_xs(pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    """EdgeViT-XS."""
    args: dict[str, Any] = dict(embed_dims=(48, 96, 240, 384), num_heads=(1, 2, 5, 8), depths=(1, 1, 3, 1))
    return _create("edgevit_xs", pretrained, **args | kwargs)


@register_model
def edgevit_s(pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    """EdgeViT-S, with the depths of the authors' code."""
    args: dict[str, Any] = dict(embed_dims=(48, 96, 240, 384), num_heads=(1, 2, 5, 8), depths=(1, 2, 5, 3))
    return _create("edgevit_s", pretrained, **args | kwargs)
