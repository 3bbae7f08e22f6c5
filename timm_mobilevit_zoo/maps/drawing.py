"""Attention maps by layer name, attention roll-out, and a picture of both."""

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import replacing
from timm_mobilevit_zoo.common.images import data_config, reader
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.models.copies import unwrapped
from timm_mobilevit_zoo.models.loading import load, load_checkpoint, words_of
from timm_mobilevit_zoo_cli.checks import check, plain
from timm_mobilevit_zoo_cli.text import printable

from .panels import KINDS, Panel, choose, is_flat, panels_of, rolled_out
from .recording import Layer, record, run

__all__ = ["attention_maps", "draw", "draw_file", "rollout"]

SHOWN = 7  # panels beside the image, where not all are asked for
TOP = 3  # classes told below the image


class Figure(NamedTuple):
    """A picture, and what is left out of it."""

    drawn: Any  # matplotlib's
    left_out: list[str]  # lines


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
    rolled = rolled_out(network, x, layers)
    if rolled is None:
        raise ValueError(
            f"{type(network).__name__} has no roll-out: it takes a class token and maps that are all tokens x tokens, "
            "as ViT and DeiT have"
        )
    return rolled


def draw(model: nn.Module, x: Tensor, *, all_layers: bool = False, words: Mapping[str, str] | None = None) -> Any:
    """Draw what layers attend to over one image; return a matplotlib `Figure`, to be shown or saved.

    The first panel is the image itself, with its likeliest classes. Then come those seven maps on which a person sees
    most, by their spread and the number of their cells, or all. For a model with a class token a map shows that token's
    attention to the patches, mean over heads, and the last one the roll-out; for others the attention that each
    position receives, mean over heads and queries; for a gate its mean over channels, around 0. Each panel has a scale
    of its own, told by its bar. Where nobody knows how the keys lie, as in many of timm's other networks, a panel shows
    queries x keys. Maps that are the same everywhere, as attention to a single key is, are named and not drawn.

    Args:
        model: As for `attention_maps`.
        x: One image as the model takes it, `(1, C, H, W)`, normalised as the model's data config says.
        all_layers: Draw every map but those that are the same everywhere.
        words: What to write instead of the figure's English phrases, such as `{"the image": "l'image"}`; others stay.
            Numbers and names in them are `{shown}`, `{count}` and `{names}`. matplotlib needs a font with the letters.

    Raises:
        ValueError: For more than one image, and as `attention_maps`.
        ModuleNotFoundError: Without the extra `viz`.
    """
    network = unwrapped(model)
    return _figure(network, x, *run(network, x), all_layers, "", words or {}).drawn


def draw_file(
    model: str,
    image: str,
    *,
    output: str,
    pretrained: bool = False,
    checkpoint: str = "",
    img_size: int | tuple[int, int] | None = None,
    all_layers: bool = False,
    trust: bool = False,
    overwrite: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Draw an image, its likeliest classes, and what layers of a model attend to in it.

    Args:
        model: Folder that train left, or a registered name, with random weights unless others are asked for.
        image: Image file.
        output: File to write, in a format that matplotlib writes, such as .png, .jpg, .pdf or .svg.
        pretrained: Use the published weights of the name, which may be downloaded.
        checkpoint: Use the weights in this file, the authors' or ours, for the name.
        img_size: Side of the square input, or its height and width, in pixels; the model's own if not given.
        all_layers: Draw every layer, not only the most telling ones.
        trust: Load a folder without checking its contents.
        overwrite: Replace an existing output file.

    Returns:
        The shape of each layer's map, by name.

    Raises:
        ValueError: For arguments that cannot work, an image that cannot be read, or a model without attention.
        FileNotFoundError: For a path that does not exist.
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
    layers, logits = run(network, x)
    is_random = not (is_folder or pretrained or checkpoint)
    figure = _figure(network, x, layers, logits, all_layers, f"random weights: {model}" if is_random else "")
    with replacing(target) as part, quiet():  # a font may lack letters of a stranger's names
        figure.drawn.savefig(part, format=target.suffix.lower().removeprefix("."), dpi=150)
    shapes = {name: tuple(layer.values.shape) for name, layer in layers.items()}
    lines = [f"{name}: {shape}" for name, shape in shapes.items()]
    lines += [f"{line}; --all-layers draws the others" if "sees most" in line else line for line in figure.left_out]
    if is_random:
        lines.insert(0, f"the weights of {model} are random, and so are these maps")
    lines.append(f"drew {target}")
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)
    return shapes


# The figure


def _picture(network: nn.Module, x: Tensor) -> Tensor:
    """Return the image `(C, H, W)` in 0..1, what the network's data config did to it undone."""
    config = data_config(network)
    mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
    if len(mean) != x.shape[1]:
        mean, std = mean.mean(), std.mean()
    return (x[0].detach().float().cpu() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).clamp(0, 1)


