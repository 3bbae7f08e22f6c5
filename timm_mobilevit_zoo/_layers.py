"""What the layers of a network attend to, and where on the image that lies: `record` runs it, `locate` finds the place.

timm lets what leaves a softmax pass through a dropout called `attn_drop`; CloFormer lets its gates pass through one
called `gate_drop`. What enters these children is what a layer attends to, so hooks on them serve every such network.

Networks lay a map out as tokens in their own ways. Each `..._keys` says it for one of them, and returns the key that
each cell of a map `(H', W')` is, counted through all groups; the number of groups; and how many keys each of them has,
padding included.

Shapes: B images, B' = B * groups (windows of Swin, in-patch positions of MobileViT), h heads, Q queries, K keys.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import to_2tuple
from timm.utils import unwrap_model
from torch import Tensor, nn

from .models.cloformer import PooledAttention
from .models.edgevit import SparseAttention
from .models.efficientmod import MapAttention

__all__ = ["Layer", "ViT", "find_vit", "locate", "received", "record", "unwrap"]


class Layer(NamedTuple):
    """What a layer attends to."""

    values: Tensor  # attention (B', h, Q, K) or a gate (B, C, H, W)
    is_gate: bool
    frame: Any  # the module that lays a map out as tokens for this layer, where there is one
    shape: tuple[int, ...]  # of that map


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of DataParallel, torch.compile and their kind."""
    model = unwrap_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is a TorchScript module, which never shows its maps; pass the one it was made from")
    return model


