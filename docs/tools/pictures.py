"""Draw the pictures of the pages under docs/learn: `python docs/tools/pictures.py [NAME ...]`, with the extra `demo`.

Each is drawn with English words and, for docs/zh, with Chinese ones, whose letters need a font (`words.py`); what is
trained for it is trained once. `--language zh` draws the Chinese ones alone.

The one of distillation is drawn by `distill_digits.py`, from what it measured. `page`, in English alone, is what a
phone shows of the page for browsers; it takes playwright, Chromium and npm's file of ONNX Runtime Web, as
`make page-test` does:

    ZOO_CHROMIUM=/usr/bin/chromium ZOO_ORT_WEB=onnxruntime-web-VERSION.tgz python docs/tools/pictures.py page
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from words import LANGUAGES, lettering, picture

Paths = dict[str, Path]  # the picture to write in each language


def dependence(part: str, side: int = 16, place: tuple[int, int] = (7, 8), seeds: int = 16) -> Any:
    """Return how strongly one position of a MobileViT block's output depends on each cell of its input.

    Args:
        part: `convolutions`, the first two alone; `transformer`, with convolutions that see one cell; or `block`, all.
        side: Side of the map, in cells.
        place: Row and column of the position.
        seeds: How many random networks to average, since a single one's weights leave a rough picture.

    Returns:
        Mean size of the gradient, relative to the largest, `(side, side)`.
    """
    from timm_mobilevit_zoo.attention import MobileViTAttention

    total = torch.zeros(side, side)
    for seed in range(seeds):
        torch.manual_seed(seed)
        block = MobileViTAttention(48, 60, 3, 2, depth=2, mlp_dim=120).eval()
        if part == "transformer":
            block.conv_kxk, block.conv_fusion = torch.nn.Identity(), torch.nn.Conv2d(96, 48, 1)
        x = torch.randn(1, 48, side, side, requires_grad=True)
        y = block.conv_1x1(block.conv_kxk(x)) if part == "convolutions" else block(x)
        y[0, :, place[0], place[1]].square().sum().backward()
        assert x.grad is not None
        total += x.grad[0].abs().mean(0)
    return (total / total.max()).numpy()


def mobilevit_block(paths: Paths) -> None:
    """Draw what one position of a MobileViT block's output depends on, for parts of the block."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    side, place = 16, (7, 8)
    titles = {
        "convolutions": "step 1: two convolutions",
        "transformer": "steps 2 to 4: the transformer alone",
        "block": "the whole block",
    }
    found = {part: dependence(part, side, place) for part in titles}
    for language, path in paths.items():
        with lettering(language) as words:
            figure = Figure(figsize=(10, 3.7), layout="constrained")
            for axis, (part, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
                shown = axis.imshow(found[part], norm=LogNorm(1e-4, 1, clip=False), cmap="viridis")
                axis.plot(place[1], place[0], "o", markerfacecolor="none", markeredgecolor="red", markersize=9)
                axis.set_title(words[title], fontsize=10)
                axis.set_xticks([-0.5 + i for i in range(0, side + 1, 2)], labels=[])
                axis.set_yticks([-0.5 + i for i in range(0, side + 1, 2)], labels=[])
                axis.grid(color="white", linewidth=0.5)
                axis.set_facecolor("black")
            figure.colorbar(shown, ax=figure.axes, label=words["gradient, relative to the largest"])
            caption = "what the output at the red circle depends on (patches of 2 x 2, white lines)"
            figure.suptitle(words[caption], fontsize=10)
            figure.savefig(path, dpi=120)


def _trained(folder: str, model: str, **options: Any) -> str:
    """Train a model on digits, and return its folder; the digits are beside it."""
    from timm_mobilevit_zoo.demo import DIGITS, write_digits
    from timm_mobilevit_zoo.train import train

    write_digits(f"{folder}/digits")
    train(f"{folder}/digits", model=model, output=f"{folder}/run", **DIGITS | dict(workers=0) | options)
    return f"{folder}/run"


def _attention_over_a_digit(paths: Paths, model: str, digit: str, **options: Any) -> None:
    """Train a model on digits and draw what it attends to over one that it has not seen, as the command `maps` does."""
    from timm_mobilevit_zoo.common.images import data_config, reader
    from timm_mobilevit_zoo.maps import draw
    from timm_mobilevit_zoo.models.loading import load

    with tempfile.TemporaryDirectory() as folder:
        network = load(_trained(folder, model, **options))
        image = min(Path(folder, "digits", "val", digit).iterdir())
        x = reader(data_config(network))(str(image))[None]
        for language, path in paths.items():
            with lettering(language) as words:
                draw(network, x, words=words).savefig(path, dpi=150)


def cloformer_attnconv(paths: Paths) -> None:
    """Draw the gates and the pooled attention of a CloFormer that was trained on digits of 64 x 64 pixels."""
    _attention_over_a_digit(paths, "cloformer_xxs", "3", img_size=64, epochs=6, warmup_epochs=1)


def vit_from_scratch(paths: Paths) -> None:
    """Draw the class token's attention and the roll-out of a ViT that was trained on digits of 32 x 32 pixels."""
    _attention_over_a_digit(paths, "vit_nano_patch4_32", "3", img_size=32, epochs=30, lr=3e-3)


def page(paths: Paths) -> None:
    """Draw what a phone shows of the page for browsers: a digit, its classes and the map that the page begins with."""
    from timm_mobilevit_zoo.page import page as write_page

    with tempfile.TemporaryDirectory() as folder:
        run = _trained(folder, "cloformer_xxs", img_size=64, epochs=3, warmup_epochs=1)
        write_page([run], output=f"{folder}/site", runtime=os.environ["ZOO_ORT_WEB"])
        photograph(Path(folder, "site"), min(Path(folder, "digits", "val", "3").iterdir()), paths["en"])


def photograph(site: Path, image: Path, path: Path) -> None:
    """Write what a phone shows of a page down to its classes, once it has an image.

    Args:
        site: The page's folder.
        image: Image file.
        path: Picture to write.
    """
    from playwright.sync_api import expect, sync_playwright

    command = [sys.executable, "-m", "timm_mobilevit_zoo", "page", "-o", str(site), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        browser = playwright.chromium.launch(executable_path=os.environ["ZOO_CHROMIUM"], args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto(server.stdout.readline().split()[0])
        expect(tab.locator("#status")).to_have_text("Ready", timeout=120_000)
        tab.set_input_files("#file", image)
        tab.check("#show")
        expect(tab.locator("#kind")).to_contain_text(": ", timeout=120_000)
        tab.evaluate("document.activeElement.blur()")
        end = tab.locator("#classes").evaluate("one => one.closest('section').getBoundingClientRect().bottom")
        tab.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": 390, "height": int(end) + 12})
        browser.close()
        server.send_signal(signal.SIGINT)


PICTURES: dict[str, Callable[[Paths], None]] = {
    "mobilevit-block": mobilevit_block,
    "cloformer-attnconv": cloformer_attnconv,
    "vit-from-scratch": vit_from_scratch,
    "page": page,
}
ENGLISH_ALONE = {"page"}  # which no Chinese page shows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    parser.add_argument("--language", choices=LANGUAGES, help="draw the pictures of one language (default: all)")
    args = parser.parse_args()
    names = args.names or list(PICTURES)
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"NAME={', '.join(sorted(unknown))} is not one of {', '.join(PICTURES)}")
    wanted = [args.language] if args.language else list(LANGUAGES)
    for language in wanted:
        with lettering(language):  # or a font that is missing would be told after the training
            picture("", language).parent.mkdir(exist_ok=True)
    for name in names:
        paths = {
            language: picture(name, language) for language in wanted if language == "en" or name not in ENGLISH_ALONE
        }
        if paths:
            PICTURES[name](paths)
        sys.stdout.writelines(f"drew {path}\n" for path in paths.values())


if __name__ == "__main__":
    main()
