"""Draw the pictures of the pages under docs/learn: `python docs/pictures.py [NAME ...]`, with the extra `demo`.

The one of distillation is drawn by `distill_digits.py`, from what it measured.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

IMAGES = Path(__file__).resolve().parent / "img"


def mobilevit_block(path: Path) -> None:
    """Draw how strongly one position of the output depends on each cell of the input, for parts of the block."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from timm_mobilevit_zoo.attention import MobileViTAttention

    side, place = 16, (7, 8)

    def dependence(part: str) -> Any:
        total = torch.zeros(side, side)
        for seed in range(16):  # single random weights leave a rough picture
            torch.manual_seed(seed)
            block = MobileViTAttention(48, 60, 3, 2, depth=2, mlp_dim=120).eval()
            if part == "transformer":  # the convolutions around it see one cell each
                block.conv_kxk, block.conv_fusion = torch.nn.Identity(), torch.nn.Conv2d(96, 48, 1)
            x = torch.randn(1, 48, side, side, requires_grad=True)
            y = block.conv_1x1(block.conv_kxk(x)) if part == "convolutions" else block(x)
            y[0, :, place[0], place[1]].square().sum().backward()
            assert x.grad is not None
            total += x.grad[0].abs().mean(0)
        return (total / total.max()).numpy()

    figure = Figure(figsize=(10, 3.7), layout="constrained")
    titles = {
        "convolutions": "step 1: two convolutions",
        "transformer": "steps 2 to 4: the transformer alone",
        "block": "the whole block",
    }
    for axis, (part, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        shown = axis.imshow(dependence(part), norm=LogNorm(1e-4, 1, clip=False), cmap="viridis")
        axis.plot(place[1], place[0], "o", markerfacecolor="none", markeredgecolor="red", markersize=9)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([-0.5 + i for i in range(0, side + 1, 2)], labels=[])
        axis.set_yticks([-0.5 + i for i in range(0, side + 1, 2)], labels=[])
        axis.grid(color="white", linewidth=0.5)
        axis.set_facecolor("black")
    figure.colorbar(shown, ax=figure.axes, label="gradient, relative to the largest")
    figure.suptitle("what the output at the red circle depends on (patches of 2 x 2, white lines)", fontsize=10)
    figure.savefig(path, dpi=120)


PICTURES: dict[str, Callable[[Path], None]] = {"mobilevit-block": mobilevit_block}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"NAME={', '.join(sorted(unknown))} is none of {', '.join(PICTURES)}")
    IMAGES.mkdir(exist_ok=True)
    for name in names:
        PICTURES[name](IMAGES / f"{name}.png")
        sys.stdout.write(f"drew {IMAGES / name}.png\n")


if __name__ == "__main__":
    main()
