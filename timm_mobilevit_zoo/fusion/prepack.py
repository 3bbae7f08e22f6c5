"""Layers whose weights lie as oneDNN, torch's library for CPUs, wants them, the activation computed on the way out.

torch lays weights out anew at each call, and with one thread gives 1x1 convolutions and linear layers to its BLAS,
which on some CPUs has half of oneDNN's speed. The operators here are those that torch.compile's code calls.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "check_prepack", "packed"]

SIZES = 4  # of inputs for which a convolution keeps its weights laid out

# What torch calls an activation there, its numbers and its variant.
ACTIVATIONS: dict[type, Any] = {
    nn.ReLU: lambda act: ("relu", [], "none"),
    nn.ReLU6: lambda act: ("hardtanh", [0.0, 6.0], "none"),
    nn.SiLU: lambda act: ("swish", [], "none"),
    nn.GELU: lambda act: ("gelu", [], act.approximate),
    nn.Sigmoid: lambda act: ("sigmoid", [], "none"),
    nn.Tanh: lambda act: ("tanh", [], "none"),
    nn.Hardswish: lambda act: ("hardswish", [], "none"),
}


def check_prepack(model: nn.Module) -> None:
    """Raise `ValueError` for a model, or a torch, that cannot be prepacked."""
    if not torch.backends.mkldnn.is_available():
        raise ValueError("prepack=True needs a torch with oneDNN: torch.backends.mkldnn.is_available() is False")
    for name, tensor in model.named_parameters():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            is_one = f"{name} is {str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}"
            raise ValueError(f"prepack=True is for float32 on a CPU, and {is_one}: call model.float().cpu() first")


def packed(layer: Any, act: nn.Module | None) -> nn.Module | None:
    """Return a layer that computes what `layer` does, and then `act`; None where there is no such layer."""
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        plain = layer.kernel_size == layer.stride == (1, 1) and not any(layer.padding) and layer.groups == 1
        return _Pointwise(layer, act) if plain else _Conv2d(layer, act)
    return _Linear(layer, act) if type(layer) is nn.Linear else None


class _Packed(nn.Module):
    def __init__(self, layer: Any, act: nn.Module | None) -> None:
        super().__init__()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.act = ACTIVATIONS[type(act)](act) if act is not None else ("none", [], "none")


class _Conv2d(_Packed):
    """A convolution, whose fastest layout depends on its input's size: a guess may cost ten times the time.

    So the weights are laid out when a size is met, and kept so for a few sizes.
    """

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__(conv, act)
        self.how = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight = conv.weight.detach()
        self.laid_out: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        weight = self.laid_out.get(x.shape)
        if weight is None:
            weight = self._lay_out(x.shape)
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.how, *self.act)

    def _lay_out(self, size: torch.Size) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.how, list(size))
        known = [*self.laid_out.items(), (size, weight)]
        self.laid_out = dict(known[-SIZES:])  # another thread may read the old one meanwhile
        return weight


class _Linear(_Packed):
    def __init__(self, layer: nn.Linear | nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__(layer, act)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().flatten(1), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.act)


class _Pointwise(_Linear):
    """A 1x1 convolution, which oneDNN computes faster as a linear layer. `(B, C, H, W) -> (B, O, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
