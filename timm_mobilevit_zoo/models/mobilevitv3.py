"""MobileViTv3: local and global features of a MobileViT block fused cell by cell, and its input added.

MobileViT's block fuses its input with the transformer's result by a 3x3 convolution. Here a 1x1 convolution, cell by
cell, fuses that result with the local features that it was computed from, and the input is added as a shortcut. The
local 3x3 convolution is depthwise; what this saves goes into width. One kind changes MobileViT's network, with softmax
attention, the other MobileViTv2's, with separable attention.

Paper: MobileViTv3: Mobile-Friendly Vision Transformer with Simple and Effective Fusion of Local, Global and Input
    Features (2022), https://arxiv.org/abs/2209.15159

Written from the facts of the paper, in part as its readers report them. The authors' code has a licence that forbids
commercial use and claims what is derived from it: nobody looked at it for this file, so there is no recording of its
outputs and no translation of its checkpoints. What shows that this is the paper's network are the parameters and
multiply-adds of each variant, and a second forward pass of the block, written on its own (tests/test_mobilevitv3.py).

What the paper leaves to the networks it changes is as timm has it, and initial weights are drawn as Apple's training
code draws those of these networks. A map that the patch does not divide is resized to the next multiple for the
transformer and back, in both kinds, so any image size works.

Shapes: B batch, C channels, H x W map, D token width, p patch side, P = p * p places in a patch, N patches.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import Attention, ConvMlp, DropPath, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._blocks import fold, init_layers, unfold
from ._build import build_staged
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .traits import Keys, keys_of, patch_keys

__all__ = ["MobileViTv3", "MobileViTv3Block"]

# What tests ask of every model and these cannot do: their names, and why.
limits = {"test_a_family_has_a_recording": "the authors' licence forbids what could make one"} | dict.fromkeys(
    [f"test_a_dilated_map_holds_the_cells_of_the_map[mobilevitv3_{width}]" for width in ("050", "075", "100")],
    "separable attention's norm takes the mean over all cells of the map: dilation makes more",
)


def _conv_norm(
    dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1, **dd: Any
) -> list[nn.Module]:
    pad = dilation * (kernel_size // 2)
    conv = nn.Conv2d(dim, out_dim, kernel_size, stride, pad, dilation, groups, bias=False, **dd)
    return [conv, nn.BatchNorm2d(out_dim, **dd)]


class SeparableAttention(nn.Module):
    """MobileViTv2's attention: one softmax over all patches weighs the keys into a context. `(B, D, P, N) -> same`.

    Each of the P sequences has a context vector of its own, which multiplies all its values; the cost is linear in N.
    It is the layer of timm's MobileViTv2 with other names: transformers' detectors rename a child `out_proj` when they
    load weights, and then leave a backbone's at random.
    """

    def __init__(self, dim: int, attn_drop: float, proj_drop: float, dd: Any) -> None:
        super().__init__()
        self.dim = dim
        self.qkv = nn.Conv2d(dim, 1 + 2 * dim, 1, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([1, self.dim, self.dim], dim=1)
        context = (self.attn_drop(q.softmax(dim=-1)) * k).sum(dim=-1, keepdim=True)  # (B, D, P, 1)
        return self.proj_drop(self.proj(v.relu() * context))


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut. Shape kept."""

    def __init__(self, norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MobileViTv3Block(nn.Module):
    """Local features, a transformer over patches, their fusion, a shortcut. `(B, C, H, W) -> (B, C, H, W)`, any size.

    Args:
        dim: Channels `C` of the map.
        transformer_dim: Width `D` of a token, in channels; a multiple of `num_heads` where there are heads.
        depth: Transformer blocks.
        num_heads: Attention heads; separable attention has none.
        mlp_ratio: Width of an MLP's hidden layer, relative to the tokens.
        patch_size: Side `p` of a patch, in map cells. A map that it does not divide is resized to the next multiple for
            the transformer.
        separable: Take MobileViTv2's separable attention; the fusion then sees tokens as they are and is linear.
        attn_drop: Dropout on the softmax map.
        proj_drop: Dropout after the attention's projection and in the MLP.
        drop_path: Stochastic depth of the transformer blocks, one rate each; none where empty.
        dilation: How many times closer the map's cells lie than where the weights come from; the convolution is dilated
            and patches grow by it, so that each cell sees what it would see there.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a size below 1, a `transformer_dim` that the heads do not divide, an MLP without hidden
            channels, or rates that are not one for each block.
    """

    def __init__(
        self,
        dim: int,
        transformer_dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        patch_size: int = 2,
        separable: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: tuple[float, ...] = (),
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_sizes(locals(), ("dim", "transformer_dim", "depth", "num_heads", "patch_size", "dilation"))
        if transformer_dim % num_heads and not separable:
            raise ValueError(f"transformer_dim={transformer_dim} must be a multiple of num_heads={num_heads}")
        if (hidden := int(mlp_ratio * transformer_dim)) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of transformer_dim={transformer_dim}")
        rates = drop_path or (0.0,) * depth
        if len(rates) != depth or not all(0 <= rate < 1 for rate in rates):
            right = f"{depth} rates of at least 0 and below 1, one for each block"
            raise ValueError(f"drop_path={drop_path} must be {right}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.patch_size = dilation * patch_size
        self.separable = separable
        self.conv_kxk = nn.Sequential(*_conv_norm(dim, dim, 3, dilation=dilation, groups=dim, **dd), nn.SiLU())
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, bias=False, **dd)
        drops: dict[str, Any] = {"attn_drop": attn_drop, "proj_drop": proj_drop}

        def block(rate: float) -> TransformerBlock:
            if separable:
                attn: nn.Module = SeparableAttention(transformer_dim, dd=dd, **drops)
                mlp: nn.Module = ConvMlp(transformer_dim, hidden, act_layer=nn.SiLU, drop=proj_drop, **dd)
            else:
                attn = Attention(transformer_dim, num_heads, qkv_bias=True, **drops, **dd)
                mlp = Mlp(transformer_dim, hidden, act_layer=nn.SiLU, drop=proj_drop, **dd)
            return TransformerBlock(norm(), attn, norm(), mlp, rate)

        if separable:
            norm: Any = partial(nn.GroupNorm, 1, transformer_dim, **dd)
            self.conv_proj: nn.Module = nn.Identity()
            fusion = _conv_norm(2 * transformer_dim, dim, **dd)
        else:
            norm = partial(nn.LayerNorm, transformer_dim, **dd)
            self.conv_proj = nn.Sequential(*_conv_norm(transformer_dim, dim, **dd), nn.SiLU())
            fusion = [*_conv_norm(transformer_dim + dim, dim, **dd), nn.SiLU()]
        self.transformer = nn.Sequential(*[block(rate) for rate in rates])
        self.norm = norm()
        self.conv_fusion = nn.Sequential(*fusion)

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv_1x1(self.conv_kxk(x))
        y = unfold(local, self.patch_size)
        B, P, D, N = y.shape
        if self.separable:
            y = self.norm(self.transformer(y.transpose(1, 2))).transpose(1, 2)  # inside (B, D, P, N)
        else:
            y = self.norm(self.transformer(y.transpose(2, 3).flatten(0, 1)))  # (B P, N, D)
            y = y.transpose(1, 2).reshape(B, P, D, N)
        y = self.conv_proj(fold(y, self.patch_size, x.shape[2], x.shape[3]))
        return x + self.conv_fusion(torch.cat([local, y], dim=1))


@keys_of(MobileViTv3Block)
def _lay_out(block: MobileViTv3Block, shape: tuple[int, ...]) -> Keys:
    return patch_keys(shape[2:], block.patch_size)


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3, linear 1x1, and a shortcut unless it opens a stage or changes the channels.

    `(B, dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))`
    """

    def __init__(
        self, dim: int, out_dim: int, stride: int, expand_ratio: int, dilation: int = 1, opens: bool = False
    ) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.has_shortcut = dim == out_dim and not opens
        self.layers = nn.Sequential(
            *_conv_norm(dim, hidden),
            nn.SiLU(),
            *_conv_norm(hidden, hidden, 3, stride, dilation, hidden),
            nn.SiLU(),
            *_conv_norm(hidden, out_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


class MobileViTv3(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem at stride 2; the last three have a MobileViTv3 block.

    Args:
        stem_dims: Channels after the first convolution and after the first inverted residual, both at stride 2.
        embed_dims: Channels of each stage.
        transformer_dims: Width of a token in the last three stages.
        depths: Inverted residuals of the first stage beside the one that opens it; transformer blocks of the others.
        expand_ratio: Width of an inverted residual's hidden layer, relative to its input.
        num_features: Channels of the 1x1 convolution in front of the pooling; 0 for none.
        separable: Take separable attention, for the kind on MobileViTv2.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout on softmax maps.
        proj_drop_rate: Dropout after the attention's projections and in MLPs.
        drop_path_rate: Stochastic depth of the last transformer block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated and patches grow.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        stem_dims: tuple[int, int],
        embed_dims: tuple[int, ...],
        transformer_dims: tuple[int, ...],
        depths: tuple[int, ...] = (2, 2, 4, 3),
        expand_ratio: int = 4,
        num_features: int = 0,
        separable: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        given = dict(locals())
        check_args(given, ("embed_dims", "depths"), last_three=("transformer_dims",))
        stems = stem_dims if isinstance(stem_dims, (tuple, list)) else ()
        if len(stems) != 2 or not all(isinstance(dim, int) and dim >= 1 for dim in stems):
            raise ValueError(f"stem_dims={stem_dims} must be two counts of channels")
        check_sizes(given, ("expand_ratio",))
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths[1:])))
        residual = partial(InvertedResidual, expand_ratio=expand_ratio)

        dim = embed_dims[0]
        stages = [Stage(residual(stem_dims[1], dim, 2, opens=True), [residual(dim, dim, 1) for _ in range(depths[0])])]
        for level in range(1, 4):
            stride, opening, dilation = dilations(output_stride)[level]
            block = MobileViTv3Block(
                embed_dims[level],
                transformer_dims[level - 1],
                depths[level],
                separable=separable,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                drop_path=tuple(next(rates) for _ in range(depths[level])),
                dilation=dilation,
            )
            stages.append(Stage(residual(dim, embed_dims[level], stride, dilation=opening, opens=True), [block]))
            dim = embed_dims[level]
        super().__init__(
            stem=nn.Sequential(*_conv_norm(in_chans, stem_dims[0], 3, 2), nn.SiLU(), residual(*stem_dims, 1)),
            stages=stages,
            norm=nn.Sequential(*_conv_norm(dim, num_features), nn.SiLU()) if num_features else nn.Identity(),
            embed_dims=embed_dims,
            stem_dim=stem_dims[1],
            num_features=num_features,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            output_stride=output_stride,
            head_std=0.02,
        )
        init_layers(self)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return a checkpoint of ours, bare or under `model` or `state_dict`; there is no other layout to translate."""
    for wrapper in ("model", "state_dict"):
        state_dict = state_dict.get(wrapper, state_dict)
    return state_dict


# The authors' claims: ImageNet-1k top-1 at 256 px, in percent.
published_top1 = {
    "mobilevitv3_xxs": 70.98,
    "mobilevitv3_xs": 76.7,
    "mobilevitv3_s": 79.3,
    "mobilevitv3_xxs_l2": 70.23,
    "mobilevitv3_xs_l2": 76.1,
    "mobilevitv3_s_l2": 79.06,
    "mobilevitv3_050": 72.33,
    "mobilevitv3_075": 76.55,
    "mobilevitv3_100": 78.64,
}

_cfg = imagenet_cfg(
    input_size=(3, 256, 256),
    pool_size=(8, 8),
    first_conv="stem.layers.0",
    license="apache-2.0",
    paper_ids="arXiv:2209.15159",
    paper_name="MobileViTv3: Mobile-Friendly Vision Transformer with Simple and Effective Fusion of Local, Global and "
    "Input Features",
    origin_url="https://arxiv.org/abs/2209.15159",
)
default_cfgs = pinned_default_cfgs({f"{name}.untrained": _cfg for name in published_top1})

_create = partial(build_staged, MobileViTv3, checkpoint_filter_fn)
_L2: dict[str, Any] = {"depths": (2, 2, 2, 3)}
_XXS: dict[str, Any] = dict(
    stem_dims=(16, 16), embed_dims=(24, 64, 80, 128), transformer_dims=(64, 80, 96), expand_ratio=2, num_features=512
)
_XS: dict[str, Any] = dict(
    stem_dims=(16, 32), embed_dims=(48, 96, 160, 160), transformer_dims=(96, 120, 144), num_features=640
)
_S: dict[str, Any] = dict(
    stem_dims=(16, 32), embed_dims=(64, 128, 256, 320), transformer_dims=(144, 192, 240), num_features=960
)
_SEPARABLE: dict[str, Any] = {"depths": (1, 2, 4, 3), "expand_ratio": 2, "separable": True}


@register_model
def mobilevitv3_xxs(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-XXS."""
    return _create("mobilevitv3_xxs", pretrained, **_XXS | kwargs)


@register_model
def mobilevitv3_xs(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-XS."""
    return _create("mobilevitv3_xs", pretrained, **_XS | kwargs)


@register_model
def mobilevitv3_s(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-S."""
    return _create("mobilevitv3_s", pretrained, **_S | kwargs)


@register_model
def mobilevitv3_xxs_l2(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-XXS(L2), with two transformer blocks in the third stage."""
    return _create("mobilevitv3_xxs_l2", pretrained, **_XXS | _L2 | kwargs)


@register_model
def mobilevitv3_xs_l2(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-XS(L2), with two transformer blocks in the third stage."""
    return _create("mobilevitv3_xs_l2", pretrained, **_XS | _L2 | kwargs)


@register_model
def mobilevitv3_s_l2(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-S(L2), with two transformer blocks in the third stage."""
    return _create("mobilevitv3_s_l2", pretrained, **_S | _L2 | kwargs)


@register_model
def mobilevitv3_050(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-0.5, on separable attention."""
    args: dict[str, Any] = dict(stem_dims=(16, 32), embed_dims=(64, 128, 192, 256), transformer_dims=(64, 96, 128))
    return _create("mobilevitv3_050", pretrained, **_SEPARABLE | args | kwargs)


@register_model
def mobilevitv3_075(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-0.75, on separable attention."""
    args: dict[str, Any] = dict(stem_dims=(24, 48), embed_dims=(96, 192, 288, 384), transformer_dims=(96, 144, 192))
    return _create("mobilevitv3_075", pretrained, **_SEPARABLE | args | kwargs)


@register_model
def mobilevitv3_100(pretrained: bool = False, **kwargs: Any) -> MobileViTv3:
    """MobileViTv3-1.0, on separable attention."""
    args: dict[str, Any] = dict(stem_dims=(32, 64), embed_dims=(128, 256, 384, 512), transformer_dims=(128, 192, 256))
    return _create("mobilevitv3_100", pretrained, **_SEPARABLE | args | kwargs)
