"""CAS-ViT: self-attention by addition, without matrix products and without softmax.

The token mixer gives query and key their context through gates, first over space, then over channels, and adds the two;
a convolution of the sum weights the values. Its cost is linear in the number of positions. A block has three residual
branches: a convolution over each position's neighbours, the token mixer, and an MLP.

Paper: CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications (2024),
    https://arxiv.org/abs/2408.03703
Code: https://github.com/Tianfang-Zhang/CAS-ViT, commit 041d2d6 (MIT), where the networks are called RCViT.

Changes from the authors' code:
    * the stem is cut after its first convolution, whose map is a level at stride 2; a strided convolution between two
      stages opens the later one;
    * training returns the mean of the two classifiers, as evaluation does, unless `set_distilled_training` asks for
      both; theirs returns both whenever it trains.

The second classifier is part of the parameter counts that the authors print. Their training script leaves it out: a
checkpoint without it loads too, `head` then serves as both, and the mean is its output.

Shapes: B batch, C channels, H x W map.
"""

from functools import partial
from typing import Any

from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ._args import check_args, check_sizes, dilations
from ._build import build_staged, renamed, with_zero_biases
from ._cfg import birder_cfg, imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .places import DRIVE

__all__ = ["AdditiveTokenMixer", "CASViT"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no softmax: gates and a convolution weigh the values"}

seeded_gain = 0.8  # of seeded weights: a token mixer multiplies what it gets, so with 1 the numbers overflow


def _depthwise(dim: int, dilation: int, device: Any = None, dtype: Any = None) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, 1, dilation, dilation, groups=dim, device=device, dtype=dtype)


class ContextGates(nn.Module):
    """A gate for each position from its neighbours, then one for each channel from the map's mean. Shape kept."""

    def __init__(self, dim: int, dilation: int, device: Any, dtype: Any) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dilation = dilation
        self.spatial = nn.Sequential(
            _depthwise(dim, dilation, **dd),
            nn.BatchNorm2d(dim, **dd),
            nn.ReLU(),
            nn.Conv2d(dim, 1, 1, bias=False, **dd),
            nn.Sigmoid(),
        )
        self.channel = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False, **dd), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.spatial(x)  # (B, C, H, W) * (B, 1, H, W)
        # A dilated map has cells in between: the mean is of those that an undilated one would have.
        kept = x[:, :, :: self.dilation, :: self.dilation]
        return x * self.channel(kept.mean((2, 3), keepdim=True))  # (B, C, H, W) * (B, C, 1, 1)


