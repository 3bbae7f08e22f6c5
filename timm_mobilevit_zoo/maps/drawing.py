"""Attention maps by layer name, attention roll-out, and a picture of both."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import replacing
from timm_mobilevit_zoo.common.images import data_config, reader
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.models.copies import unwrapped
from timm_mobilevit_zoo.models.loading import load, load_checkpoint
from timm_mobilevit_zoo_cli.checks import check, plain
from timm_mobilevit_zoo_cli.text import printable

from .places import find_vit, locate, received
from .recording import Layer, record

__all__ = ["KINDS", "attention_maps", "draw", "draw_file", "panels_of", "rollout"]


def attention_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what every softmax attention of a network attends to, and CloFormer's gates, in order of execution.

    The model's layers run once, in eval mode, without gradients and without fused kernels, which never show their maps.
    They do so in a copy that shares the weights: each module's mode, switch and hooks stay as they are, and other
    threads may use the model meanwhile. All maps stay in memory, on the model's device.

    Args:
        model: A network of ours, or of timm's where it lets attention pass through a child `attn_drop`: ViT, DeiT,
            Swin, MobileViT (v1 and v2) and others; also as `features_only`, in DataParallel or in torch.compile.
        x: Images as the model takes them, `(B, C, H, W)`.

    Returns:
        For an attention, under its dotted name (`blocks.0.attn`), `(B', heads, queries, keys)`: only maps whose rows
        are distributions, not negative and with a sum of 1 up to the square root of their dtype's epsilon. `B'` is `B`,
        in Swin `B * windows`, in MobileViT `B * in-patch positions`, images outermost; MobileViT v2 has
        `(B, 1, in-patch positions, patches)`. For a gate of CloFormer's AttnConv, under a name that ends in `.gate`,
        its values after tanh, `(B, C, H, W)` in [-1, 1]. A module that runs again adds `:2` to its name, then `:3`.

    Raises:
        ValueError: For `x` of another rank, a TorchScript module, a model without such attention, maps that are not
            finite.
    """
    return {name: layer.values for name, layer in record(unwrapped(model), x).items()}


def rollout(model: nn.Module, x: Tensor) -> Tensor:
    """Return how much of each patch reaches the class token through all layers: `(B, H', W')` on the grid of patches.

    Attention roll-out as in "Quantifying Attention Flow in Transformers" (Abnar and Zuidema, 2020,
    https://arxiv.org/abs/2005.00928): each layer's map, averaged over heads, is mixed half and half with the identity,
    for the shortcut around it; the product over all layers tells the share of each input token in each output token.
    The class token's shares sum to 1; those of the prefix tokens are left out here, so an image sums to less.

    Args:
        model: A network with a class token, such as timm's ViT and DeiT.
        x: Images as the model takes them, `(B, C, H, W)`.

    Raises:
        ValueError: For a model without class token, or with maps that are not tokens x tokens; and as `attention_maps`.
    """
    network = unwrapped(model)
    layers = record(network, x)
    rolled = _rollout(network, x, layers)
    if rolled is None:
        raise ValueError(
            f"{type(network).__name__} has no roll-out: it takes a class token and maps that are all tokens x tokens, "
            "as ViT and DeiT have"
        )
    return rolled


def draw(model: nn.Module, x: Tensor) -> Any:
    """Draw what each layer attends to over one image; return a matplotlib `Figure`, to be shown or saved.

    There is a panel for each layer. For a model with a class token it shows that token's attention to the patches, mean
    over heads, and a last panel shows the roll-out; for others the attention that each position receives, mean over
    heads and queries; for a gate its mean over channels, around 0. Each panel has a scale of its own, told by its bar.
    Where nobody knows how the keys lie, as in many of timm's other networks, a panel shows queries x keys.

    Args:
        model: As for `attention_maps`.
        x: One image as the model takes it, `(1, C, H, W)`, normalised as the model's data config says.

    Raises:
        ValueError: For more than one image, and as `attention_maps`.
        ModuleNotFoundError: Without the extra `viz`.
    """
    network = unwrapped(model)
    return _figure(network, x, record(network, x))


