"""MobileViT as the tutorials have it: wide attention in a small convolutional network.

A MobileViT block looks at a map twice: convolutions see each position's neighbours, and a transformer lets positions
attend to each other if they lie at the same place in their patches. Since a convolution has mixed each patch before, a
position indirectly sees the whole map. Between the blocks, inverted residuals halve the map.

The attention has 8 heads of 64 channels however wide the tokens are, hence the name. Most parameters are there.

Paper: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer (2021),
    https://arxiv.org/abs/2110.02178
Code: https://github.com/xmu-xiaoma666/External-Attention-pytorch, commit d75848e (MIT), which is widely copied. It is
    not by the paper's authors.

Changes from that code, which cannot run as published:
    * the depthwise convolution of an inverted residual has the stride it is given; there it is 1 in every block, and
      the map stays at half the image's side;
    * the last map is averaged whole; there the pooling window fits one image size, and the classifier does not take
      what it leaves;
    * a map that the patch does not divide is resized to the next multiple for the transformer and back, as timm's
      MobileViT does, so any image size works; there 224 px, its own default, gives a 7 x 7 map and fails.
A checkpoint of a repaired copy loads, since none of these repairs has parameters.

How it differs from Apple's MobileViT, the paper's, which timm has as `mobilevit_xxs`, `mobilevit_xs`, `mobilevit_s`:
    =====================  ===========================================  ============================================
                           here                                         Apple's
    =====================  ===========================================  ============================================
    attention              8 heads of 64, `qkv` without bias            4 heads of a quarter of the width, with bias
    tokens (XXS)           60, 80, 96 wide                              64, 80, 96 wide
    MLP, relative          2, 4, 4                                      2
    convolutions in block  bare, with bias                              BatchNorm and SiLU, all but the one to tokens
    after the transformer  nothing                                      LayerNorm
    inverted residual      expansion 4; SiLU before the last BatchNorm  expansion 2 (XXS) or 4; the last 1x1 is linear
    classifier             without bias                                 with bias
    parameters (XXS)       2.77 M                                       1.27 M
    =====================  ===========================================  ============================================
Weights of the one do not fit the other. To use published MobileViT weights, take timm's.

There are no published weights of this network.

Shapes: B batch, C channels, H x W map, D token width, p patch side, P = p * p places in a patch, N patches, h heads.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, DropPath, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._blocks import fold, unfold
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .traits import Keys, keys_of, patch_keys

__all__ = ["MobileViTAttention", "MobileViTWide"]


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a shortcut. `(B, N, D) -> (B, N, D)`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        device: Any,
        dtype: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = Attention(dim, num_heads, attn_head_dim=head_dim, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, mlp_dim, act_layer=nn.SiLU, drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MobileViTAttention(nn.Module):
    """Convolution, transformer over patches, fusion with the input. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    Order, meaning and defaults of the arguments are the tutorial's, but two have timm's names: its `in_channel`, the
    map's channels, is `dim` here and has no default, and its `dim`, the width of a token, is `transformer_dim`. Tokens
    are positions, not patches: those at the same place of their patch form one sequence of N tokens, and there are P
    sequences.

    Args:
        dim: Channels `C` of the map.
        transformer_dim: Width `D` of a token, in channels.
        kernel_size: Side of the first and of the last convolution, odd, in map cells.
        patch_size: Side `p` of a patch, in map cells. A map that it does not divide is resized to the next multiple for
            the transformer.
        depth: Transformer blocks.
        mlp_dim: Width of their MLP's hidden layer, in channels.
        num_heads: Attention heads `h`.
        head_dim: Channels of one head; `h * head_dim` need not be the width of a token.
        attn_drop: Dropout on the softmax map.
        proj_drop: Dropout after the attention's projection and in the MLP.
        drop_path: Stochastic depth of the transformer blocks, one rate for all or one each.
        dilation: How many times closer the map's cells lie than where the weights come from; convolutions are dilated
            and patches grow by it, so that each cell sees what it would see there.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a size below 1, an even kernel, or rates that are not one for each block.
    """

    def __init__(
        self,
        dim: int,
        transformer_dim: int = 512,
        kernel_size: int = 3,
        patch_size: int = 7,
        depth: int = 3,
        mlp_dim: int = 1024,
        num_heads: int = 8,
        head_dim: int = 64,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        sizes = ("dim", "transformer_dim", "kernel_size", "patch_size", "depth", "mlp_dim", "num_heads", "head_dim")
        check_sizes(given, (*sizes, "dilation"))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        rates = drop_path if isinstance(drop_path, Sequence) else [drop_path] * depth
        if len(rates) != depth or not all(0 <= rate < 1 for rate in rates):
            raise ValueError(
                f"drop_path={drop_path} must be one rate of at least 0 and below 1, or one for each of {depth} blocks"
            )
        self.patch_size = dilation * patch_size
        pad = dilation * (kernel_size // 2)
        self.conv_kxk = nn.Conv2d(dim, dim, kernel_size, 1, pad, dilation, **dd)
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, **dd)
        block = partial(TransformerBlock, transformer_dim, num_heads, head_dim, mlp_dim, attn_drop, proj_drop)
        self.transformer = nn.Sequential(*[block(rate, **dd) for rate in rates])
        self.conv_proj = nn.Conv2d(transformer_dim, dim, 1, **dd)
        self.conv_fusion = nn.Conv2d(2 * dim, dim, kernel_size, 1, pad, dilation, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = unfold(self.conv_1x1(self.conv_kxk(x)), self.patch_size)
        B, P, D, N = y.shape
        y = self.transformer(y.transpose(2, 3).flatten(0, 1))  # (B P, N, D)
        y = fold(y.transpose(1, 2).reshape(B, P, D, N), self.patch_size, x.shape[2], x.shape[3])
        y = self.conv_proj(y)
        return self.conv_fusion(torch.cat([x, y], dim=1))


@keys_of(MobileViTAttention)
def _lay_out(attn: MobileViTAttention, shape: tuple[int, ...]) -> Keys:
    return patch_keys(shape[2:], attn.patch_size)


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3, 1x1, and perhaps a shortcut. `(B, dim, H, W) -> (B, out_dim, ceil, ceil)`."""

    def __init__(
        self, dim: int, out_dim: int, stride: int, expand_ratio: int, dilation: int = 1, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.has_shortcut = shortcut
        self.layers = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, stride, dilation, dilation, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, out_dim, 1, bias=False),
            nn.SiLU(),
            nn.BatchNorm2d(out_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


def _conv_norm_act(dim: int, out_dim: int, kernel_size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(dim, out_dim, kernel_size, stride, kernel_size // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(out_dim), nn.SiLU())


class MobileViTWide(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem at stride 2; the last three have a MobileViT block.

    Args:
        stem_dims: Channels after the first convolution and after the first inverted residual, both at stride 2.
        embed_dims: Channels of each stage.
        transformer_dims: Width of a token in the last three stages.
        num_features: Channels of the 1x1 convolution in front of the pooling.
        depths: Transformer blocks in the last three stages.
        mlp_ratios: Width of their MLP's hidden layer, relative to the tokens.
        num_heads: Attention heads.
        head_dim: Channels of one head.
        patch_size: Side of a patch, in map cells.
        expand_ratio: Width of an inverted residual's hidden layer, relative to its input.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout on softmax maps.
        proj_drop_rate: Dropout after the attention's projections and in MLPs.
        drop_path_rate: Stochastic depth of the last transformer block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated and patches grow, so that the cells which the network would have kept have the same
            values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        stem_dims: tuple[int, int],
        embed_dims: tuple[int, ...],
        transformer_dims: tuple[int, ...],
        num_features: int,
        depths: tuple[int, ...] = (2, 4, 3),
        mlp_ratios: tuple[int, ...] = (2, 4, 4),
        num_heads: int = 8,
        head_dim: int = 64,
        patch_size: int = 2,
        expand_ratio: int = 4,
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
        check_args(given, ("embed_dims",), last_three=("transformer_dims", "depths", "mlp_ratios"))
        stems = stem_dims if isinstance(stem_dims, (tuple, list)) else ()
        if len(stems) != 2 or not all(isinstance(dim, int) and dim >= 1 for dim in stems):
            raise ValueError(f"stem_dims={stem_dims} must be two counts of channels")
        check_sizes(given, ("num_features", "expand_ratio"))
        rates: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
        residual = partial(InvertedResidual, expand_ratio=expand_ratio)

        dim = embed_dims[0]
        stages = [Stage(residual(stem_dims[1], dim, 2), [residual(dim, dim, 1, shortcut=True) for _ in range(2)])]
        for level in range(3):
            width, depth, out_dim = transformer_dims[level], depths[level], embed_dims[level + 1]
            stride, opening, dilation = dilations(output_stride)[level + 1]
            block = MobileViTAttention(
                out_dim,
                width,
                patch_size=patch_size,
                depth=depth,
                mlp_dim=width * mlp_ratios[level],
                num_heads=num_heads,
                head_dim=head_dim,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                drop_path=[rates.pop(0) for _ in range(depth)],
                dilation=dilation,
            )
            stages.append(Stage(residual(dim, out_dim, stride, dilation=opening), [block]))
            dim = out_dim
        super().__init__(
            stem=nn.Sequential(
                _conv_norm_act(in_chans, stem_dims[0], 3, 2),
                residual(*stem_dims, 1, shortcut=stem_dims[0] == stem_dims[1]),
            ),
            stages=stages,
            norm=_conv_norm_act(dim, num_features, 1, 1),
            embed_dims=embed_dims,
            stem_dim=stem_dims[1],
            num_features=num_features,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_bias=False,
            output_stride=output_stride,
        )


# Weights: the tutorial's names on the left. A stand-alone block's (`conv1.weight`) are those of a block in a network.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^conv1\.(\d)\.", r"stem.layers.0.\1."),
    (r"^mv2\.0\.conv\.", "stem.layers.1.layers."),
    (r"^mv2\.1\.conv\.", "stage1.downsample.layers."),
    (r"^mv2\.([23])\.conv\.", lambda m: f"stage1.blocks.{int(m[1]) - 2}.layers."),
    (r"^mv2\.([456])\.conv\.", lambda m: f"stage{int(m[1]) - 2}.downsample.layers."),
    (r"^m_vits\.(\d)\.", lambda m: f"stage{int(m[1]) + 2}.blocks.0."),
    (r"^conv2\.(\d)\.", r"norm.\1."),
    (r"^fc\.", "head."),
    (r"(^|\.)conv1\.(weight|bias)$", r"\1conv_kxk.\2"),
    (r"(^|\.)conv2\.(weight|bias)$", r"\1conv_1x1.\2"),
    (r"(^|\.)conv3\.(weight|bias)$", r"\1conv_proj.\2"),
    (r"(^|\.)conv4\.(weight|bias)$", r"\1conv_fusion.\2"),
    (r"(^|\.)trans\.layers\.(\d+)\.0\.ln\.", r"\1transformer.\2.norm1."),
    (r"(^|\.)trans\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"\1transformer.\2.attn.qkv."),
    (r"(^|\.)trans\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"\1transformer.\2.attn.proj."),
    (r"(^|\.)trans\.layers\.(\d+)\.1\.ln\.", r"\1transformer.\2.norm2."),
    (r"(^|\.)trans\.layers\.(\d+)\.1\.fn\.net\.0\.", r"\1transformer.\2.mlp.fc1."),
    (r"(^|\.)trans\.layers\.(\d+)\.1\.fn\.net\.3\.", r"\1transformer.\2.mlp.fc2."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the tutorial's checkpoint, of a network or of one block; one of ours passes through unchanged."""
    state_dict = state_dict.get("model", state_dict)
    return renamed(state_dict, _RENAMES)


_CODE = "https://github.com/xmu-xiaoma666/External-Attention-pytorch"
source_commits = {_CODE: "d75848e40233ed56fa503c888472bab8b17c568c"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    input_size=(3, 256, 256),
    pool_size=(8, 8),
    first_conv="stem.layers.0.0",
    license="mit",
    paper_ids="arXiv:2110.02178",
    paper_name="MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {
        "mobilevit_wide_xxs.untrained": _cfg(),
        "mobilevit_wide_xs.untrained": _cfg(),
        "mobilevit_wide_s.untrained": _cfg(),
    }
)

_create = partial(build_staged, MobileViTWide, checkpoint_filter_fn)


@register_model
def mobilevit_wide_xxs(pretrained: bool = False, **kwargs: Any) -> MobileViTWide:
    """The tutorials' MobileViT-XXS."""
    args: dict[str, Any] = dict(
        stem_dims=(16, 16), embed_dims=(24, 48, 64, 80), transformer_dims=(60, 80, 96), num_features=320
    )
    return _create("mobilevit_wide_xxs", pretrained, **args | kwargs)


@register_model
def mobilevit_wide_xs(pretrained: bool = False, **kwargs: Any) -> MobileViTWide:
    """The tutorials' MobileViT-XS."""
    args: dict[str, Any] = dict(
        stem_dims=(16, 32), embed_dims=(48, 64, 80, 96), transformer_dims=(96, 120, 144), num_features=384
    )
    return _create("mobilevit_wide_xs", pretrained, **args | kwargs)


@register_model
def mobilevit_wide_s(pretrained: bool = False, **kwargs: Any) -> MobileViTWide:
    """The tutorials' MobileViT-S."""
    args: dict[str, Any] = dict(
        stem_dims=(16, 32), embed_dims=(64, 96, 128, 160), transformer_dims=(144, 192, 240), num_features=640
    )
    return _create("mobilevit_wide_s", pretrained, **args | kwargs)
