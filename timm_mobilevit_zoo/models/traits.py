"""What a layer says of itself, beside its class in its family's file, to what takes networks apart.

`fuse`, the exporters and the attention maps know no family. They ask here, by a layer's type, what it may be replaced
by (`form_of`), how it lays a map out as keys (`keys_of`), and whether it only multiplies (`scales_by`). What there is
to say of timm's and torch's own layers, `timm_layers` says.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

__all__ = [
    "Keys",
    "Kind",
    "form_of",
    "formed",
    "is_scale",
    "keys_at",
    "keys_of",
    "parts",
    "patch_keys",
    "pooled_keys",
    "scale_of",
    "scaled",
    "scales_by",
]

AnyT = TypeVar("AnyT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type)

Kind = Literal["fused", "split", "columns", "portable"]
"""Who asks for a form: `fuse`, in front of all it folds; all runtimes but ONNX's, which want queries, keys and values
from a layer each; OpenVINO; phones' runtimes (XNNPACK, LiteRT, Core ML), whose graphs are of one size."""

Keys = tuple[Tensor, int, int]
"""The key that each cell of a map `(H', W')` is, counted through all groups (windows, in-patch positions); how many
groups there are; and how many keys each of them has, padding included."""

_forms: dict[Kind, dict[type, Callable[[Any], nn.Module | None]]] = {}
_keys: dict[type, Callable[[Any, tuple[int, ...]], Keys]] = {}
_keys_by_attributes: dict[tuple[str, ...], Callable[[Any, tuple[int, ...]], Keys]] = {}
_scales: dict[type, tuple[str, int | None]] = {}


def form_of(*classes: type, kind: Kind = "portable") -> Callable[[AnyT], AnyT]:
    """Decorate what makes a layer that computes the same: a function of the layer, or a module's class.

    Args:
        *classes: Types of the layer, exactly these.
        kind: Who asks for it. A function returns None for a layer that stays.
    """

    def decorate(make: AnyT) -> AnyT:
        _forms.setdefault(kind, {}).update(dict.fromkeys(classes, make))
        return make

    return decorate


def formed(network: nn.Module, *kinds: Kind) -> nn.Module:
    """Put the forms of these kinds, one kind after the other, in the place of a network's layers, and return it."""
    for kind in kinds:
        forms = _forms.get(kind, {})
        for name, module in reversed(list(network.named_modules())):  # what a layer consists of comes first
            new = forms[type(module)](module) if type(module) in forms else None
            if new is not None:
                parent, _, child = name.rpartition(".")
                setattr(network.get_submodule(parent), child, new.eval().requires_grad_(False))
    return network


def keys_of(*classes: type, having: tuple[str, ...] = ()) -> Callable[[AnyT], AnyT]:
    """Decorate a function of a layer and of its map's shape, which returns how the layer lays that out as `Keys`.

    Args:
        *classes: Types of the layer.
        having: Attributes by which a layer of any other class is known, which several makers write in the same way.
    """

    def decorate(lay_out: AnyT) -> AnyT:
        _keys.update(dict.fromkeys(classes, lay_out))
        if having:
            _keys_by_attributes[having] = lay_out
        return lay_out

    return decorate


def keys_at(layer: nn.Module) -> Callable[[Any, tuple[int, ...]], Keys] | None:
    """Return the function that `keys_of` decorated for a layer, None for a layer that lays out nothing."""
    if cls := next((cls for cls in type(layer).__mro__ if cls in _keys), None):
        return _keys[cls]
    alike = (names for names in _keys_by_attributes if all(hasattr(layer, name) for name in names))
    return _keys_by_attributes.get(next(alike, ()))


def scales_by(factor: str, channels: int | None = None) -> Callable[[ClassT], ClassT]:
    """Decorate a class whose layers do nothing but multiply, so that `fuse` can fold them.

    Args:
        factor: Attribute with the number, or one a channel.
        channels: Dimension of the map that these belong to; None for a number.
    """

    def decorate(cls: ClassT) -> ClassT:
        _scales[cls] = factor, channels
        return cls

    return decorate


def is_scale(layer: nn.Module) -> bool:
    """Tell whether a layer does nothing but multiply, as `scales_by` says; no tensor of it is looked at."""
    return type(layer) in _scales


def scale_of(layer: nn.Module) -> tuple[Tensor | float, int | None]:
    """Return by what a layer multiplies that `is_scale`, and the dimension of its channels."""
    factor, channels = _scales[type(layer)]
    return getattr(layer, factor), channels


def scaled(layer: Any, scale: Tensor | float) -> nn.Module:
    """Return a convolution or linear layer whose result is scaled: by one number, or one a channel."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        factors = torch.as_tensor(scale).to(layer.weight).expand(len(layer.weight))
        layer.weight = nn.Parameter(layer.weight * factors.view(-1, *[1] * (layer.weight.dim() - 1)))
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias * factors)
    return layer


def parts(layer: Any, count: int) -> list[Any]:
    """Return layers that compute a part each of the channels of a linear layer or a convolution, in their order."""
    found = [copy.deepcopy(layer) for _ in range(count)]
    for place, part in enumerate(found):
        part.weight = nn.Parameter(layer.weight.detach().chunk(count)[place].clone())
        part.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().chunk(count)[place].clone())
        width = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        setattr(part, width, len(part.weight))
    return found


def pooled_keys(size: Sequence[int], window: int) -> Keys:
    """Lay out a key for each window of a map `(H', W')`, row by row; the last windows are cut."""
    down, across = (math.ceil(side / window) for side in size)
    return torch.arange(size[0])[:, None] // window * across + torch.arange(size[1]) // window, 1, down * across


def patch_keys(size: Sequence[int], patch: int | Sequence[int]) -> Keys:
    """Lay out MobileViT's keys: the map resized to whole patches; group p holds the p-th cell of each, row by row."""
    h, w = to_2tuple(patch)
    down, across = math.ceil(size[0] / h), math.ceil(size[1] / w)
    i, j = torch.arange(down * h)[:, None], torch.arange(across * w)
    return (i % h * w + j % w) * down * across + i // h * across + j // w, h * w, down * across