def draw_file(
    model: str,
    image: str,
    *,
    output: str,
    pretrained: bool = False,
    checkpoint: str = "",
    img_size: int | tuple[int, int] | None = None,
    trust: bool = False,
    overwrite: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Draw what each layer of a model attends to over an image.

    Args:
        model: Folder that train left, or a registered name, whose weights are random unless others are asked for.
        image: Image file.
        output: File to write; its ending is a format that matplotlib writes, as .png, .jpg, .pdf or .svg.
        pretrained: Give a name the weights that it stands for; they may be downloaded.
        checkpoint: Give a name the weights in this file, the authors' or ours.
        img_size: Side of the square input, or its height and width, in pixels; the model's own where not given.
        trust: Load a folder as it stands, without the check of what it holds.
        overwrite: Replace an output file that exists.

    Returns:
        The shape of each layer's map, by name.

    Raises:
        ValueError: For arguments that cannot work, an image that cannot be read, or a model without attention.
        FileNotFoundError: For a path that is not there.
        ModuleNotFoundError: Without the extra `viz`.
    """
    given = plain(dict(locals()))
    model, image, output, checkpoint, img_size = (
        given[name] for name in ("model", "image", "output", "checkpoint", "img_size")
    )
    if not isinstance(model, str):
        raise ValueError(f"model={type(model).__name__} must be a folder or a name; draw takes a network")
    target, folder = Path(output), Path(model.removeprefix("local-dir:"))
    endings = require("matplotlib.figure", "viz").Figure().canvas.get_supported_filetypes()
    if target.suffix.lower().removeprefix(".") not in endings:
        raise ValueError(
            f"output={output!r} must end in one of {', '.join('.' + ending for ending in sorted(endings))}"
        )
    check("maps", given)
    is_folder = (folder / "config.json").is_file()
    if checkpoint:
        network = load_checkpoint(checkpoint, model, img_size=img_size).eval()
    else:
        network = load(str(folder) if is_folder else model, pretrained=pretrained, trust=trust, img_size=img_size)
    x = reader(data_config(network, img_size=img_size))(image)[None]
    layers = record(network, x)
    figure = _figure(network, x, layers)
    with replacing(target) as part, quiet():  # a font may lack letters of a stranger's names
        figure.savefig(part, format=target.suffix.lower().removeprefix("."), dpi=150)
    shapes = {name: tuple(layer.values.shape) for name, layer in layers.items()}
    lines = [f"{name}: {shape}" for name, shape in shapes.items()] + [f"drew {target}"]
    if not (is_folder or pretrained or checkpoint):
        lines.insert(0, f"the weights of {model} are random, and so are these maps")
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)
    return shapes


# What the panels show

KINDS = {
    "class": "attention of the class token to each patch, mean over heads",
    "received": "attention that each position receives, mean over heads and queries",
    "gate": "gates, mean over channels",
    "matrix": "attention, rows of queries and columns of keys, mean over heads",
    "roll-out": "roll-out over all layers",
}


class _Panel(NamedTuple):
    title: str
    kind: str
    values: Tensor  # (H', W'), of a matrix (Q, K)


def _rolled(maps: Iterable[Tensor]) -> Tensor:
    """Return the share of each input token in each output token, `(B, h, N, N)` a layer to `(B, N, N)`."""
    shares: Any = None
    for attn in maps:
        mixed = 0.5 * attn.mean(1) + 0.5 * torch.eye(attn.shape[-1], dtype=attn.dtype, device=attn.device)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        shares = mixed if shares is None else mixed @ shares
    return shares


def _rollout(network: nn.Module, x: Tensor, layers: dict[str, Layer]) -> Tensor | None:
    vit = find_vit(network, x)
    if vit is None or not vit.has_class_token:
        return None
    located = [locate(layer, vit, len(x)) for layer in layers.values()]
    maps = [found[0] for found in located if found is not None and found[0].shape[2:] == (vit.tokens, vit.tokens)]
    return _rolled(maps)[:, 0][:, vit.keys] if len(maps) == len(layers) else None


def panels_of(network: nn.Module, x: Tensor, layers: dict[str, Layer]) -> list[_Panel]:
    """Return what there is to show of one image, `x` `(1, C, H, W)`, for which `record` returned `layers`."""
    vit = find_vit(network, x)
    panels = []
    for name, layer in layers.items():
        found = locate(layer, vit, len(x))
        if layer.is_gate:
            panels.append(_Panel(name, "gate", layer.values[0].float().mean(0)))
        elif found is None:
            panels.append(_Panel(name, "matrix", layer.values.float().mean((0, 1))))
        elif vit is not None and vit.has_class_token and layer.frame is None:
            attn, keys = found
            panels.append(_Panel(name, "class", attn.mean(1)[0, 0][keys]))
        else:
            panels.append(_Panel(name, "received", received(*found, len(x))[0]))
    rolled = _rollout(network, x, layers)
    return panels if rolled is None else [*panels, _Panel("roll-out", "roll-out", rolled[0])]


def _grey(network: nn.Module, x: Tensor) -> Tensor:
    """Return the image `(H, W)` in 0..1, what the network's data config did to it undone."""
    config = data_config(network)
    mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
    if len(mean) != x.shape[1]:
        mean, std = mean.mean(), std.mean()
    return (x[0].detach().float().cpu() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).mean(0).clamp(0, 1)


def _figure(network: nn.Module, x: Tensor, layers: dict[str, Layer]) -> Any:
    if len(x) != 1:
        raise ValueError(f"x has {len(x)} images; a figure shows one")
    panels, grey = panels_of(network, x, layers), _grey(network, x)
    H, W = grey.shape
    counts = range(math.ceil(len(panels) ** 0.5), math.ceil((2 * len(panels)) ** 0.5) + 1)
    columns = min(counts, key=lambda count: -len(panels) % count)  # as few empty places as can be
    rows = math.ceil(len(panels) / columns)
    size = (2.4 * columns, (1.7 * H / W + 0.3) * rows + 0.3)  # inches: room for titles and for the bars' numbers
    figure = require("matplotlib.figure", "viz").Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (title, kind, values), axis in zip(panels, axes, strict=False):
        options: dict[str, Any] = {"cmap": "viridis", "interpolation": "nearest"}
        if kind == "matrix":
            options |= {"aspect": "auto"}  # far more queries than keys, often
        else:
            axis.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, W, H, 0))
            options |= {"extent": (0, W, H, 0), "alpha": 0.6}
        limit = float(values.abs().max())
        if kind == "gate":
            options |= {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        else:  # differences below a hundredth are not worth all colours
            options |= {"vmin": min(float(values.min()), 0.99 * limit), "vmax": limit}
        drawn = axis.imshow(values.cpu().numpy(), **options)
        axis.set_title(title, fontsize=7, parse_math=False)  # names are no formulas
        axis.set(xticks=[], yticks=[])
        bar = figure.colorbar(drawn, ax=axis, shrink=0.9, format="%.4g")
        bar.ax.tick_params(labelsize=6)
        bar.ax.locator_params(nbins=5)
    for axis in list(axes):  # places of the grid that no panel took
        axis.set_axis_off()
    shown = {panel.kind for panel in panels}
    figure.suptitle("; ".join(text for kind, text in KINDS.items() if kind in shown), fontsize=8, wrap=True)
    return figure
