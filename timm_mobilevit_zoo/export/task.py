"""What `export` is asked for, known to be possible before any work."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.images import images_in, read_image
from timm_mobilevit_zoo.common.progress import is_shown, progress
from timm_mobilevit_zoo_cli.checks import check, check_free, plain
from timm_mobilevit_zoo_cli.installed import pip_line
from timm_mobilevit_zoo_cli.text import printable

from .format import PRECISIONS, Format, Precision
from .formats import FORMATS
from .int8 import CALIBRATION

__all__ = ["TOLERANCES", "Task", "files_of", "precision_of", "some_of", "task_of"]

# Of a standard deviation of the logits. What runs in float32 is off by 1e-6 to 1e-4, in 16 bits by 1e-3 to 1e-2; in
# 8 bits the mean counts: trained networks are off by 0.02 to 0.1, what is broken by 0.3 and more.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.03, "int8": 0.2}
USUAL = "xnnpack"
IMAGES, MEASURED = 64, 1000  # of a folder, at most: to compare, and to tell the accuracy in 8 bits


class Task(NamedTuple):
    """What to write and how to compare it, known to be possible."""

    format: str
    output: Path
    size: tuple[int, int] | None
    dynamic: Sequence[str]
    images: list[Path]
    precision: Precision
    backend: str | None
    calibration: list[Path]
    tolerance: float
    overwrite: bool


def task_of(
    format: str,
    output: str,
    size: int | tuple[int, int] | None = None,
    dynamic: Sequence[str] = (),
    images: str = "",
    precision: Precision | None = None,
    calibration: str = "",
    int8: str = "",
    tolerance: float | None = None,
    overwrite: bool = False,
    on_broken: str = "stop",
    backend: str | None = None,
) -> Task:
    """Return the task, or raise what is wrong with an argument."""
    options = plain(dict(locals()))
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    about, target = FORMATS[format], Path(options["output"])
    if target.suffix != about.suffix:
        raise ValueError(f"output={str(target)!r} must end in {about.suffix} for format={format}")
    for one in options["dynamic"]:
        if one not in about.dynamic:
            can = f"one of {', '.join(about.dynamic)}" if about.dynamic else "left out"
            raise ValueError(f"dynamic={one!r} must be {can} for format={format}")
    if backend is not None:
        _check_backend(format, backend, precision, options["calibration"] or options["int8"])
        precision = precision or about.backends.get(backend, (None,))[0]
    chosen = precision_of(format, precision, options["calibration"], options["int8"], backend)
    folder = "int8" if options["int8"] else "calibration"
    check("export", options)
    tolerance = TOLERANCES[chosen] if options["tolerance"] is None else options["tolerance"]
    if on_broken != "stop" and not (images or options[folder]):
        raise ValueError(f"on_broken={on_broken!r} goes with `images`, `calibration` or `int8`")
    most = MEASURED if chosen == "int8" else IMAGES
    compared = _whole("images", some_of("images", options["images"], most), on_broken)
    measured = _whole(folder, some_of(folder, options[folder], CALIBRATION), on_broken)
    sides = (options["size"],) * 2 if isinstance(options["size"], int) else options["size"]
    task = Task(format, target, sides, options["dynamic"], compared, chosen, backend, measured, tolerance, overwrite)
    check_outputs(task)
    for module in about.modules:
        require(module, about.extra)
    if chosen in about.needs:
        require(*about.needs[chosen])
    if about.torch_below and torch.__version__ >= about.torch_below:
        raise ModuleNotFoundError(
            f"torch {torch.__version__} is too new for {about.modules[0]}: in an environment of its own, "
            f"{pip_line(about.extra)}"
        )
    return task


def _check_backend(format: str, backend: str, precision: str | None, images: str) -> None:
    """Refuse what takes a format's operations if it cannot, or not in a precision."""
    about = FORMATS[format]
    if not about.backends:
        raise ValueError(f"backend={backend!r} is for format=executorch alone")
    if backend not in (USUAL, *about.backends):
        raise ValueError(f"backend={backend!r} must be one of {', '.join((USUAL, *about.backends))}")
    if backend in about.backends and precision not in (None, own := about.backends[backend][0]):
        raise ValueError(f"precision={precision} does not go with backend={backend}, whose files are in {own}")
    if backend in about.backends and images:
        raise ValueError(f"backend={backend} has no int8 here; leave out the images for that")


def precision_of(
    format: str, precision: str | None, calibration: str, int8: str = "", backend: str | None = None
) -> Precision:
    """Return the precision that is asked for, `int8=DIR` being short for it and its images.

    Raises:
        ValueError: For one that the format lacks, and for what does not go together.
    """
    about = FORMATS[format]
    if int8 and calibration:
        raise ValueError(f"int8={int8!r} is short for precision=int8 and calibration={int8!r}; give one folder")
    if int8 and precision not in (None, "int8"):
        raise ValueError(f"int8={int8!r} is short for precision=int8; leave it out beside precision={precision}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    chosen: Precision = "int8" if int8 else about.precision if precision is None else precision
    if chosen not in about.precisions and backend not in about.backends:
        asked = f"int8={int8!r}" if int8 else f"precision={chosen}"
        can = ", ".join(about.precisions)
        others = ", ".join(name for name, one in FORMATS.items() if chosen in one.precisions)
        why = f": {about.lacks[chosen]}" if chosen in about.lacks else ""
        raise ValueError(f"{asked} is not one of {can}, which format={format} has{why}; {others} can")
    images = calibration or int8
    if chosen == "int8" and about.calibrated and not images:
        raise ValueError("precision=int8 needs `calibration`, a folder of images such as the model will see")
    if images and not (chosen == "int8" and about.calibrated):
        asked = f"calibration={calibration!r}" if calibration else f"int8={int8!r}"
        if chosen == "int8":
            raise ValueError(f"{asked} has no effect for format={format}: weights alone are in 8 bits")
        raise ValueError(f"{asked} needs precision=int8")
    return chosen


def check_outputs(task: Task) -> None:
    """Refuse a task whose files exist, if they are not to be replaced."""
    for path in files_of(FORMATS[task.format], task.output):
        check_free("output", path, task.overwrite)


def some_of(name: str, folder: str, count: int) -> list[Path]:
    """Return at most as many images of a folder, of each class in it as large a share, and none without a folder."""
    found = images_in(Path(folder)) if folder and Path(folder).is_dir() else []
    if folder and not found:
        raise ValueError(f"{name}={folder!r} must be a folder with images in it")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _whole(name: str, paths: list[Path], on_broken: str) -> list[Path]:
    """Return the images of a list that can be read.

    Raises:
        ValueError: For those that cannot be read where `on_broken` is `stop`; and where none is left.
    """
    broken: dict[Path, str] = {}
    for path in progress(paths, f"reading {name}", "images", hide=not is_shown()):
        try:
            read_image(path, "RGB")
        except ValueError as error:
            broken[path] = str(error)
    if broken and on_broken == "stop":
        listed = "\n  ".join(list(broken.values())[:20])
        raise ValueError(f"{name}: {len(broken)} image(s) are broken; repair them or choose on_broken=skip\n  {listed}")
    for fault in broken.values():
        sys.stderr.write(f"skipped: {printable(fault)}\n")
    if broken and len(broken) == len(paths):
        raise ValueError(f"{name} is left without an image that can be read")
    return [path for path in paths if path not in broken]


def files_of(about: Format, output: Path) -> list[Path]:
    """Return what is written: the file, what comes with it, the manifest."""
    return [output, *(output.with_suffix(suffix) for suffix in about.beside), output.with_name(output.name + ".json")]
