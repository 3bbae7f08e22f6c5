"""What more than one family uses unchanged: depthwise convolutions, and maps cut into patches for MobileViT's kind.

Shapes: B batch, C or D channels, H x W map, p patch side, P = p * p places in a patch, N patches.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["DepthwiseConv2d", "fold", "unfold"]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, `(B, dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))`, faster in training.

    On a CPU the gradient of its weights costs up to twenty times the convolution: oneDNN has a kernel for that with 3x3
    weights alone. It is a depthwise convolution itself, for which there is one: of the map with the result's gradient
    as weights, stride and dilation exchanged.

    Args:
        dim: Channels.
        kernel_size: Side of the weights, odd, in map cells; below 5 this is torch's layer and nothing else.
        stride: In map cells.
        dilation: In map cells.
        device: Where to create the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self, dim: int, kernel_size: int, stride: int = 1, dilation: int = 1, device: Any = None, dtype: Any = None
    ) -> None:
        pad = dilation * (kernel_size // 2)
        super().__init__(dim, dim, kernel_size, stride, pad, dilation, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # torch's types allow more dimensions and padding by a name, TorchScript wants to know.
        return _depthwise(x, self.weight, self.bias, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]


@torch.fx.wrap  # a leaf for fx tracers: it branches on what x is
def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    if not torch.jit.is_scripting():  # noqa: SIM102, alone it keeps TorchScript out of what follows
        if _has_faster_gradient(x, weight):
            return _Depthwise.apply(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])


def _has_faster_gradient(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and weight.requires_grad
        and min(weight.shape[2:]) >= 5
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # measured; others may have no such kernel
        and not torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    """Everything that torch asks of a function's gradients is in it: second ones, vmap and forward mode work too."""

    generate_vmap_rule = True

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
        dim, _, height, width = weight.shape
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            how = None, stride, padding, dilation, False, (0, 0), dim, (True, False, False)
            of_x = torch.ops.aten.convolution_backward(grad, x, weight, *how)[0]  # torch.nn.grad's forgets x's layout
        if ctx.needs_input_grad[1]:
            images = zip(x.split(1), grad.contiguous(memory_format=torch.channels_last), strict=True)
            total: Any = sum(F.conv2d(i, g[:, None], None, dilation, padding, stride, groups=dim) for i, g in images)
            of_weight = total[:, :, :height, :width].transpose(0, 1).contiguous()
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_x: Any, of_weight: Any, of_bias: Any, *_: Any) -> Tensor:
        x, weight = ctx.saved_tensors
        conv = partial(F.conv2d, stride=ctx.how[0], padding=ctx.how[1], dilation=ctx.how[2], groups=len(weight))
        return conv(of_x, weight, of_bias) + conv(x, of_weight)


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
