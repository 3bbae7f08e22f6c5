"""Put a network into the form that phones' runtimes take whole: same outputs, plainer layers.

Runtimes hand parts of a network to a fast library of theirs and compute the rest one operation at a time. What a layer
is for them, it says beside its class (`models.traits.form_of`); here is which of them asks for what.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from timm_mobilevit_zoo.fusion import fuse
from timm_mobilevit_zoo.models.traits import formed

__all__ = ["PooledSlices", "portable", "simplified", "split", "transposeless"]


def simplified(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode, without what it does not need for that.

    Norms and scales are folded where torch.fx can trace the network, and else it is a plain copy.
    """
    try:
        return fuse(network)
    except ValueError:
        return copy.deepcopy(network)


def split(network: nn.Module) -> nn.Module:
    """Return what `simplified` does, with a layer each for queries, keys and values in timm's `Attention`.

    ncnn does not take them apart, and OpenVINO 2026.4 computes few tokens wrongly behind one layer, in float32.
    """
    return formed(simplified(network), "split")


def transposeless(network: nn.Module) -> nn.Module:
    """Return what `split` does, with attention on maps whose channels stay in front of positions, for OpenVINO."""
    return formed(simplified(network), "split", "columns")


@torch.no_grad()
def portable(network: nn.Module) -> nn.Module:
    """Return what `split` does, with norms, pools and attention as phones' runtimes take them, in graphs of one size.

    Args:
        network: A network in evaluation mode, on the CPU.
    """
    return formed(simplified(network), "split", "portable")


class PooledSlices(TorchFunctionMode):
    """While this is open, slices by a step are pooling with windows of one cell, which ncnn has. Values stay."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _strided(*args) if function is Tensor.__getitem__ else function(*args, **kwargs or {})


def _strided(x: Tensor, index: Any) -> Tensor:
    cuts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(cut, slice) for cut in cuts):
        return x[index]
    for dim, cut in enumerate(cuts):
        if (cut.start, cut.stop) != (None, None):
            x = x[(slice(None),) * dim + (slice(cut.start, cut.stop),)]
        if cut.step not in (None, 1):
            before, after = x.shape[:dim], x.shape[dim + 1 :]
            x = F.max_pool2d(x.reshape(1, math.prod(before), x.shape[dim], math.prod(after)), 1, (cut.step, 1))
            x = x.reshape(*before, x.shape[2], *after)
    return x
