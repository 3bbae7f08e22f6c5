"""UniRepLKNet: a few 13x13 kernels give a wide view, and a gate and an MLP mix the result.

Each large kernel is trained in parallel with small ones of increasing dilation (the dilated reparam block, sec. 3.1);
afterwards they are merged into one 13x13 kernel. Then a squeeze-excite block weights the channels, and the MLP's hidden
layer has a global response norm. The first stage has 3x3 kernels.

Paper: UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
    Recognition (2023), https://arxiv.org/abs/2311.15599
Code: https://github.com/AILab-CVC/UniRepLKNet, commit b5677d8 (Apache-2.0).

Changes from the authors' code:
    * the stem is cut after its first activation, whose map is a level at stride 2; a strided convolution between two
      stages opens the later one;
    * the norm of the pooled channels belongs to the classifier: without classes there is none;
    * `output_stride`, which they do not have, gives each shift of a map that is not halved what the network would have
      given it, on its own.

Shapes: B batch, C channels, H x W map, D channels of the MLP's hidden layer.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, SqueezeExcite, calculate_drop_path_rates
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._args import check_args, check_sizes, dilations
from ._blocks import apart, centred, depthwise_conv, depthwise_norm, init_linear, together
from ._build import build_staged, renamed
from ._cfg import imagenet_cfg, pinned_default_cfgs, register_model
from ._staged import Stage, StagedModel
from .traits import form_of

__all__ = ["DilatedReparamBlock", "UniRepLKNet"]

# What tests ask of every model and this one cannot do: the tests' names, each with the reason.
limits = {"test_a_network_has_maps": "it has no attention: convolutions mix the cells"}

_norm = partial(LayerNorm2d, eps=1e-6)


class DilatedReparamBlock(nn.Module):
    """A depthwise 13x13 convolution that trains as six, each with its norm, summed. `(B, C, H, W)`, shape kept.

    Beside the large kernel are those of side 5, 7, 3, 3 and 3, with cells 1, 2, 3, 4 and 5 apart. For `fuse` they are
    one kernel.

    Args:
        dim: Channels `C`.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: For a `dim` below 1.
    """

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        given = dict(locals())
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_sizes(given, ("dim",))
        kernels = ((13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        self.branches = nn.ModuleList(depthwise_norm(dim, side, dilation=step, **dd) for side, step in kernels)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, branch in enumerate(self.branches):
            y = y + branch(x) if i > 0 else branch(x)
        return y


@form_of(DilatedReparamBlock, kind="fused")
def _one_kernel(layer: DilatedReparamBlock) -> nn.Module:
    branches: Any = layer.branches
    whole, *others = (fuse_conv_bn_eval(*branch) for branch in branches)
    with torch.no_grad():
        for conv in others:
            whole.weight += centred(conv.weight, whole.kernel_size, conv.dilation[0])
            whole.bias += conv.bias
    return whole


class GlobalResponseNorm(nn.Module):
    """Add each channel once more, by its norm over the map as part of the channels' mean norm. `(B, H, W, D)`, kept.

    From ConvNeXt V2. A new one adds nothing.
    """

    bias: nn.Parameter | None

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Four dimensions, as the authors' have: weight decay, which spares vectors, does not spare these.
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        y = x * (1 + self.weight * (norms / (norms.mean(3, keepdim=True) + 1e-6)))
        bias = self.bias
        return y if bias is None else y + bias


@form_of(GlobalResponseNorm)
class _PortableResponseNorm(nn.Module):
    """The same in operations that phones' runtimes know: squares, means over maps and, by a layer, over channels."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        dim = norm.weight.shape[3]
        self.across = nn.Conv2d(dim, 1, 1)  # LiteRT's converter fails for a linear layer of one row
        nn.init.constant_(self.across.weight, 1 / dim)
        self.across.bias = nn.Parameter(torch.full((1,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        cells = float(x.shape[1] * x.shape[2])  # an integer would be converted in the graph
        # In this order nothing is larger than a square: in 16 bits, the sum of a map's may overflow.
        norms = (x * x).permute(0, 3, 1, 2).mean((2, 3), keepdim=True).sqrt() * cells**0.5  # (B, D, 1, 1)
        shares = (norms / self.across(norms)).permute(0, 2, 3, 1)
        y = x + x * (shares * self.weight)
        return y if self.bias is None else y + self.bias


class ResponseMlp(nn.Module):
    """An MLP with a global response norm, without a last bias: a norm follows. `(B, H, W, C)`, shape kept."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.norm = GlobalResponseNorm(4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.act(self.fc1(x))))


@form_of(ResponseMlp, kind="fused")
def _bias_behind(layer: Any) -> None:
    """Make the norm's bias the last layer's; the MLP stays."""
    if layer.norm.bias is not None:
        layer.fc2.bias = nn.Parameter(layer.fc2.weight.detach() @ layer.norm.bias.detach().flatten())
        layer.norm.bias = None


class Block(nn.Module):
    """A large or small kernel, a gate for each channel and an MLP, beside one shortcut. `(B, C, H, W)`, shape kept.

    Args:
        dim: Channels `C`.
        conv: Depthwise convolution, without a bias.
        drop_path: Stochastic depth.
        step: How many times closer the map's cells lie than where the weights come from.
    """

    def __init__(self, dim: int, conv: nn.Module, drop_path: float, step: int) -> None:
        super().__init__()
        self.step = step
        self.conv = conv
        self.norm1 = nn.BatchNorm2d(dim)
        self.se = SqueezeExcite(dim, rd_channels=dim // 4)
        self.mlp = ResponseMlp(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.scale = LayerScale2d(dim, 1e-6)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm1(self.conv(apart(x, self.step))))
        y = self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.drop_path(together(self.scale(self.norm2(y)), self.step, x))


class UniRepLKNet(StagedModel):
    """Four levels at strides 4, 8, 16, 32 behind a stem whose first convolution gives a level at stride 2.

    Args:
        embed_dims: Channels of each stage, at least 4.
        depths: Blocks of each stage.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it, and the norm in front of it.
        global_pool: timm's name of the pooling in front of the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        output_stride: 8 or 16 to keep the last maps at that stride, in image pixels, with the same weights: the cells
            which the network would have kept have the same values.

    Raises:
        ValueError: Names an argument that cannot be built, its value and what would fit.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...] = (2, 2, 6, 2),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int | None = None,
    ) -> None:
        check_args(locals(), ("embed_dims", "depths"))
        if min(embed_dims) < 4:
            raise ValueError(f"embed_dims={embed_dims} must be at least 4: a gate has a quarter as many channels")
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        half = before = embed_dims[0] // 2
        stages = []
        for level, dim in enumerate(embed_dims):
            stride, opening, step = dilations(output_stride)[level]
            halve = nn.Conv2d(before, dim, 3, stride, opening, opening)
            blocks = []
            for _ in range(depths[level]):
                conv = DilatedReparamBlock(dim) if level > 0 else depthwise_conv(dim, 3, bias=False)
                blocks.append(Block(dim, conv, next(rates), step))
            stages.append(Stage(nn.Sequential(halve, _norm(dim)), blocks))
            before = dim
        super().__init__(
            stem=nn.Sequential(nn.Conv2d(in_chans, half, 3, 2, 1), _norm(half), nn.GELU()),
            stages=stages,
            norm=nn.Identity(),
            embed_dims=embed_dims,
            stem_dim=half,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_std=0.02,
            head_norm=partial(nn.LayerNorm, eps=1e-6),
            output_stride=output_stride,
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init_linear(module)


# Weights: the authors' names on the left.
_RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^downsample_layers\.0\.([01])\.", r"stem.layers.\1."),
    (r"^downsample_layers\.0\.([34])\.", lambda m: f"stage1.downsample.{int(m[1]) - 3}."),
    (r"^downsample_layers\.(\d)\.", lambda m: f"stage{int(m[1]) + 1}.downsample."),
    (r"^stages\.(\d)\.", lambda m: f"stage{int(m[1]) + 1}.blocks."),
    (r"^norm\.", "head_norm."),
    (r"\.dwconv\.weight$", ".conv.weight"),
    (r"\.dwconv\.(?:lk_origin|origin_bn)\.", lambda m: f".conv.branches.0.{int('bn' in m[0])}."),
    (r"\.dwconv\.dil_(conv|bn)_k\d_(\d)\.", lambda m: f".conv.branches.{m[2]}.{int(m[1] == 'bn')}."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.se\.down\.", ".se.fc1."),
    (r"\.se\.up\.", ".se.fc2."),
    (r"\.pwconv1\.1\.", ".mlp.fc1."),
    (r"\.act\.1\.gamma$", ".mlp.norm.weight"),
    (r"\.act\.1\.beta$", ".mlp.norm.bias"),
    (r"\.pwconv2\.0\.", ".mlp.fc2."),
    (r"\.pwconv2\.2\.", ".norm2."),
    (r"(\.blocks\.\d+)\.gamma$", r"\1.scale.gamma"),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' checkpoint, bare or under `model`; one of ours passes through unchanged."""
    return renamed(state_dict.get("model", state_dict), _RENAMES)


# The authors' claims, which their files' names tell: ImageNet-1k top-1 at 224 px, in percent.
_TOP1 = {"a": "77.03", "f": "78.58", "p": "80.23", "n": "81.64"}
published_top1 = {f"unireplknet_{size}.in1k": float(top1) for size, top1 in _TOP1.items()}

_CODE = "https://github.com/AILab-CVC/UniRepLKNet"
source_commits = {_CODE: "b5677d8fb0e7b8af61eac39c1bf02727f5afc1d5"}  # what this file follows

_cfg = partial(
    imagenet_cfg,
    hf_hub_id="DingXiaoH/UniRepLKNet",
    first_conv="stem.layers.0",
    license="apache-2.0",
    paper_ids="arXiv:2311.15599",
    paper_name="UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series "
    "and Image Recognition",
    origin_url=_CODE,
)
default_cfgs = pinned_default_cfgs(
    {
        f"unireplknet_{size}.in1k": _cfg(hf_hub_filename=f"unireplknet_{size}_in1k_224_acc{top1}.pth")
        for size, top1 in _TOP1.items()
    }
)
_create = partial(build_staged, UniRepLKNet, checkpoint_filter_fn)


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-A."""
    args: dict[str, Any] = dict(embed_dims=(40, 80, 160, 320))
    return _create("unireplknet_a", pretrained, **args | kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-F."""
    args: dict[str, Any] = dict(embed_dims=(48, 96, 192, 384))
    return _create("unireplknet_f", pretrained, **args | kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-P."""
    args: dict[str, Any] = dict(embed_dims=(64, 128, 256, 512), drop_path_rate=0.1)
    return _create("unireplknet_p", pretrained, **args | kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-N, the largest here."""
    args: dict[str, Any] = dict(embed_dims=(80, 160, 320, 640), depths=(2, 2, 8, 2), drop_path_rate=0.1)
    return _create("unireplknet_n", pretrained, **args | kwargs)
