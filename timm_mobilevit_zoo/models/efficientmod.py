"""EfficientMod: modulation and MLP in one. What a convolution sees around a cell scales the MLP's hidden layer.

So a block mixes channels and neighbours with weights that depend on the image, like attention, at the price of a
convolution. Blocks as wide as the map alternate with blocks whose hidden layer is wider. The hybrids end their last two
stages with plain transformer blocks, without position embeddings.

Paper: Efficient Modulation for Vision Networks (ICLR 2024), https://arxiv.org/abs/2403.19963
Code: https://github.com/ma-xu/EfficientMod, commit ec04df6 (Apache-2.0)

Changes from the authors' code:
    * a level ends before the strided convolution, which opens the next stage, as in their code for detection;
      `checkpoint_filter_fn` maps their numbering;
    * maps are channels first between layers; in memory the channels lie last, as theirs do;
    * with `output_stride`, which they do not have, keys are the cells that the halved map would have had.

Shapes: B batch, C channels, H x W map, r expansion, h heads, d channels of a head, N = H * W queries, M keys.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, Mlp, calculate_drop_path_rates, use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ._args import check_args, check_sizes, dilations
from ._blocks import depthwise, depthwise_conv, every, init_linear
from ._build import build_staged, renamed
from ._cfg import birder_cfg, imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .places import DRIVE_FOLDER
from .traits import Keys, keys_of, pooled_keys

__all__ = ["EfficientMod", "EfficientModulation"]

limits = {"test_a_network_has_maps[efficientmod_s_conv]": "it has no attention: modulation has no softmax"}

_norm = partial(LayerNorm2d, eps=1e-5)


class EfficientModulation(nn.Module):
    """An MLP whose hidden layer is scaled by the context of each cell. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    The context has C channels; each of them scales r of the hidden ones. There is no norm and no shortcut inside. The
    defaults are those of the wide blocks of EfficientMod-S.

    Args:
        dim: Channels `C`.
        expand_ratio: Width `r` of the hidden layer, relative to `dim`. With 1 it has no activation.
        kernel_size: Side of the context's depthwise convolution, odd, in map cells.
        dilation: How many times closer the map's cells lie than where the weights come from; the convolution is dilated
            by it.
        proj_drop: Dropout on the hidden layer, behind its activation; a hidden layer without one has none.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a size below 1 or an even kernel.
    """

    def __init__(
        self,
        dim: int,
        expand_ratio: int = 6,
        kernel_size: int = 7,
        dilation: int = 1,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "expand_ratio", "kernel_size", "dilation"))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        self.expand_ratio = expand_ratio
        self.context_in = nn.Linear(dim, dim, **dd)
        self.context_conv = depthwise_conv(dim, kernel_size, 1, dilation, **dd)
        self.context_act = nn.GELU()
        self.context_out = nn.Linear(dim, dim, **dd)
        self.fc1 = nn.Linear(dim, expand_ratio * dim, **dd)
        self.act = nn.GELU() if expand_ratio > 1 else nn.Identity()
        self.drop = nn.Dropout(proj_drop) if expand_ratio > 1 else nn.Identity()
        self.fc2 = nn.Linear(expand_ratio * dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        context = self.context_in(x).permute(0, 3, 1, 2)
        context = self.context_conv(context) if torch.jit.is_scripting() else depthwise(self.context_conv, context)
        context = self.context_out(self.context_act(context).permute(0, 2, 3, 1)).unsqueeze(3)  # (B, H, W, 1, C)
        x = self.drop(self.act(self.fc1(x))).unflatten(3, (self.expand_ratio, -1))  # (B, H, W, r, C)
        return self.fc2((x * context).flatten(3)).permute(0, 3, 1, 2)


class ModulationBlock(nn.Module):
    """Norm, modulation, scale and a shortcut around them. Shape kept."""

    def __init__(self, dim: int, expand_ratio: int, dilation: int, proj_drop: float, drop_path: float) -> None:
        super().__init__()
        self.norm = _norm(dim)
        self.mlp = EfficientModulation(dim, expand_ratio, dilation=dilation, proj_drop=proj_drop)
        self.scale = LayerScale2d(dim, init_values=1e-4)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale(self.mlp(self.norm(x))))


class MapAttention(nn.Module):
    """Attention of each cell to the whole map, without positions. `(B, C, H, W) -> (B, C, H, W)`."""

    fused_attn: torch.jit.Final[bool]

    def __init__(self, dim: int, dilation: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads = 8
        self.head_dim = max(dim // self.num_heads, 32)  # h * d may exceed C
        self.dilation = dilation
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * self.num_heads * self.head_dim, bias=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(self.num_heads * self.head_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2], x.shape[3]
        q, k, v = self.qkv(x.permute(0, 2, 3, 1)).chunk(3, dim=3)  # (B, H, W, h d)
        # Keys are the cells that a map not dilated has.
        k, v = every(k, self.dilation), every(v, self.dilation)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (B, h, N or M, d)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        x = x.transpose(1, 2).flatten(2).unflatten(1, (H, W))  # (B, H, W, h d)
        return self.proj_drop(self.proj(x)).permute(0, 3, 1, 2)


@keys_of(MapAttention)
def _lay_out(attn: MapAttention, shape: tuple[int, ...]) -> Keys:
    return pooled_keys(shape[2:], attn.dilation)


class AttentionBlock(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut. Shape kept."""

    def __init__(
        self, dim: int, mlp_ratio: int, dilation: int, attn_drop: float, proj_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = _norm(dim)
        self.attn = MapAttention(dim, dilation, attn_drop, proj_drop)
        self.norm2 = _norm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim, drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _conv_norm(in_dim: int, dim: int, kernel_size: int, stride: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, kernel_size, stride, dilation * (kernel_size // 2), dilation)
    return nn.Sequential(conv, _norm(dim))


class EfficientMod(StagedModel):
    """Four levels at strides 4, 8, 16, 32; without `attn_depths` a convolutional network.

    Args:
        embed_dims: Channels of each stage.
        depths: Modulation blocks of each stage.
        expand_ratio: Width of the hidden layer in a stage's blocks 2, 4, ..., relative to the channels; else it is 1.
        attn_depths: Transformer blocks at the end of each stage.
        attn_mlp_ratios: Width of their MLP's hidden layer, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout on softmax maps.
        proj_drop_rate: Dropout after the attention's projections, in MLPs, and in modulations that widen the map.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated, and keys are the cells that the network would have kept, whose values stay.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        expand_ratio: int = 6,
        attn_depths: tuple[int, ...] = (0, 0, 0, 0),
        attn_mlp_ratios: tuple[int, ...] = (4, 4, 4, 4),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths", "attn_mlp_ratios"))
        counts = attn_depths if isinstance(attn_depths, (tuple, list)) else ()
        if len(counts) != 4 or not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"attn_depths={attn_depths} needs 4 entries, whole numbers from 0, one a stage")
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths) + sum(attn_depths)))

        downsample: nn.Module = nn.Identity()
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            if level > 0:
                downsample = _conv_norm(embed_dims[level - 1], dim, 3, stride, opening)
            ratios = [expand_ratio if block % 2 else 1 for block in range(depths[level])]
            blocks: list[nn.Module] = [
                ModulationBlock(dim, ratio, dilation, proj_drop_rate, next(rates)) for ratio in ratios
            ]
            drops, mlp_ratio = (attn_drop_rate, proj_drop_rate), attn_mlp_ratios[level]
            blocks += [AttentionBlock(dim, mlp_ratio, dilation, *drops, next(rates)) for _ in range(attn_depths[level])]
            stages.append(Stage(downsample, blocks))
        for module in nn.ModuleList(stages).modules():
            if isinstance(module, nn.Linear):  # convolutions keep torch's, as in the authors' code
                init_linear(module)
        super().__init__(
            stem=_conv_norm(in_chans, embed_dims[0], 7, 4),
            stages=stages,
            norm=_norm(embed_dims[-1]),
            embed_dims=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left. Their layer i ends with the convolution that opens our stage i + 2.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^patch_embed\.(proj|norm)\.", lambda m: f"stem.layers.{int(m[1] == 'norm')}."),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stage{int(m[1]) + 2}.downsample."),
    (r"\.downsample\.(proj|norm)\.", lambda m: f".downsample.{int(m[1] == 'norm')}."),
    (r"^layers\.(\d)\.blocks\.", lambda m: f"stage{int(m[1]) + 1}.blocks."),
    (r"\.gamma_1$", ".scale.gamma"),
    (r"\.context_layer\.f\.", ".context_in."),
    (r"\.context_layer\.context_list\.0\.", ".context_conv."),
    (r"\.context_layer\.g\.", ".context_out."),
    # birder's
    (r"^stem\.(proj|norm)\.", lambda m: f"stem.layers.{int(m[1] == 'norm')}."),
    (r"^body\.", ""),
    (r"\.context_layer\.context_layer\.", ".context_conv."),
    (r"\.layer_scale(_\d)?\.gamma$", r".scale\1.gamma"),
    (r"\.mlp\.([03])\.", lambda m: f".mlp.fc{1 + int(m[1] == '3')}."),
    (r"^features\.0\.", "norm."),
    (r"^classifier\.", "head."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `state_dict`, or birder's; one of ours passes through."""
    state_dict = state_dict.get("state_dict", state_dict.get("model", state_dict))
    return renamed(state_dict, _RENAMES)


# The authors' files, in folders of Google Drive, and what they claim of each: ImageNet-1k top-1 at 224 px, in percent.
# The paper's 76.0, 78.3 and 81.0 are of networks trained without distillation, which are not published.
_FILES = {
    "efficientmod_xxs.dist_in1k": ("1c0dlnN7w1bHlAsKcJFhGVA2mIhoA6ZHz", 77.1),
    "efficientmod_xs.dist_in1k": ("1PPQFO891WfJRUiH58NlWOgHDEzDnwC0_", 79.4),
    "efficientmod_s.dist_in1k": ("1rJs8LcWmdTFmj-IJ0cmlVp_MxGfZFsFk", 81.9),
    "efficientmod_s_conv.in1k": ("1EY637XRiDPL4AwrVGESJWsK-ZP2GhnaI", 80.5),
}
published_top1 = {variant: top1 for variant, (_, top1) in _FILES.items()}

_CODE = "https://github.com/ma-xu/EfficientMod"
source_commits = {_CODE: "ec04df6da43b91414f3fd9ad0ea7a1161be6157c"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0",
    license="apache-2.0",
    paper_ids="arXiv:2403.19963",
    paper_name="Efficient Modulation for Vision Networks",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {variant: _cfg(url=f"{DRIVE_FOLDER}{folder}") for variant, (folder, _) in _FILES.items()}
    | {"efficientmod_xxs.birder_il_common": birder_cfg("efficientmod_xxs", _cfg)}
)
_create = partial(build_staged, EfficientMod, checkpoint_filter_fn, stem_level=False)


@register_model
def efficientmod_xxs(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-XXS."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 128, 256), depths=(2, 2, 6, 2), attn_depths=(0, 0, 1, 2))
    return _create("efficientmod_xxs", pretrained, **args | kwargs)


@register_model
def efficientmod_xs(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-XS."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 144, 288), depths=(3, 3, 4, 2), attn_depths=(0, 0, 3, 3))
    args |= dict(expand_ratio=4)
    return _create("efficientmod_xs", pretrained, **args | kwargs)


@register_model
def efficientmod_s(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-S."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 144, 312), depths=(4, 4, 8, 4), attn_depths=(0, 0, 4, 4))
    args |= dict(attn_mlp_ratios=(4, 4, 4, 5), drop_path_rate=0.02)
    return _create("efficientmod_s", pretrained, **args | kwargs)


@register_model
def efficientmod_s_conv(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-S-Conv, of modulation blocks alone."""
    args: dict[str, Any] = dict(embed_dims=(40, 80, 160, 344), depths=(4, 4, 12, 8), drop_path_rate=0.02)
    return _create("efficientmod_s_conv", pretrained, **args | kwargs)
