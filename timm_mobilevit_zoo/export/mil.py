"""Compute what a Core ML program says, where Core ML does not run: each operation by what Apple defines it to be.

An ML program is a list of operations in Apple's Model Intermediate Language, of names, constants and results. Read from
the written file and computed in float32, they show whether weights, scales, axes and wiring are right. What Core ML's
own kernels round, and in how many bits they add up, does not show.

Definitions: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.quiet import converting

from .format import INPUT, OUTPUT, Run

__all__ = ["Program", "run"]


class Program:
    """The operations of a file, with what is constant about them.

    Args:
        path: A folder that coremltools wrote, ending in .mlpackage.
    """

    def __init__(self, path: Path) -> None:
        with converting():
            model = require("coremltools", "coreml").models.MLModel(str(path), skip_model_load=True)
            self._load = require("coremltools.converters.mil.frontend.milproto.load", "coreml")
        self.spec = model.get_spec()
        self._context = self._load.TranscriptionContext(model.weights_dir)
        blocks = self.spec.mlProgram.functions["main"].block_specializations
        every = [one for block in blocks.values() for one in block.operations]
        self.operations = [one for one in every if one.type != "const"]
        self.constants = {
            one.outputs[0].name: self._read(one.attributes["val"]) for one in every if one.type == "const"
        }
        self.shapes = {
            result.name: [dim.constant.size for dim in result.type.tensorType.dimensions]
            for one in every
            for result in one.outputs
        }

    def _read(self, value: Any) -> Any:
        return self._load._load_value(self._context, value)

    def given(self, operation: Any, results: dict[str, Any]) -> dict[str, Any]:
        """Return an operation's arguments by name: arrays, words, results so far, lists where there may be several.

        Raises:
            KeyError: For a result that is not among these.
        """
        found = {name: self._read(value) for name, value in operation.attributes.items() if name != "name"}
        for name, argument in operation.inputs.items():
            values = [
                self._read(one.value)
                if one.HasField("value")
                else self.constants[one.name]
                if one.name in self.constants
                else results[one.name]
                for one in argument.arguments
            ]
            found[name] = values if name == "values" else values[0]
        return found

    def constant(self, operation: Any, name: str) -> Any:
        """Return an operation's argument that is constant, None where it has none of that name."""
        for one in operation.inputs[name].arguments if name in operation.inputs else ():
            return self._read(one.value) if one.HasField("value") else self.constants.get(one.name)
        return None

    def unknown(self) -> list[str]:
        """Return the kinds of operations that nothing here computes."""
        return sorted({one.type for one in self.operations} - OPERATIONS.keys())

    @torch.inference_mode()
    def compute(self, images: Tensor) -> Tensor:
        """Return the logits of images of the program's shape."""
        results: dict[str, Any] = {INPUT: images}
        for one in self.operations:
            given = {name: _tensor(value) for name, value in self.given(one, results).items()}
            found = OPERATIONS[one.type](**given)
            for output, value in zip(one.outputs, found if isinstance(found, list) else [found], strict=True):
                results[output.name] = value
        return results[OUTPUT]


def run(path: Path, threads: int = 0) -> Run | None:
    """Return what computes a file as it says, None where it has an operation that is not defined here."""
    program = Program(path)
    if program.unknown():
        return None
    return lambda images: program.compute(torch.from_numpy(images)).numpy()


def _tensor(value: Any) -> Any:
    """Make numbers with a fraction tensors in float32; whole ones, which are sizes and axes, Python's own."""
    if isinstance(value, list):
        return [_tensor(one) for one in value]
    if isinstance(value, (Tensor, str)):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f" and array.ndim:
        return torch.from_numpy(array.astype(np.float32))
    return array if array.dtype == np.int8 else array.tolist()


def _dequantised(quantized_data: Any, scale: Any, zero_point: Any, axis: int) -> Tensor:
    """Return weights `(q - zero) * scale`, of which each entry along an axis has its own zero and scale."""
    steps = np.asarray(quantized_data, np.float32)
    shape = [-1 if dim == axis % steps.ndim else 1 for dim in range(steps.ndim)]
    zeros, scales = (torch.as_tensor(np.asarray(one, np.float32)).reshape(-1) for one in (zero_point, scale))
    if scales.numel() not in (1, steps.shape[axis]):
        raise ValueError(f"{scales.numel()} scales along axis {axis} do not fit weights {steps.shape}")
    return (torch.from_numpy(steps) - zeros.reshape(shape)) * scales.reshape(shape)


