"""Whether a file computes what eager mode does: on random images, on those of a folder, and in 8 bits on both."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.images import reader
from timm_mobilevit_zoo.common.progress import is_shown, progress

from .format import Run

__all__ = ["classes_of", "compare", "deviation_of", "random_images", "real_images", "resized"]


def _shapes(x: Tensor, dynamic: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Yield shapes as the file must take them: the size that it was written for, and others where it can."""
    _, channels, height, width = x.shape
    sizes = [(height, width)] * 4 + [(height + 31, width), (height // 2 + 9, 2 * width - 5)] * ("size" in dynamic)
    for sides in sizes:
        yield 3 if "batch" in dynamic else 1, channels, *sides


def random_images(x: Tensor, dynamic: Sequence[str]) -> Iterator[Tensor]:
    """Yield images of noise, of the shapes that the file takes."""
    generator = torch.Generator().manual_seed(1)
    for shape in _shapes(x, dynamic):
        yield torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def resized(images: Sequence[Tensor], x: Tensor, dynamic: Sequence[str]) -> Iterator[Tensor]:
    """Yield images in the other batches and sizes that the file takes; nothing where it takes one shape."""
    for batch, _, *sides in _shapes(x, dynamic) if dynamic else ():
        yield nn.functional.interpolate(torch.cat([*images, *images, *images][:batch]), sides, mode="bilinear")


def real_images(images: Sequence[Path], config: dict[str, Any]) -> Iterator[Tensor]:
    """Yield images from their files, as the model's data config asks."""
    if images:  # a network may have as many channels as no image has, and be compared on noise alone
        read = reader(config)
        for path in progress(images, "computing images", "images", hide=not is_shown()):
            yield read(path)[None]


def classes_of(images: Sequence[Path], labels: Sequence[str]) -> Tensor | None:
    """Return the class of each image, if all lie in folders that have the names of labels."""
    index = {str(label): i for i, label in enumerate(labels)}
    names = [unicodedata.normalize("NFC", path.parent.name) for path in images]  # as training takes them for labels
    return torch.tensor([index[name] for name in names]) if all(name in index for name in names) else None


@torch.inference_mode()
def compare(network: nn.Module, run: Run, batches: Iterable[Tensor], classes: Tensor | None = None) -> dict[str, Any]:
    """Return how what `run` computes differs from eager mode: as `to_onnx` tells it in `checks`.

    Raises:
        ValueError: For logits of another shape, such as are not finite, and eager ones that are all the same.
    """
    pairs = [(network(batch), torch.from_numpy(run(batch.numpy()))) for batch in batches]
    expected, found = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    if found.shape != expected.shape:
        raise ValueError(f"the written file returns {tuple(found.shape)}, not {tuple(expected.shape)}")
    deviation = deviation_of(expected)
    if not found.isfinite().all():
        raise ValueError("the written file returns logits that are not finite, where eager mode's are")
    told: dict[str, Any] = {
        "images": len(expected),
        "error": float((found - expected).abs().max() / deviation),
        "rms": float((found - expected).square().mean().sqrt() / deviation),
        "top1": _share(found, expected.argmax(1)),
    }
    if classes is not None:
        told["accuracy"] = {"eager": _share(expected, classes), "file": _share(found, classes)}
    return told


def deviation_of(logits: Tensor) -> float:
    """Return the standard deviation of logits, `(B, num_classes)`; of a single one, how far it is from zero.

    Raises:
        ValueError: For logits that are not finite, or constant: nothing can be compared with them.
    """
    if not logits.isfinite().all():
        raise ValueError("the network's own logits are not finite")
    if logits.numel() == 1:
        return float(logits.abs()) or 1.0
    if not (deviation := float(logits.double().std())):
        raise ValueError(f"the network's own logits are constant: all of them are {float(logits.flatten()[0]):g}")
    return deviation


def _share(logits: Tensor, classes: Tensor) -> float:
    return float((logits.argmax(1) == classes).float().mean())