class AdditiveTokenMixer(nn.Module):
    """Convolutional additive token mixer. `(B, C, H, W) -> (B, C, H, W)`, any H and W.

    Returns `proj(mix(gates(q) + gates(k)) * v)`, where `q`, `k` and `v` are linear in the input, `mix` and `proj` are
    depthwise convolutions, and `gates` scale by position, then by channel.

    Args:
        dim: Channels `C`.
        dilation: How many times closer the map's cells lie than where the weights come from; convolutions are dilated
            by it, and channel gates see every so many cells.
        proj_drop: Dropout after the last convolution.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` or a `dilation` that is no whole number from 1.
    """

    def __init__(
        self, dim: int, dilation: int = 1, proj_drop: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim", "dilation"))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False, **dd)
        self.q_gates = ContextGates(dim, dilation, **dd)
        self.k_gates = ContextGates(dim, dilation, **dd)
        self.mix = _depthwise(dim, dilation, **dd)
        self.proj = _depthwise(dim, dilation, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)  # (B, C, H, W) each
        return self.proj_drop(self.proj(self.mix(self.q_gates(q) + self.k_gates(k)) * v))


class Mlp(nn.Module):
    """Two 1x1 convolutions. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    """Convolution, token mixer and MLP, each beside a shortcut. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, dim: int, mlp_ratio: float, dilation: int, proj_drop: float, drop_path: float) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            _depthwise(dim, dilation),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = AdditiveTokenMixer(dim, dilation, proj_drop)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)  # always there: stochastic depth spares it
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _conv_norm(dim: int, out_dim: int, stride: int = 2, dilation: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(dim, out_dim, 3, stride, dilation, dilation), nn.BatchNorm2d(out_dim)


class CASViT(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem whose first convolution gives a level at stride 2.

    Args:
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratio: Width of an MLP's hidden layer, relative to the channels.
        in_chans: Image channels.
        num_classes: Width of each classifier; 0 removes them.
        global_pool: timm's name of the pooling in front of the classifiers.
        drop_rate: Dropout before the classifiers.
        proj_drop_rate: Dropout after token mixers and in MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights:
            convolutions are dilated, and the cells which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...] = (3, 3, 6, 3),
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths"))
        if embed_dims[0] < 2:
            raise ValueError(f"embed_dims={embed_dims} must begin with 2 or more: the stem has half as many channels")
        if mlp_ratio * min(embed_dims) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of embed_dims={embed_dims}")
        dim = embed_dims[0] // 2
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        stem = nn.Sequential(*_conv_norm(in_chans, dim), nn.ReLU())
        stages = []
        for level, out_dim in enumerate(embed_dims):
            stride, opening, dilation = dilations(output_stride)[level]
            act = (nn.ReLU(),) if level == 0 else ()  # this one is the second half of the authors' stem
            downsample = nn.Sequential(*_conv_norm(dim, out_dim, stride, opening), *act)
            blocks = [Block(out_dim, mlp_ratio, dilation, proj_drop_rate, next(rates)) for _ in range(depths[level])]
            stages.append(Stage(downsample, blocks))
            dim = out_dim
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.BatchNorm2d(dim),
            embed_dims=embed_dims,
            stem_dim=embed_dims[0] // 2,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            distilled=True,
            output_stride=output_stride,
        )


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^patch_embed\.([01])\.", r"stem.layers.\1."),
    (r"^patch_embed\.([34])\.", lambda m: f"stage1.downsample.{int(m[1]) - 3}."),
    (r"^network\.([0246])\.(\d+)\.", lambda m: f"stage{int(m[1]) // 2 + 1}.blocks.{m[2]}."),
    (r"^network\.([135])\.proj\.", lambda m: f"stage{int(m[1]) // 2 + 2}.downsample.0."),
    (r"^network\.([135])\.norm\.", lambda m: f"stage{int(m[1]) // 2 + 2}.downsample.1."),
    (r"\.local_perception\.network\.", ".local."),
    (r"\.attn\.oper_([qk])\.0\.block\.", r".attn.\1_gates.spatial."),
    (r"\.attn\.oper_([qk])\.1\.block\.1\.", r".attn.\1_gates.channel.0."),
    (r"\.attn\.dwc\.", ".attn.mix."),
    (r"^dist_head\.", "head_dist."),
    # birder's
    (r"^stem\.0\.([01])\.", r"stem.layers.\1."),
    (r"^stem\.1\.([01])\.", r"stage1.downsample.\1."),
    (r"^body\.(stage\d\.downsample)\.(proj|norm)\.", lambda m: f"{m[1]}.{int(m[2] == 'norm')}."),
    (r"^body\.", ""),
    (r"\.local_perception\.block\.", ".local."),
    (r"\.attn\.op_([qk])\.0\.block\.", r".attn.\1_gates.spatial."),
    (r"\.attn\.op_([qk])\.1\.block\.1\.", r".attn.\1_gates.channel.0."),
    (r"^features\.0\.", "norm."),
    (r"^dist_classifier\.", "head_dist."),
    (r"^classifier\.", "head."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`, or birder's; one of ours passes through unchanged."""
    state_dict = state_dict.get("model", state_dict)
    out = renamed(state_dict, _RENAMES)
    if "network.1.proj.weight" in state_dict and not any(key.startswith("head_dist.") for key in out):
        # The authors train with one classifier: used twice, it gives the mean that there is of one.
        out |= {key.replace("head.", "head_dist."): value for key, value in out.items() if key.startswith("head.")}
    return with_zero_biases(out, model) if "features.0.weight" in state_dict else out


# The authors' files, on Google Drive, and what their model zoo claims of each: ImageNet-1k top-1, in percent.
_FILES = {
    "casvit_xs.in1k": ("16wKcwF6QMW5w_lyPYnDKjMNuoxQDfrLK", 78.3),
    "casvit_xs.in1k_384": ("1kwRPtJ4FdmNeTm2MsiFN7N2DJpou3Pgl", 78.7),
    "casvit_s.in1k": ("1facFRq8s8oelYUtK1fj3fcfdoWoKDBQQ", 80.9),
    "casvit_s.in1k_384": ("1UagCihMWmNCmYGC1DV5euAvA5TONI818", 81.1),
    "casvit_m.in1k": ("13sQpSEf0h_uuh0jRy9V0yIW6ZsbDpVGy", 82.8),
    "casvit_m.in1k_384": ("1pTwKKRLPA7vBfk_KTgJ4J1Jq3ttkh3O2", 83.0),
    "casvit_t.in1k": ("1NqoIUPbwBC91RTjTUvubAbOfGqo1VYT0", 83.9),
    "casvit_t.in1k_384": ("1N5Y81Vcyf2ox41TC3wlRBxgQPYaEndTW", 84.1),
}
published_top1 = {variant: top1 for variant, (_, top1) in _FILES.items()}

_CODE = "https://github.com/Tianfang-Zhang/CAS-ViT"
source_commits = {_CODE: "041d2d688046ace52a6cec0bc5fd9e3876fdb930"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.layers.0",
    classifier=("head", "head_dist"),
    license="mit",
    paper_ids="arXiv:2408.03703",
    paper_name="CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
    origin_url=_CODE,
)
_384 = dict(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode="squash")
default_cfgs = pinned_default_cfgs(
    {
        variant: _cfg(url=f"{DRIVE}{file}", **_384 if variant.endswith("_384") else {})
        for variant, (file, _) in _FILES.items()
    }
    | {"casvit_xs.birder_il_common": birder_cfg("cas_vit_xs", _cfg)}
)

_create = partial(build_staged, CASViT, checkpoint_filter_fn)


@register_model
def casvit_xs(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-XS."""
    args: dict[str, Any] = dict(embed_dims=(48, 56, 112, 220), depths=(2, 2, 4, 2), drop_path_rate=0.1)
    return _create("casvit_xs", pretrained, **args | kwargs)


@register_model
def casvit_s(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-S."""
    args: dict[str, Any] = dict(embed_dims=(48, 64, 128, 256), drop_path_rate=0.1)
    return _create("casvit_s", pretrained, **args | kwargs)


@register_model
def casvit_m(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-M."""
    args: dict[str, Any] = dict(embed_dims=(64, 96, 192, 384), drop_path_rate=0.1)
    return _create("casvit_m", pretrained, **args | kwargs)


@register_model
def casvit_t(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-T, the largest."""
    args: dict[str, Any] = dict(embed_dims=(96, 128, 256, 512), drop_path_rate=0.1)
    return _create("casvit_t", pretrained, **args | kwargs)