def _top(network: Any, logits: Any) -> str:
    """Return the likeliest classes of an image, a line each; nothing for a network that tells none."""
    count = getattr(network, "num_classes", 0)
    if not isinstance(logits, Tensor) or not count or logits.shape != (1, count):
        return ""
    labels = (words_of(network) if hasattr(network, "pretrained_cfg") else None) or range(count)
    shares, indices = logits[0].float().softmax(0).topk(min(TOP, count))
    pairs = zip(indices.tolist(), shares.tolist(), strict=True)
    return "\n".join(
        f"{textwrap.shorten(printable(str(labels[i])), 28, placeholder='…')} {100 * share:.1f}%" for i, share in pairs
    )


def _figure(
    network: nn.Module,
    x: Tensor,
    layers: dict[str, Layer],
    output: Any,
    every: bool,
    note: str,
    words: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Return the figure, and lines that tell what is left out of it, in `words` instead of English ones."""
    if len(x) != 1:
        raise ValueError(f"x has {len(x)} images; a figure shows one")
    panels, picture = panels_of(network, x, layers), _picture(network, x)
    _, H, W = picture.shape
    shown = [panel for panel in panels if not is_flat(panel)] if every else choose(panels, SHOWN)
    told = _left_out(panels, shown, words)
    places = 1 + len(shown)
    counts = range(math.ceil(places**0.5), math.ceil((2 * places) ** 0.5) + 1)
    columns = min(counts, key=lambda count: -places % count)  # as few empty places as can be
    rows = math.ceil(places / columns)
    size = (2.4 * columns, (1.7 * H / W + 0.3) * rows + 0.6)  # inches: room for titles and for the bars' numbers
    figure = require("matplotlib.figure", "viz").Figure(figsize=size, layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    pixels = picture if len(picture) == 3 else picture.mean(0, keepdim=True).expand(3, -1, -1)
    first.imshow(pixels.permute(1, 2, 0).numpy(), extent=(0, W, H, 0), interpolation="nearest")
    first.set_title(words.get("the image", "the image"), fontsize=7)
    first.set(xticks=[], yticks=[])
    first.set_xlabel(_top(network, output), fontsize=7, parse_math=False)
    for panel, axis in zip(shown, others, strict=False):
        _draw_panel(figure, axis, panel, picture.mean(0))
        if panel.kind == "roll-out":  # other titles are names
            axis.set_title(words.get(panel.title, panel.title), fontsize=7, parse_math=False)
    for axis in others[len(shown) :]:  # places of the grid that no panel took
        axis.set_axis_off()
    kinds = {panel.kind for panel in shown}
    texts = [words.get(text, text) for kind, text in KINDS.items() if kind in kinds]
    lines = [note, words.get("; ", "; ").join(texts), *told]
    figure.suptitle(
        "\n".join(textwrap.fill(line, 36 * columns) for line in lines if line), fontsize=8, parse_math=False
    )
    return Figure(figure, told)


def _draw_panel(figure: Any, axis: Any, panel: Panel, grey: Tensor) -> None:
    """Draw a map over the image, `grey` `(H, W)`, with a scale of its own."""
    H, W = grey.shape
    options: dict[str, Any] = {"cmap": "viridis", "interpolation": "nearest"}
    if panel.kind == "matrix":
        options |= {"aspect": "auto"}  # far more queries than keys, often
    else:
        axis.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, W, H, 0))
        options |= {"extent": (0, W, H, 0), "alpha": 0.6}
    values = panel.values
    limit = float(values.abs().max())
    if panel.kind == "gate":
        options |= {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    else:  # differences below a hundredth are not worth all colours
        options |= {"vmin": min(float(values.min()), 0.99 * limit), "vmax": limit}
    drawn = axis.imshow(values.cpu().numpy(), **options)
    axis.set_title(panel.title, fontsize=7, parse_math=False)  # names are no formulas
    axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=axis, shrink=0.9, format="%.4g")
    bar.ax.tick_params(labelsize=6)
    bar.ax.locator_params(nbins=5)


def _left_out(panels: Sequence[Panel], shown: Sequence[Panel], words: Mapping[str, str]) -> list[str]:
    """Return lines that tell which panels are not shown, and why."""
    flat = [panel.title for panel in panels if is_flat(panel)]
    others = len(panels) - len(shown) - len(flat)
    lines = []
    if others:
        text = "{shown} of {count} maps are shown, those on which a person sees most"
        lines.append(words.get(text, text).format(shown=len(shown), count=len(panels)))
    if flat:
        text = "left out, the same everywhere, as attention to a single key is: {names}"
        lines.append(words.get(text, text).format(names=", ".join(flat)))
    return lines
