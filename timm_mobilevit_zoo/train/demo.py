"""From nothing to a trained backbone: scikit-learn's 1,797 handwritten digits, a light model, minutes on a CPU."""

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.images import data_config, read_image, reader
from timm_mobilevit_zoo.models.loading import load
from timm_mobilevit_zoo.models.names import unknown
from timm_mobilevit_zoo_cli.checks import check

from .predict import predict
from .run import train

__all__ = ["DIGITS", "demo", "write_digits"]

# How to train on digits: all of the image counts, and a mirrored or recoloured digit is none.
DIGITS: dict[str, Any] = dict(crop_pct=1.0, scale=(0.7, 1.0), hflip=0.0, color_jitter=0.0)


def write_digits(folder: str | Path, *, val_every: int = 5) -> dict[str, int]:
    """Write scikit-learn's digits, real 8 x 8 grey images, as `train/<digit>/*.png` and `val/<digit>/*.png`.

    Args:
        folder: Where to write; it must be new or empty.
        val_every: Each class's every n-th image goes to `val`: the split is the same each time.

    Returns:
        The number of images in each split.

    Raises:
        ValueError: For a folder that holds something, and for `val_every` below 2.
        ModuleNotFoundError: Without scikit-learn.
    """
    check("write_digits", {"val_every": val_every})
    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"folder={str(root)!r} is not empty")
    digits = require("sklearn.datasets", "demo").load_digits()
    counts, seen = {"train": 0, "val": 0}, [0] * 10
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        split = "val" if seen[digit] % val_every == 0 else "train"
        seen[digit] += 1
        counts[split] += 1
        path = root / split / str(digit) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype("uint8")).save(path)  # 0..16 to 0..255
    return counts


def demo(*, output: str = "demo", model: str = "cloformer_xxs", epochs: int = 15, seed: int = 42) -> float:
    """Train a model on real digits, reload it, draw its predictions and print the levels of its backbone.

    Args:
        output: Folder for the images (digits), the run (run) and the picture (predictions.png).
        model: Registered name.
        epochs: Passes over the 1,433 training images.
        seed: Seed of weights, order and augmentation.

    Returns:
        Validation accuracy of the reloaded model, in percent.

    Raises:
        ValueError: Where the output folder holds an earlier demo, and for a name that nobody registers.
        ModuleNotFoundError: Without the extra `demo`.
    """
    check("demo", dict(locals()))
    if not timm.is_model(model):  # before the digits are written
        raise ValueError(f"model={model!r} is not {unknown(model)}")
    root = Path(output)
    for module in ("accelerate", "matplotlib", "sklearn"):
        require(module, "demo")
    counts = write_digits(root / "digits")
    sys.stdout.write(f"wrote {counts['train']} training and {counts['val']} validation images to {root / 'digits'}\n")
    train(
        str(root / "digits"),
        model=model,
        output=str(root / "run"),
        img_size=32,
        epochs=epochs,
        warmup_epochs=min(3, epochs - 1),
        seed=seed,
        workers=1,
        **DIGITS,
    )
    trained = load(str(root / "run"))
    paths = sorted((root / "digits" / "val").glob("*/*.png"))
    results = predict(trained, [str(path) for path in paths])
    right = [path.parent.name == result["classes"][0]["label"] for path, result in zip(paths, results, strict=True)]
    accuracy = 100 * sum(right) / len(right)
    sys.stdout.write(
        f"reloaded {root / 'run'}: {sum(right)} of {len(right)} validation images right, {accuracy:.2f}%\n"
    )
    _draw(root / "predictions.png", paths, results)
    sys.stdout.write(f"drew {root / 'predictions.png'}\n")

    backbone: Any = timm.create_model(f"local-dir:{root / 'run'}", pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        levels = backbone(reader(data_config(backbone))(paths[0])[None])
    info = backbone.feature_info
    for name, stride, level in zip(info.module_name(), info.reduction(), levels, strict=True):
        sys.stdout.write(f"{name}: stride {stride:2d}, {tuple(level.shape)}\n")
    return accuracy


def _draw(path: Path, images: list[Path], results: list[dict[str, Any]]) -> None:
    """Draw every ninth image with its true and predicted class, wrong ones in red."""
    require("matplotlib", "demo")
    from matplotlib.figure import Figure

    picks = list(zip(images, results, strict=True))[::9][:40]
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axis, (image, result) in zip(figure.subplots(4, 10).flat, picks, strict=False):
        best = result["classes"][0]
        axis.imshow(read_image(image, "L"), cmap="gray")
        right = best["label"] == image.parent.name
        axis.set_title(
            f"{best['label']}  {100 * best['probability']:.0f}%", fontsize=9, color="black" if right else "red"
        )
        axis.set_axis_off()
    figure.suptitle("validation images and the class the reloaded model gives them (wrong ones in red)", fontsize=10)
    figure.savefig(path, dpi=120)
