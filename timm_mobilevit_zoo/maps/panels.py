"""What there is to show of each layer over an image, and which layers show a person most."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .places import find_vit, locate, received
from .recording import Layer

__all__ = ["KINDS", "Panel", "choose", "clarity", "is_flat", "panels_of", "rolled_out"]

KINDS = {
    "class": "attention of the class token to each patch, mean over heads",
    "received": "attention that each position receives, mean over heads and queries",
    "gate": "gates, mean over channels",
    "matrix": "attention, rows of queries and columns of keys, mean over heads",
    "roll-out": "roll-out over all layers",
}
FEW = 4  # cells a side, below which a map shows nobody a shape


class Panel(NamedTuple):
    """What one layer shows over an image."""

    title: str
    kind: str  # one of KINDS
    values: Tensor  # (H', W'), of a matrix (Q, K)
    cells: tuple[int, int]  # how many of them are the layer's own, down and across: a key may fill many


def panels_of(network: nn.Module, x: Tensor, layers: dict[str, Layer]) -> list[Panel]:
    """Return what there is to show of one image, `x` `(1, C, H, W)`, for which `record` returned `layers`."""
    vit = find_vit(network, x)
    panels = []
    for name, layer in layers.items():
        found = locate(layer, vit, len(x))
        if layer.is_gate:
            panels.append(_whole(name, "gate", layer.values[0].float().mean(0)))
        elif found is None:
            panels.append(_whole(name, "matrix", layer.values.float().mean((0, 1))))
        elif vit is not None and vit.has_class_token and layer.frame is None:
            attn, keys = found
            panels.append(_whole(name, "class", attn.mean(1)[0, 0][keys]))
        else:
            panels.append(Panel(name, "received", received(*found, len(x))[0], _cells(found[1])))
    rolled = rolled_out(network, x, layers)
    return panels if rolled is None else [*panels, _whole("roll-out", "roll-out", rolled[0])]


def _whole(title: str, kind: str, values: Tensor) -> Panel:
    return Panel(title, kind, values, (int(values.shape[0]), int(values.shape[1])))


def _cells(keys: Tensor) -> tuple[int, int]:
    """Return how many rows and columns of `keys` `(H', W')` differ from the one before."""
    down, across = (keys[1:] != keys[:-1]).any(1).sum(), (keys[:, 1:] != keys[:, :-1]).any(0).sum()
    return 1 + int(down), 1 + int(across)


def rolled_out(network: nn.Module, x: Tensor, layers: dict[str, Layer]) -> Tensor | None:
    """Return the roll-out `(B, H', W')`, None without a class token or where maps are not tokens x tokens."""
    vit = find_vit(network, x)
    if vit is None or not vit.has_class_token:
        return None
    located = [locate(layer, vit, len(x)) for layer in layers.values()]
    maps = [found[0] for found in located if found is not None and found[0].shape[2:] == (vit.tokens, vit.tokens)]
    return _rolled(maps)[:, 0][:, vit.keys] if len(maps) == len(layers) else None


def _rolled(maps: Iterable[Tensor]) -> Tensor:
    """Return the share of each input token in each output token, `(B, h, N, N)` a layer to `(B, N, N)`."""
    shares: Any = None
    for attn in maps:
        mixed = 0.5 * attn.mean(1) + 0.5 * torch.eye(attn.shape[-1], dtype=attn.dtype, device=attn.device)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        shares = mixed if shares is None else mixed @ shares
    return shares


def is_flat(panel: Panel) -> bool:
    """Tell whether its values differ by no more than rounding, as they do where a layer has a single key."""
    values = panel.values
    return bool(values.max() - values.min() <= 1e-5 * values.abs().max())


def clarity(panel: Panel) -> float:
    """Return how much a person sees in a map: how far its values are apart, in how many cells.

    It is the standard deviation as a part of the largest value, times the square root of the number of cells; 0 for a
    matrix, which lies nowhere on the image. The page's `overlay.js` computes the same.
    """
    if panel.kind == "matrix" or is_flat(panel):
        return 0.0
    values = panel.values.float()
    return float(values.std(correction=0) / values.abs().max()) * (panel.cells[0] * panel.cells[1]) ** 0.5


def choose(panels: Sequence[Panel], count: int) -> list[Panel]:
    """Return the panels that show a person most, in their order: the clearest of each kind, then the clearest of all.

    What is flat is left out, and maps below 4 x 4 cells come after all others of their kind.

    Args:
        panels: What `panels_of` returned.
        count: How many, at most.
    """
    varied = [panel for panel in panels if not is_flat(panel)]
    ranks = [(min(panel.cells) >= FEW, clarity(panel)) for panel in varied]
    ranked = sorted(range(len(varied)), key=lambda i: ranks[i], reverse=True)
    best = [next(i for i in ranked if varied[i].kind == kind) for kind in dict.fromkeys(one.kind for one in varied)]
    return [varied[i] for i in sorted(list(dict.fromkeys([*best, *ranked]))[:count])]
