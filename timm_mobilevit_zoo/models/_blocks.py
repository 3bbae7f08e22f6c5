"""What more than one family uses unchanged: depthwise convolutions, a block, sampled maps, MobileViT's patches.

Shapes: B batch, C or D channels, H x W map, p patch side, P = p * p places in a patch, N patches.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules import module as _everyones

from .traits import form_of, scale_of

__all__ = [
    "ScaledBlock",
    "apart",
    "centred",
    "depthwise",
    "depthwise_conv",
    "depthwise_norm",
    "every",
    "fold",
    "init_convs",
    "init_layers",
    "init_linear",
    "is_exporting",
    "together",
    "unfold",
]

# Measured; others may have no such kernel. Asked once, since graphs cannot.
_HAS_KERNEL = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
# Older than 2.7, torch does not tell export from compile: both are kept simple there.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def depthwise_conv(
    dim: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = True,
    device: Any = None,
    dtype: Any = None,
) -> nn.Conv2d:
    """Return a depthwise convolution, `(B, dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))`.

    Args:
        dim: Channels.
        kernel_size: Side of the weights, odd, in map cells.
        stride: In map cells.
        dilation: In map cells.
        bias: Whether it has one.
        device: Where to create the parameters.
        dtype: Type of the parameters.
    """
    pad = dilation * (kernel_size // 2)
    return nn.Conv2d(dim, dim, kernel_size, stride, pad, dilation, dim, bias, device=device, dtype=dtype)


def centred(weight: Tensor, size: Sequence[int], step: int = 1) -> Tensor:
    """Lay a depthwise kernel, its cells `step` apart, in the middle of zeros. `(C, 1, h, w) -> (C, 1, *size)`."""
    C, _, h, w = weight.shape
    apart = weight.new_zeros(C, 1, (h - 1) * step + 1, (w - 1) * step + 1)
    apart[:, :, ::step, ::step] = weight
    down, across = ((whole - part) // 2 for whole, part in zip(size, apart.shape[2:], strict=True))
    return F.pad(apart, (across, across, down, down))


def depthwise(conv: nn.Module, x: Tensor) -> Tensor:
    """Call a depthwise convolution; in training with another way to the gradient of its weights, where that is faster.

    On a CPU that gradient costs up to twenty times the convolution: oneDNN has a kernel for it with 3x3 weights alone.
    It is a depthwise convolution itself, for which there is one: of the map with the result's gradient as weights,
    stride and dilation exchanged. `torch.compile` takes it from torch 2.7 on, for first gradients.

    The layer is torch's own, since tools that count, prune or quantise look layers up by their exact type. What they
    put in its place, or hook to it, is called as ever, and so is every layer where a graph is made.
    """
    if isinstance(x, torch.fx.Proxy) or not _has_faster_gradient(conv, x):
        return conv(x)
    apply = _CompiledDepthwise.apply if torch.compiler.is_compiling() else _Depthwise.apply
    x = x.contiguous(memory_format=torch.channels_last)  # some channels of such a map are not
    return apply(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def _has_faster_gradient(conv: Any, x: Tensor) -> bool:
    return (
        type(conv) is nn.Conv2d
        and not _is_watched(conv)
        and not torch.jit.is_tracing()
        and not is_exporting()
        and not (torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active())
        and torch.is_grad_enabled()
        and conv.weight.requires_grad
        and min(conv.kernel_size) >= 5
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and (x.is_contiguous(memory_format=torch.channels_last) or (x.dim() == 4 and x.stride(1) == 1))
        and len(x) > 0
        and _HAS_KERNEL
        and not torch.is_autocast_enabled("cpu")
    )


def _is_watched(conv: nn.Module) -> bool:
    """Tell whether anyone would notice that a layer was not called: its hooks, all layers' hooks, another `forward`."""
    own = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks
    forward = _everyones._global_forward_hooks or _everyones._global_forward_pre_hooks
    backward = _everyones._global_backward_hooks or _everyones._global_backward_pre_hooks
    return bool(own or forward or backward) or "forward" in conv.__dict__


