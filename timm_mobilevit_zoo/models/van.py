"""VAN: attention by a large kernel. What a cell sees of the 23 x 23 around it scales its value in each channel.

The kernel, of 21 x 21 according to the paper, is composed of a depthwise 5x5 convolution, a depthwise 7x7 one with gaps
of two cells, and a 1x1 one. A block is this kernel between 1x1 convolutions, and an MLP with a depthwise one inside.

Paper: Visual Attention Network (2022), https://arxiv.org/abs/2202.09741
Code: https://github.com/Visual-Attention-Network/VAN-Classification, commit e19779b (Apache-2.0)

Changes from the authors' code:
    * maps are channels first between layers, in norms too;
    * with `output_stride`, which they do not have, the kernels reach as much farther.

Shapes: B batch, C channels, r MLP ratio, H x W map.
"""

from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d, LayerScale2d, calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._blocks import ScaledBlock, depthwise, depthwise_conv, init_convs
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel

__all__ = ["VAN", "LargeKernelAttention"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no softmax: convolutions say by what each value is multiplied"}


class LargeKernelAttention(nn.Module):
    """Large kernel attention between two 1x1 convolutions. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    Returns `proj(y * mix(far(near(y))))`, where `y = gelu(proj_in(x))`, `near` and `far` are depthwise convolutions of
    5 x 5 cells and of 7 x 7 with gaps, and the others are 1x1 ones. There is no norm and no shortcut inside.

    Args:
        dim: Channels `C`.
        dilation: How many times closer the map's cells lie than where the weights come from; the depthwise
            convolutions are dilated by it.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` or a `dilation` that is no whole number from 1.
    """

    def __init__(self, dim: int, dilation: int = 1, device: Any = None, dtype: Any = None) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "dilation"))
        self.proj_in = nn.Conv2d(dim, dim, 1, **dd)
        self.act = nn.GELU()
        self.near = depthwise_conv(dim, 5, 1, dilation, **dd)
        self.far = depthwise_conv(dim, 7, 1, 3 * dilation, **dd)
        self.mix = nn.Conv2d(dim, dim, 1, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.proj_in(x))
        y = self.near(x) if torch.jit.is_scripting() else depthwise(self.near, x)
        y = self.far(y) if torch.jit.is_scripting() else depthwise(self.far, y)
        return self.proj(x * self.mix(y))


class ConvMlp(nn.Module):
    """1x1, depthwise 3x3, 1x1. `(B, C, H, W) -> (B, C, H, W)`, with r C channels in between."""

    def __init__(self, dim: int, hidden: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = depthwise_conv(hidden, 3, 1, dilation)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.dwconv(self.fc1(x))))
        return self.drop2(self.fc2(x))


class VAN(StagedModel):
    """Four levels at strides 4, 8, 16, 32, each ending with a norm.

    Args:
        embed_dims: Channels of each stage.
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
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        stem = nn.Sequential(nn.Conv2d(in_chans, embed_dims[0], 7, 4, 3), nn.BatchNorm2d(embed_dims[0]))
        stages = []
        downsample: nn.Module = nn.Identity()
        for level, dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            if level > 0:
                conv = nn.Conv2d(embed_dims[level - 1], dim, 3, stride, opening, opening)
                downsample = nn.Sequential(conv, nn.BatchNorm2d(dim))
            blocks = []
            for _ in range(depths[level]):
                mlp = ConvMlp(dim, mlp_ratios[level] * dim, dilation, proj_drop_rate)
                scale = partial(LayerScale2d, init_values=1e-2)
                blocks.append(ScaledBlock(dim, LargeKernelAttention(dim, dilation), mlp, scale, next(rates)))
            stages.append(Stage(downsample, blocks, LayerNorm2d(dim, eps=1e-6)))
        init_convs(nn.ModuleList([stem, *stages]))
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.Identity(),
            embed_dims=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left, and OpenMMLab's.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^backbone\.", ""),
    (r"^head\.fc\.", "head."),
    (r"^patch_embed1\.(proj|projection|norm)\.", lambda m: f"stem.layers.{int(m[1] == 'norm')}."),
    (r"^patch_embed(\d)\.(proj|projection|norm)\.", lambda m: f"stage{m[1]}.downsample.{int(m[2] == 'norm')}."),
    (r"^blocks?(\d)\.", r"stage\1.blocks."),
    (r"^norm(\d)\.", r"stage\1.norm."),
    (r"\.layer_scale_(\d)$", r".scale\1.gamma"),
    (r"\.attn\.proj_1\.", ".attn.proj_in."),
    (r"\.attn\.proj_2\.", ".attn.proj."),
    (r"\.spatial_gating_unit\.(conv0|DW_conv)\.", ".near."),
    (r"\.spatial_gating_unit\.(conv_spatial|DW_D_conv)\.", ".far."),
    (r"\.spatial_gating_unit\.conv1\.", ".mix."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint or OpenMMLab's, bare or under `state_dict`; one of ours passes through."""
    return renamed(state_dict.get("state_dict", state_dict.get("model", state_dict)), _RENAMES)


def _original(size: str, file: str) -> dict[str, str]:
    return {"hf_hub_id": f"Visual-Attention-Network/VAN-{size}-original", "hf_hub_filename": f"{file}.pth.tar"}


def _openmmlab(size: str, digits: str) -> dict[str, str]:
    folder = "https://download.openmmlab.com/mmclassification/v0/van"
    return {"url": f"{folder}/van-{size}_8xb128_in1k_20220501-{digits}.pth"}


# The authors' files, and what OpenMMLab uploads in its layout; and what either claims of its own: ImageNet-1k top-1 at
# 224 px, in percent. OpenMMLab's code evaluates with an eps of 1e-5 in the norms that end the levels, not 1e-6.
_FILES = {
    "van_b0.in1k": (_original("Tiny", "van_tiny_754"), 75.4),
    "van_b0.openmmlab_in1k": (_openmmlab("tiny", "385941af"), 75.41),
    "van_b1.in1k": (_original("Small", "van_small_811"), 81.1),
    "van_b1.openmmlab_in1k": (_openmmlab("small", "17bc91aa"), 81.01),
    "van_b2.in1k": (_original("Base", "van_base_828"), 82.8),
    "van_b2.openmmlab_in1k": (_openmmlab("base", "6a4cc31b"), 82.8),
}
published_top1 = {variant: top1 for variant, (_, top1) in _FILES.items()}
claimed_by = {variant: "OpenMMLab" for variant in _FILES if "openmmlab" in variant}  # the others' by the authors

_CODE = "https://github.com/Visual-Attention-Network/VAN-Classification"
source_commits = {_CODE: "e19779b53a1b0828b51ecb4412d577541aee83a7"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0",
    crop_pct=0.9,
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    license="apache-2.0",
    paper_ids="arXiv:2202.09741",
    paper_name="Visual Attention Network",
    origin_url=_CODE,
    notes=("the authors' README says: for commercial use, please contact the authors",),
)
default_cfgs = pinned_default_cfgs({variant: _cfg(**place) for variant, (place, _) in _FILES.items()})
_create = partial(build_staged, VAN, checkpoint_filter_fn, stem_level=False)


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B0, which the authors also call Tiny."""
    args: dict[str, Any] = dict(embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), drop_path_rate=0.1)
    return _create("van_b0", pretrained, **args | kwargs)


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B1, which the authors also call Small."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 4, 2), drop_path_rate=0.1)
    return _create("van_b1", pretrained, **args | kwargs)


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B2, which the authors also call Base; the largest here."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3), drop_path_rate=0.1)
    return _create("van_b2", pretrained, **args | kwargs)
