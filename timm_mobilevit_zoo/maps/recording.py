"""What the layers of a network attend to, recorded while it runs.

timm lets what leaves a softmax pass through a dropout called `attn_drop`; CloFormer lets its gates pass through one
called `gate_drop`. What enters these children is what a layer attends to, so hooks on them serve every such network.

Shapes: B images, B' = B * groups (windows of Swin, in-patch positions of MobileViT), h heads, Q queries, K keys.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.models.copies import twin
from timm_mobilevit_zoo.models.traits import keys_at

__all__ = ["Layer", "record", "run"]


class Layer(NamedTuple):
    """What a layer attends to."""

    values: Tensor  # attention (B', h, Q, K) or a gate (B, C, H, W)
    is_gate: bool
    frame: Any  # the module that lays a map out as tokens for this layer, where there is one
    shape: tuple[int, ...]  # of that map


def record(network: nn.Module, x: Tensor) -> dict[str, Layer]:
    """Run a network, as `attention_maps` says, and return its layers by name, in order of execution."""
    return run(network, x)[0]


def run(network: nn.Module, x: Tensor) -> tuple[dict[str, Layer], Any]:
    """Return what `record` does, and the network's output."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x={what} must be a batch of images (B, C, H, W)")
    own = twin(network)  # or else what another thread records or computes with it would mix with this
    modules: dict[str, Any] = dict(own.named_modules())
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
            layers[key + again] = Layer(args[0].detach(), is_gate, frame, shapes.get(frame, ()))

        return hook

    drops = [name for name in modules if name.rpartition(".")[2] in ("attn_drop", "gate_drop")]
    frames = {name: _find_frame(name, modules) for name in drops}
    for frame in set(frames.values()) - {None}:
        frame.register_forward_pre_hook(see)
    for name in drops:
        modules[name].register_forward_pre_hook(keep(name, frames[name]))
    for module in modules.values():
        if getattr(module, "fused_attn", False) is True:
            module.fused_attn = False
    with torch.no_grad():
        output = own(x)
    for name, layer in layers.items():
        if not torch.isfinite(layer.values).all():
            raise ValueError(f"{name} is not finite: x or the weights are not, or too large for {layer.values.dtype}")
    layers = {name: layer for name, layer in layers.items() if _is_map(layer)}
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no attention that timm's convention shows: rows that sum to 1 on their way "
            "through a child attn_drop; CloFormer, ViT, DeiT, Swin and MobileViT have it"
        )
    return layers, output


def _is_map(layer: Layer) -> bool:
    """Whether values are what `attention_maps` promises; other things pass through dropouts of these names too."""
    values = layer.values
    if values.dim() != 4:
        return False
    if layer.is_gate:
        return bool((values.abs() <= 1).all())
    sums = values.sum(-1, dtype=torch.promote_types(values.dtype, torch.float32))
    return bool((values >= 0).all() and ((sums - 1).abs() <= torch.finfo(values.dtype).eps ** 0.5).all())


def _find_frame(name: str, modules: dict[str, Any]) -> Any:
    """Return the innermost module from `name` outwards that lays a map out as tokens, None where there is none."""
    if keys_at(modules[name]):
        return modules[name]
    return _find_frame(name.rpartition(".")[0], modules) if name else None
