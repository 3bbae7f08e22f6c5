"""Images, read in one way: for training, predictions, calibration, maps and pages."""

import math
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

__all__ = ["Pixels", "Walk", "data_config", "images_in", "is_hidden", "read_image", "reader", "walk"]


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
# Where Pillow looks for an orientation too, and no browser does: what stands only there is not heeded.
_ELSEWHERE = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_PAPER = 255  # behind what is transparent lies white, as on paper and on most pages; the page's app.js fills the same
_DARKEST = 1 << 14  # of 16 bits: what holds nothing lighter was counted in fewer bits, and would be all but black
_RESIZED = 1 << 25  # pixels, at most, of an image resized for a network's square to be cut out of it
_NOBODYS = {"@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}  # what systems and archives add
_DEPTH = 64  # folders in folders


class _PictureError(ValueError):
    """What is wrong with a picture that Pillow can read."""


def read_image(path: str | Path, mode: str) -> Image.Image:
    """Return the whole image, decoded and upright, as its EXIF orientation says; of an animation the first frame.

    Args:
        path: Its file.
        mode: Pillow's name of the pixels wanted, `L` or `RGB`. What is transparent lies on white. Of other pixels than
            8 bits, whole numbers run from 0 to 65535 and real ones from 0 to 1, black to white.

    Raises:
        ValueError: For a file that is no image, or is cut short or broken, or whose pixels are other numbers; says
            which and why.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would be to wait for its writer
            raise _PictureError("it is not a regular file")
        with Image.open(path) as file:
            return _pixels(_upright(file), mode)
    except Exception as error:  # Pillow's plugins raise whatever their format's parser meets
        reason = str(error) if isinstance(error, _PictureError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _pixels(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("F", "I")):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_PAPER,) * 3), image)
    if image.mode not in ("1", "L", "RGB"):  # to grey Pillow converts not all of them
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _upright(file: Image.Image) -> Image.Image:
    file.load()  # of some formats the tags lie behind the pixels
    for key in _ELSEWHERE:
        file.info.pop(key, None)
    try:
        orientation = file.getexif().get(_ORIENTATION)
    except Exception:  # malformed tags, of which Pillow has an error for each, do not make the pixels unreadable
        orientation = None
    if orientation not in _UPRIGHT:
        return file
    upright = file.transpose(_UPRIGHT[orientation])
    upright.info.pop("exif", None)  # which Pillow copies: whoever reads the tag again would turn the photo once more
    return upright


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return grey of 8 bits; nothing in the file says what is white in it, so other numbers are not guessed at."""
    values = np.asarray(image)
    least, most = values.min(), values.max()
    told = f"its pixels are numbers from {least:.6g} to {most:.6g}"
    if image.mode == "F":
        if not (least >= 0 and most <= 1):  # NaN is neither
            raise _PictureError(f"{told}; real numbers must run from 0, black, to 1, white")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if least < 0 or not _DARKEST <= most <= 65535:
        raise _PictureError(
            f"{told}; where they have more than 8 bits, 0 is black and 65535 white, and one must reach {_DARKEST} at "
            "least, or all would be as good as black: scale them"
        )
    grey = (values // 257).astype(np.uint8)
    if isinstance(hidden := image.info.get("transparency"), int):
        grey[values == hidden] = _PAPER
    return Image.fromarray(grey)


def data_config(network: Any, **wanted: Any) -> dict[str, Any]:
    """Return timm's data config of a network, of as many channels as the network takes.

    timm's own speaks of three channels where a network was created with others.

    Args:
        network: A model of timm's.
        **wanted: What timm's `resolve_data_config` takes, as `img_size`, which may be height and width here.
    """
    if isinstance(sides := wanted.get("img_size"), (list, tuple)):  # which timm takes of squares alone
        del wanted["img_size"]
        wanted["input_size"] = (3, *sides)
    config = resolve_data_config(wanted, model=network)
    size = config["input_size"]
    channels = getattr(network, "in_chans", size[0])
    means = {key: config[key] for key in ("mean", "std")}
    means = {key: v if len(v) == channels else (sum(v) / len(v),) * channels for key, v in means.items()}
    return config | {"input_size": (channels, *size[1:])} | means


class Pixels:
    """An image that somebody else opened, in the pixels that `read_image` returns, for timm's transform to follow.

    It is not turned: `read_image` has done so, and what a data set of timm's opens stays as timm opens it.

    Args:
        config: A data config, as `data_config` gives it.
        evaluating: timm's transform is that of evaluation, not of training. Where it resizes a long image only to crop
            all but the middle, one that memory would not hold is cut at both ends before.

    Raises:
        ValueError: For a config whose crop would have images resized to more than memory allows, or whose number of
            channels no image has.
    """

    def __init__(self, config: dict[str, Any], evaluating: bool = True) -> None:
        channels, *sides = config["input_size"]
        if channels not in (1, 3):
            raise ValueError(f"input_size={config['input_size']}: images have 1 channel (grey) or 3, not {channels}")
        self.mode = "L" if channels == 1 else "RGB"
        resized = [math.floor(side / (config.get("crop_pct") or 1)) for side in sides]
        if min(resized) < 1 or math.prod(resized) > _RESIZED:
            raise ValueError(
                f"crop_pct={config['crop_pct']:g} of input_size={config['input_size']} has images resized to "
                f"{' x '.join(map(str, resized))} pixels; from 1 to {_RESIZED} in all are possible"
            )
        cropped = evaluating and config["crop_mode"] == "center"
        most = max(8, _RESIZED // math.prod(resized)) * max(sides) / min(sides)
        self.longest = most if cropped else math.inf  # times as long as wide

    def __call__(self, image: Image.Image) -> Image.Image:
        image = _pixels(image, self.mode)
        long, short = max(image.size), min(image.size)
        if long <= self.longest * short:
            return image
        cut = (long - math.ceil(self.longest * short)) // 2  # as much at both ends: the centre stays where it is
        box = (cut, 0, long - cut, short) if image.width == long else (0, cut, short, long - cut)
        return image.crop(box)


def reader(config: dict[str, Any]) -> Callable[[str | Path], Tensor]:
    """Return what reads an image file as a model's data config asks, `(C, H, W)`; it raises as `read_image` does.

    Raises:
        ValueError: As `Pixels`.
    """
    pixels = Pixels(config)
    transform: Any = create_transform(**config)

    def read(path: str | Path) -> Tensor:
        image = pixels(read_image(path, pixels.mode))
        try:
            return transform(image)
        except Exception as error:  # of a shape that cannot be resized
            size = f"{image.width} x {image.height}"
            raise ValueError(f"{path} cannot be read: {size} pixels: {type(error).__name__}: {error}") from error

    return read


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is one of those that editors, systems and file servers leave beside a user's."""
    return name.startswith(".") or name.lower() in _NOBODYS


class Walk:
    """What lies in a folder and in those in it, but for what is hidden.

    Attributes:
        images: Image files, sorted.
        left_out: How many other files there are, by their ending, and links that are not followed.
        links: How many links lead out of the folder that holds it all, and are followed.
    """

    def __init__(self) -> None:
        self.images: list[Path] = []
        self.left_out: Counter[str] = Counter()
        self.links = 0


def walk(folder: Path, within: Path | None = None) -> Walk:
    """Return what lies in a folder.

    Links to files are followed, and so are those to folders, but for those to folders in `within`, which are somebody
    else's part of it, and to those around it.

    Args:
        folder: Where to look.
        within: The whole, of which this is a part; the folder itself where not given.

    Raises:
        ValueError: For folders that cannot be listed, or lie too deep in one another.
    """
    Image.init()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    whole, found = Path(os.path.realpath(within or folder)), Walk()
    todo, seen = [(str(folder), 0)], set()
    while todo:
        here, depth = todo.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        if depth > _DEPTH:
            raise ValueError(f"{str(folder)!r} holds folders more than {_DEPTH} deep in one another")
        try:
            with os.scandir(here) as entries:
                shown = [entry for entry in entries if not is_hidden(entry.name)]
        except OSError as error:
            raise ValueError(f"{here!r} cannot be listed: {error.strerror}") from error
        for entry in shown:
            target = Path(os.path.realpath(entry.path)) if entry.is_symlink() else None
            outside = target is not None and not target.is_relative_to(whole)
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                if target is not None and (not outside or whole.is_relative_to(target)):
                    found.left_out["link to folder within"] += 1
                    continue
                todo.append((entry.path, depth + 1))
            elif ending in known:
                found.images.append(Path(entry.path))
            else:
                found.left_out[ending or "no ending"] += 1
                continue
            found.links += outside
    found.images.sort()
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder and of those in it, sorted; hidden ones are nobody's. It raises as `walk`."""
    return walk(folder).images