def _weight_gradient(x: Tensor, grad: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Return the gradient as a convolution, of as many images at a time as a core's cache holds: each call costs."""
    C, count = x.shape[1], max(1, _CACHED // x[0].numel())
    if grad.shape[2:] == (1, 1) and tuple(dilation) == (1, 1):  # each cell of the kernel sees one of the map
        ends = [(pad, size - pad - side) for size, pad, side in zip(kernel_size, padding, x.shape[2:], strict=True)]
        return F.pad((x * grad).sum(0)[:, None], [*ends[1], *ends[0]])
    # On a map smaller than the kernel its outer cells see padding alone, and have no gradient.
    blind = [
        max(0, size // 2 - (side - 1) // step) if (one, pad) == (1, step * (size // 2)) and size % 2 else 0
        for size, one, pad, step, side in zip(kernel_size, stride, padding, dilation, x.shape[2:], strict=True)
    ]
    height, width = (size - 2 * cells for size, cells in zip(kernel_size, blind, strict=True))
    pads = [pad - cells * step for pad, cells, step in zip(padding, blind, dilation, strict=True)]
    conv = partial(F.conv2d, stride=dilation, padding=pads, dilation=stride)
    total: Any = 0
    for part, of_part in zip(x.split(count), grad.split(count), strict=True):
        images, kernels = _side_by_side(part), _side_by_side(of_part).transpose(0, 1)
        found = conv(images, kernels, groups=len(part) * C)[0, :, :height, :width]
        total = total + found.unflatten(0, (len(part), C)).sum(0)
    return F.pad(total[:, None], [cells for cells in reversed(blind) for _ in range(2)])


def _side_by_side(images: Tensor) -> Tensor:
    """Return images as one with the channels of all, in channels-last layout. `(B, C, H, W) -> (1, B * C, H, W)`."""
    if len(images) == 1:
        return images.contiguous(memory_format=torch.channels_last)
    return images.permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)[None]


_CACHED = 131_072  # numbers, 512 KiB

# One node of a graph for batches of any size; compilers would write the loop out. One image they lay out on the way.
_opaque_weight_gradient: Any = torch.library.custom_op(
    "timm_mobilevit_zoo::depthwise_weight_gradient",
    _weight_gradient,
    mutates_args=(),
    schema="(Tensor x, Tensor grad, int[] kernel_size, int[] stride, int[] padding, int[] dilation) -> Tensor",
)


@_opaque_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, kernel_size: Any, *_: Any) -> Tensor:
    return x.new_empty(x.shape[1], 1, *kernel_size)


class _CompiledDepthwise(torch.autograd.Function):
    """What torch.compile takes: first gradients, outside of torch.func's transforms."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias, *ctx.how = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.how
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            how = None, stride, padding, dilation, False, (0, 0), len(weight), (True, False, False)
            of_x = torch.ops.aten.convolution_backward(grad, x, weight, *how)[0]  # torch.nn.grad's forgets x's layout
        if ctx.needs_input_grad[1]:
            opaque = torch.compiler.is_compiling() and len(x) > 1
            gradient = _opaque_weight_gradient if opaque else _weight_gradient
            of_weight = gradient(x, grad, weight.shape[2:], *ctx.how)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None


class _Depthwise(_CompiledDepthwise):
    """All that torch asks of a function's gradients: second ones, vmap and forward mode too."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, of_x: Any, of_weight: Any, of_bias: Any, *_: Any) -> Tensor:
        x, weight = ctx.saved_tensors
        conv = partial(F.conv2d, stride=ctx.how[0], padding=ctx.how[1], dilation=ctx.how[2], groups=len(weight))
        return conv(of_x, weight, of_bias) + conv(x, of_weight)


class ScaledBlock(nn.Module):
    """Mixer and MLP, each behind a norm, scaled and beside a shortcut. `(B, C, H, W) -> (B, C, H, W)`.

    What the mixer gets from its norm is added to what it makes, before that is scaled.

    Args:
        dim: Channels `C`.
        attn: The mixer; its last layer is the convolution `proj`, with a bias.
        mlp: The MLP.
        scale: Makes a layer of `dim` channels that multiplies each, as `traits.scales_by` says.
        drop_path: Stochastic depth of both.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp: nn.Module, scale: Callable[[int], nn.Module], drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = attn
        self.scale1 = scale(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = mlp
        self.scale2 = scale(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.scale1(self.attn(y) + y))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


@form_of(ScaledBlock, kind="fused")
class _OneShortcut(nn.Module):
    """A `ScaledBlock` in evaluation: with one shortcut around it, a mixer's layers can take in its norm and scale."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.scale1 = block.norm1, block.attn, block.scale1
        self.norm2, self.mlp, self.scale2 = block.norm2, block.mlp, block.scale2
        norm, (scale, _) = block.norm1, scale_of(block.scale1)
        with torch.no_grad():
            gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
            self.attn.proj.bias += norm.bias - norm.running_mean * gain
            self.factor = nn.Parameter((1 + scale * gain)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.factor + self.scale1(self.attn(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class DepthwiseNorm(nn.Sequential):
    """A depthwise convolution and its norm. `(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))`."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x) if torch.jit.is_scripting() else depthwise(self[0], x))


def depthwise_norm(
    dim: int, kernel_size: int, stride: int = 1, bias: bool = False, dilation: int = 1, **dd: Any
) -> nn.Sequential:
    conv = depthwise_conv(dim, kernel_size, stride, dilation, bias, **dd)
    return DepthwiseNorm(conv, nn.BatchNorm2d(dim, **dd))


def apart(x: Tensor, step: int) -> Tensor:
    """Part a map into maps of every `step`-th cell. `(B, C, H, W) -> (B step^2, C, ceil(H / step), ceil(W / step))`."""
    if step == 1:
        return x
    C, H, W = x.shape[1:]
    x = F.pixel_unshuffle(F.pad(x, (0, -W % step, 0, -H % step), mode="replicate"), step)
    return x.unflatten(1, (C, step * step)).transpose(1, 2).flatten(0, 1)


def together(x: Tensor, step: int, like: Tensor) -> Tensor:
    """Undo `apart`. `(B step^2, C, h, w) -> (B, C, H, W)`, the shape of `like`."""
    if step == 1:
        return x
    B, _, H, W = like.shape
    x = x.unflatten(0, (B, step * step)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, step)[:, :, :H, :W]


def init_linear(layer: nn.Linear | nn.Conv2d, std: float = 0.02) -> None:
    """Draw a linear layer's weights, or a convolution's, from a truncated normal distribution; its bias is 0."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_convs(model: nn.Module) -> None:
    """Draw a network's convolutions from a normal distribution of a variance of 2 over a group's fan-out; biases: 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _init_conv(module, module.out_channels // module.groups)


def init_layers(model: nn.Module) -> None:
    """Draw a network's convolutions and linear layers as Apple's training code does for MobileViT, in place.

    Convolutions: normal, of a variance of 2 over the fan-out, for which a depthwise one counts all channels; linear
    layers: truncated normal of 0.02; biases are 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _init_conv(module, module.out_channels)
        elif isinstance(module, nn.Linear):
            init_linear(module)


def _init_conv(conv: nn.Conv2d, channels: int) -> None:
    """Draw a convolution whose fan-out counts so many channels; its bias is 0."""
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (math.prod(conv.kernel_size) * channels)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def every(x: Tensor, step: int) -> Tensor:
    """Keep every `step`-th row and column, the first ones too. `(B, H, W, C)`, sides divided and rounded up."""
    if step == 1:
        return x
    if torch.jit.is_tracing():  # OpenVINO 2026.4 takes sides cut by a step alone for the whole: its pull request 37932
        rows, columns = (x.shape[1] + step - 1) // step * step, (x.shape[2] + step - 1) // step * step
        x = x[:, 0:rows:step, 0:columns:step]
    else:
        x = x[:, ::step, ::step]
    return x.contiguous()  # or else graphs for any size would compare strides


@torch.fx.wrap  # a leaf for fx tracers, which know it by its name in this file: it branches on sizes
def _resize(x: Tensor, height: int, width: int) -> Tensor:
    # Bilinear resizing to the same size changes nothing; graphs that are to serve any size always have it.
    same = not torch.jit.is_tracing() and not torch.compiler.is_compiling() and x.shape[2:] == (height, width)
    if same:
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def unfold(x: Tensor, p: int) -> Tensor:
    """Gather the cells that lie at the same place of their patch, `(B, D, H, W) -> (B, P, D, N)`.

    A map that the patch does not divide is resized to the next multiple first.
    """
    rows, columns = (x.shape[2] + p - 1) // p, (x.shape[3] + p - 1) // p
    x = _resize(x, rows * p, columns * p)
    # One small map for each place. Slices, since graphs for any size cannot split a side in two.
    return torch.stack([x[:, :, i // p :: p, i % p :: p] for i in range(p * p)], dim=1).flatten(3)


def fold(x: Tensor, p: int, height: int, width: int) -> Tensor:
    """Put the cells back, `(B, P, D, N) -> (B, D, height, width)`."""
    B, _, D, N = x.shape
    rows, columns = (height + p - 1) // p, (width + p - 1) // p
    x = x.reshape(B, p, p, D, N).permute(0, 3, 1, 4, 2)  # (B, D, p, N, p)
    x = x.reshape(B, D, p, rows, columns * p).transpose(2, 3).reshape(B, D, rows * p, columns * p)
    return _resize(x, height, width)
