"""Images, read in one way: for training, predictions, calibration, maps and pages."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from torch import Tensor

__all__ = ["images_in", "is_hidden", "read_image", "reader"]


# What an EXIF orientation asks for, so that the photo stands as every viewer shows it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the number of that tag
_NOBODYS = {"@eadir", "__macosx"}  # folders that file servers and archives add


def read_image(path: str | Path, mode: str) -> Image.Image:
    """Return the whole image, decoded and upright, as its EXIF orientation says.

    Args:
        path: Its file.
        mode: Pillow's name of the pixels wanted, `L` or `RGB`. Pixels of 16 bits are scaled to 8.

    Raises:
        ValueError: For a file that is no image, or is cut short or broken; says which and why.
    """
    try:
        with Image.open(path) as file:
            image = _upright(file)
            if image.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
                wide = np.asarray(image).clip(0, 65535)
                return Image.fromarray((wide // 257).astype(np.uint8)).convert(mode)
            return image.convert(mode)
    except Exception as error:  # Pillow's plugins raise whatever their format's parser meets
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _upright(file: Image.Image) -> Image.Image:
    file.load()  # of some formats the tags lie behind the pixels
    try:
        orientation = file.getexif().get(_ORIENTATION)
    except Exception:  # malformed tags, of which Pillow has an error for each, do not make the pixels unreadable
        orientation = None
    return file.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else file


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is one of those that editors, systems and file servers leave beside a user's."""
    return name.startswith(".") or name.lower() in _NOBODYS


def reader(config: dict[str, Any]) -> Callable[[str | Path], Tensor]:
    """Return what reads an image file as a model's data config asks, `(C, H, W)`; it raises as `read_image` does."""
    transform: Any = create_transform(**config)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda path: transform(read_image(path, mode))


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder and of those in it, sorted; hidden ones are nobody's."""
    Image.init()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    images, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:  # a link back to where the walk has been
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if not is_hidden(name)]
        shown = (name for name in names if not is_hidden(name))
        images += [Path(root) / name for name in shown if os.path.splitext(name)[1].lower() in known]
    return sorted(images)