def _padded(x: Tensor, pad_type: str, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad a map `(B, C, H, W)` as windows ask for it."""
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"windows padded as {pad_type!r} are not computed here")
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    return F.pad(x, (left, right, top, bottom), value=value) if any((top, bottom, left, right)) else x


def _conv(
    x: Tensor,
    weight: Tensor,
    strides: Any = (1, 1),
    pad_type: str = "valid",
    pad: Any = (),
    dilations: Any = (1, 1),
    groups: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    return F.conv2d(_padded(x, pad_type, pad), weight, bias, strides, 0, dilations, groups)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = (1, 1),
    pad_type: str = "valid",
    pad: Any = (0, 0, 0, 0),
    dilations: Any = (1, 1),
    groups: int = 1,
    output_shape: Any = None,
) -> Tensor:
    y = F.conv_transpose2d(x, weight, bias, strides, 0, 0, groups, dilations)
    top, _, left, _ = pad if pad_type == "custom" else (0, 0, 0, 0)
    height, width = output_shape[2:] if output_shape else (y.shape[2] - sum(pad[:2]), y.shape[3] - sum(pad[2:]))
    y = F.pad(y, (0, max(0, left + width - y.shape[3]), 0, max(0, top + height - y.shape[2])))
    return y[:, :, top : top + height, left : left + width]


def _avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = (1, 1),
    pad_type: str = "valid",
    pad: Any = (),
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    if ceil_mode:
        raise ValueError("pooling over the edge is not computed here")
    sums = F.avg_pool2d(_padded(x, pad_type, pad), kernel_sizes, strides)
    if not exclude_padding_from_average:
        return sums
    return sums / F.avg_pool2d(_padded(torch.ones_like(x[:, :1]), pad_type, pad), kernel_sizes, strides)


def _max_pool(
    x: Tensor, kernel_sizes: Any, strides: Any = (1, 1), pad_type: str = "valid", pad: Any = (), ceil_mode: bool = False
) -> Tensor:
    return F.max_pool2d(_padded(x, pad_type, pad, -torch.inf), kernel_sizes, strides, ceil_mode=ceil_mode)


def _slice(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    for dim in range(x.dim()):
        first = None if begin_mask and begin_mask[dim] else begin[dim]
        last = None if end_mask and end_mask[dim] else end[dim]
        if squeeze_mask and squeeze_mask[dim]:
            last = None if first in (None, -1) else first + 1
        start, stop, step = slice(first, last, stride[dim] if stride else 1).indices(x.shape[dim])
        x = x.index_select(dim, torch.arange(start, stop, step))
    return x.squeeze([dim for dim in range(x.dim()) if squeeze_mask and squeeze_mask[dim]])


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _upsampled(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    if align_corners is bool(half_pixel_centers) or (half_pixel_centers is False and not align_corners):
        raise ValueError("this way of resizing is not computed here")
    size = [round(side * by) for side, by in zip(x.shape[2:], (scale_factor_height, scale_factor_width), strict=True)]
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _resized(x: Tensor, target_size_height: int, target_size_width: int, sampling_mode: str = "DEFAULT") -> Tensor:
    if sampling_mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise ValueError(f"resizing by {sampling_mode} is not computed here")
    size = (target_size_height, target_size_width)
    return F.interpolate(x, size, mode="bilinear", align_corners=sampling_mode != "UNALIGN_CORNERS")


def _pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    pairs = [*zip(pad[::2], pad[1::2], strict=True)]  # of the last dimensions, in their order
    last_first = [side for pair in reversed(pairs) for side in pair]
    return F.pad(x, last_first, mode, constant_val)


def _split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Any = None) -> list[Tensor]:
    return list(x.split(split_sizes or x.shape[axis] // (num_splits or 1), axis))


def _batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _layer_norm(x: Tensor, axes: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> Tensor:
    y = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + epsilon).sqrt()
    shape = [x.shape[dim] if dim in [axis % x.dim() for axis in axes] else 1 for dim in range(x.dim())]
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": lambda x, dtype: x,  # between float types, of which there is one here
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "concat": lambda values, axis, interleave=False: torch.cat(values, axis),
    "constexpr_affine_dequantize": _dequantised,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "expand_dims": lambda x, axes: x.reshape(_expanded(list(x.shape), axes)),
    "gelu": _gelu,
    "identity": lambda x: x,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": lambda x, y: torch.as_tensor(x).maximum(torch.as_tensor(y)),
    "minimum": lambda x, y: torch.as_tensor(x).minimum(torch.as_tensor(y)),
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "pow": lambda x, y: x**y,
    "real_div": lambda x, y: x / y,
    "reduce_mean": lambda x, axes, keep_dims=False: x.mean(axes, keepdim=keep_dims),
    "reduce_sum": lambda x, axes, keep_dims=False: x.sum(axes, keepdim=keep_dims),
    "relu": lambda x: x.relu(),
    "relu6": lambda x: x.clamp(0, 6),
    "reshape": lambda x, shape: x.reshape(shape),
    "resize_bilinear": _resized,
    "rsqrt": lambda x, epsilon=1e-12: (x + epsilon).rsqrt(),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "silu": lambda x: F.silu(x),
    "slice_by_index": _slice,
    "softmax": lambda x, axis=-1: x.softmax(axis),
    "split": _split,
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x * x,
    "squeeze": lambda x, axes=None: x.squeeze(axes) if axes else x.squeeze(),
    "sub": lambda x, y: x - y,
    "tanh": lambda x: x.tanh(),
    "transpose": lambda x, perm: x.permute(perm),
    "upsample_bilinear": _upsampled,
}


def _expanded(shape: list[int], axes: Sequence[int]) -> list[int]:
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return shape
