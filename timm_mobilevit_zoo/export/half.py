"""What 16 bits make of a network, known before any runtime computes in them: the largest values, and the error.

A number in 16 bits (IEEE 754's half precision) is at most 65,504 and has eleven binary digits. Which runtime rounds
what, and adds up in how many bits, differs from one phone to the next, and most cannot be run here. So the network is
run in float32 with the result of every operation rounded to 16 bits, the worst that any of them does to single values.
Squares and sums inside norms and means are looked at beside that, since some runtimes add up in 16 bits, too.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .compare import deviation_of

__all__ = ["LARGEST", "calmed", "halved"]

LARGEST = 65504.0
ROOM = 4.0  # between the images looked at and those to come
TOLD = 5  # layers
_aten = torch.ops.aten
_NORMS = (nn.GroupNorm, nn.LayerNorm)  # timm's are kinds of these
_SUMS = (_aten.mean.dim, _aten.sum.dim_IntList)
_LENGTHS = (_aten.linalg_vector_norm.default,)  # of a global response norm, whose squares runtimes compute one by one


@torch.no_grad()
def halved(network: nn.Module, images: Sequence[Tensor]) -> dict[str, Any]:
    """Have a network's norms not overflow in 16 bits, and return what 16 bits make of it.

    Args:
        network: In evaluation mode, in float32, on the CPU. It is changed: see `calmed`.
        images: What it is run on, each `(B, C, H, W)`.

    Returns:
        What the manifest tells of it: the `layers` with the largest values or weights, as a part of `LARGEST`; the
        `error` of the logits in standard deviations of them; `norms`, those computed of smaller values.

    Raises:
        ValueError: For a value beyond `LARGEST`, with the name of the layer that has it.
    """
    norms = calmed(network, images)
    expected = torch.cat([network(x) for x in images])
    rounding, rounded = _Rounding(), copy.deepcopy(network)
    for name, tensor in [*rounded.named_parameters(), *rounded.named_buffers()]:
        if tensor.is_floating_point():
            rounding.keep(name.rpartition(".")[0], tensor)
            tensor.copy_(tensor.half().float())
    with rounding.of(rounded), sdpa_kernel(SDPBackend.MATH):
        found = torch.cat([rounded(x.half().float()) for x in images])
    shares = sorted(rounding.largest.items(), key=lambda item: -item[1])
    if shares and not shares[0][1] <= 1:
        over = [name for name, share in shares if not share <= 1]
        more = f" and {len(over) - 1} other layer(s)" if len(over) > 1 else ""
        value = shares[0][1] * LARGEST
        raise ValueError(
            f"in 16 bits {network.pretrained_cfg['architecture']} overflows in {_said(over[0])}{more}: "  # type: ignore[index]
            f"its values reach {value:.2g}, over {LARGEST:g}; choose precision=fp32"
        )
    error = float((found - expected).abs().max()) / deviation_of(expected)
    layers = [{"name": name, "share": share} for name, share in shares[:TOLD]]
    return {"layers": layers, "error": error, "norms": norms}


def calmed(network: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Have norms whose squares would overflow compute of values a power of two smaller, which leaves their results.

    Args:
        network: Changed in place: in front of such a norm there is a factor, and its `eps` is that much smaller.
        images: What it is run on.

    Returns:
        For each of these norms its `name` and `factor`.
    """
    spreads: dict[str, float] = defaultdict(float)
    hooks = [
        module.register_forward_pre_hook(_spread(name, module, spreads))
        for name, module in network.named_modules()
        if isinstance(module, _NORMS)
    ]
    for x in images:
        network(x)
    for hook in hooks:
        hook.remove()
    told = []
    most = math.sqrt(LARGEST / ROOM)
    for name, spread in spreads.items():
        if spread > most and math.isfinite(spread):
            factor = 2.0 ** -math.ceil(math.log2(spread / most))
            norm: Any = network.get_submodule(name)
            norm.eps *= factor**2
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Sequential(_Times(factor), norm))
            told.append({"name": name, "factor": factor})
    return told


class _Times(nn.Module):
    """Multiply by a number. Shape kept."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _spread(name: str, norm: Any, spreads: dict[str, float]) -> Any:
    """Return a hook that keeps how far the values that a norm gets are from their mean, at most."""
    dims = (1, 2, 3) if isinstance(norm, nn.GroupNorm) else None

    def hook(module: nn.Module, args: Any) -> None:
        (x,) = args
        if dims is not None:
            x = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
            x = x - x.mean(2, keepdim=True)
        else:  # over channels, wherever a norm has them
            x = x - x.mean(1 if x.dim() == 4 and x.shape[-1] != norm.normalized_shape[-1] else -1, keepdim=True)
        spreads[name] = max(spreads[name], float(x.abs().max()))

    return hook


class _Rounding(TorchDispatchMode):
    """Rounds the results of operations to 16 bits and keeps, for each layer, the largest as a part of `LARGEST`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest: dict[str, float] = defaultdict(float)
        self.path: list[str] = [""]

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Round what a network computes meanwhile."""
        hooks = []
        for name, module in network.named_modules():
            hooks.append(module.register_forward_pre_hook(partial(self._enter, name)))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str, *_: Any) -> None:
        self.path.append(name)

    def _leave(self, *_: Any) -> None:
        self.path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(value.alias_info for value in func._schema.returns):  # a view, or what is written in place
            return result
        if func in _LENGTHS and args[0].is_floating_point():
            squares = args[0].square()
            self.keep(self.path[-1], squares.sum(args[2][-1]) if len(args) > 2 and args[2] else squares)
        if func in _SUMS and args[0].is_floating_point() and args[1]:
            self.keep(self.path[-1], args[0].abs().sum(args[1][-1]))  # a row's: `plain` adds up a map in two steps
        return tree_map_only(Tensor, self._rounded, result)

    def _rounded(self, value: Tensor) -> Tensor:
        if value.dtype != torch.float32 or not value.numel():
            return value
        self.keep(self.path[-1], value)
        return value.half().float()

    def keep(self, name: str, value: Tensor) -> None:
        """Keep how large a value of a layer is; infinite ones are masks of attention."""
        value = value[value.isfinite()]
        share = float(value.abs().max()) / LARGEST if value.numel() else 0.0
        self.largest[name] = max(self.largest[name], share)


def _said(name: str) -> str:
    return f"`{name}`" if name else "the network itself"