def record(network: nn.Module, x: Tensor) -> dict[str, Layer]:
    """Run a network, as `attention_maps` says, and return its layers by name, in order of execution."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x={what} must be a batch of images (B, C, H, W)")
    modules: dict[str, Any] = dict(network.named_modules())
    shapes: dict[Any, tuple[int, ...]] = {}
    layers: dict[str, Layer] = {}
    runs: Counter[str] = Counter()

    def see(frame: nn.Module, args: tuple[Any, ...]) -> None:
        shapes[frame] = tuple(getattr(args[0], "shape", ())) if args else ()

    def keep(name: str, frame: Any) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        parent, _, child = name.rpartition(".")
        is_gate = child == "gate_drop"
        key = name.removesuffix("_drop") if is_gate else parent

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            runs[key] += 1
            again = f":{runs[key]}" if runs[key] > 1 else ""
            layers[key + again] = Layer(args[0], is_gate, frame, shapes.get(frame, ()))

        return hook

    drops = [name for name in modules if name.rpartition(".")[2] in ("attn_drop", "gate_drop")]
    frames = {name: _find_frame(name, modules) for name in drops}
    training = [(module, module.training) for module in modules.values()]
    fused = [module for module in modules.values() if getattr(module, "fused_attn", False) is True]
    handles = []
    try:
        for frame in set(frames.values()) - {None}:
            handles.append(frame.register_forward_pre_hook(see))
        for name in drops:
            handles.append(modules[name].register_forward_pre_hook(keep(name, frames[name])))
        for module in modules.values():
            module.training = False  # the flag alone: some networks' own train() and eval() do more than that
        for module in fused:
            module.fused_attn = False
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training:
            module.training = flag
        for module in fused:
            module.fused_attn = True
    for name, layer in layers.items():
        if not torch.isfinite(layer.values).all():
            raise ValueError(f"{name} is not finite: x or the weights are not, or too large for {layer.values.dtype}")
    layers = {name: layer for name, layer in layers.items() if _is_map(layer)}
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no attention that timm's convention shows: rows that sum to 1 on their way "
            "through a child attn_drop; CloFormer, ViT, DeiT, Swin and MobileViT have it"
        )
    return layers


def _is_map(layer: Layer) -> bool:
    """Whether values are what `attention_maps` promises; other things pass through dropouts of these names too."""
    values = layer.values
    if values.dim() != 4:
        return False
    if layer.is_gate:
        return bool((values.abs() <= 1).all())
    sums = values.sum(-1, dtype=torch.promote_types(values.dtype, torch.float32))
    return bool((values >= 0).all() and ((sums - 1).abs() <= torch.finfo(values.dtype).eps ** 0.5).all())


def _token_keys(grid: Sequence[int], prefix: int) -> tuple[Tensor, int, int]:
    """ViT: patches row by row, behind the prefix tokens (class, distillation, registers)."""
    H, W = grid
    return prefix + torch.arange(H * W).view(H, W), 1, prefix + H * W


def _window_keys(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> tuple[Tensor, int, int]:
    """Swin: the map rolled up and left by the shift, padded below and right, and cut into windows row by row."""
    (H, W), (h, w) = size, window
    i, j = (torch.arange(H)[:, None] - shift[0]) % H, (torch.arange(W) - shift[1]) % W
    down, across = math.ceil(H / h), math.ceil(W / w)
    return (i // h * across + j // w) * h * w + i % h * w + j % w, down * across, h * w


def _patch_keys(size: Sequence[int], patch: Sequence[int]) -> tuple[Tensor, int, int]:
    """MobileViT: the map resized to whole patches; group p holds the p-th cell of every patch, row by row."""
    h, w = patch
    down, across = math.ceil(size[0] / h), math.ceil(size[1] / w)
    i, j = torch.arange(down * h)[:, None], torch.arange(across * w)
    return (i % h * w + j % w) * down * across + i // h * across + j // w, h * w, down * across


def _pooled_keys(size: Sequence[int], window: int) -> tuple[Tensor, int, int]:
    """CloFormer, EdgeViT, and EfficientMod dilated: a key for each window, row by row; the last ones are cut."""
    down, across = (math.ceil(side / window) for side in size)
    return torch.arange(size[0])[:, None] // window * across + torch.arange(size[1]) // window, 1, down * across


def _find_frame(name: str, modules: dict[str, Any]) -> Any:
    """Return the innermost module from `name` outwards that lays a map out as tokens, None where there is none."""
    module = modules[name]
    is_swin = hasattr(module, "shift_size") and hasattr(module, "window_size")
    is_mobilevit = hasattr(module, "patch_size") and hasattr(module, "transformer")
    if isinstance(module, (PooledAttention, SparseAttention, MapAttention)) or is_swin or is_mobilevit:
        return module
    return _find_frame(name.rpartition(".")[0], modules) if name else None


class ViT(NamedTuple):
    """How a ViT lays out its tokens."""

    keys: Tensor  # (H', W')
    tokens: int
    has_class_token: bool


def find_vit(network: nn.Module, x: Tensor) -> ViT | None:
    """Return how a ViT lays out images `(B, C, H, W)`; None for another network."""
    for module in network.modules():  # features_only puts the network one level down
        grid_of = getattr(getattr(module, "patch_embed", None), "dynamic_feat_size", None)
        prefix = getattr(module, "num_prefix_tokens", None)
        if grid_of is not None and isinstance(prefix, int):
            keys, _, count = _token_keys(grid_of(tuple(x.shape[2:])), prefix)
            return ViT(keys, count, getattr(module, "cls_token", None) is not None)
    return None


def locate(layer: Layer, vit: ViT | None, batch: int) -> tuple[Tensor, Tensor] | None:
    """Return an attention as `(B', h, Q, K)`, in float32 at least, and its keys; None where nobody knows how they lie.

    Args:
        layer: One of those that `record` returns.
        vit: What `find_vit` returns for the network.
        batch: Number of images.
    """
    values, frame, shape = layer.values, layer.frame, layer.shape
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if layer.is_gate:
        return None
    if frame is None and vit is not None:
        keys, groups, count = vit.keys, 1, vit.tokens
    elif len(shape) != 4:
        return None
    elif isinstance(frame, PooledAttention):
        keys, groups, count = _pooled_keys(shape[2:], getattr(frame.pool, "window_size", 1))
    elif isinstance(frame, SparseAttention):
        keys, groups, count = _pooled_keys(shape[1:3], frame.query_step * frame.key_step)
    elif isinstance(frame, MapAttention):
        keys, groups, count = _pooled_keys(shape[2:], frame.dilation)
    elif hasattr(frame, "shift_size"):
        keys, groups, count = _window_keys(shape[1:3], to_2tuple(frame.window_size), to_2tuple(frame.shift_size))
    else:
        keys, groups, count = _patch_keys(shape[2:], to_2tuple(frame.patch_size))
        if values.shape[:3] == (batch, 1, groups):  # version 2: one row of scores for each in-patch position
            values = values.reshape(batch * groups, 1, 1, -1)
    fits = len(values) == batch * groups and values.shape[-1] == count
    return (values, keys.to(values.device)) if fits else None


def received(attn: Tensor, keys: Tensor, batch: int) -> Tensor:
    """Return the attention that each cell's key gets, mean over heads and queries: `(B', h, Q, K) -> (B, H', W')`."""
    attn = attn.mean(1).unflatten(0, (batch, -1))  # (B, groups, Q, K)
    asks = attn.new_ones(attn.shape[1:3])
    if attn.shape[2] == attn.shape[3]:  # self-attention: padding and prefix tokens ask too, from outside the image
        asks = torch.zeros_like(asks).flatten().scatter(0, keys.flatten(), 1).view_as(asks)
    mean = (attn * asks[..., None]).sum(2) / asks.sum(1, keepdim=True)  # (B, groups, K)
    return mean.flatten(1)[:, keys]
