"""Options that would have no effect beside the others: whoever gives one expects something of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .near import did_you_mean
from .numbers import plain
from .parser import SOURCES

__all__ = ["check_choices", "check_effects"]

Options = Mapping[str, Any]

SPLITS = ("val", "validation", "valid", "test")  # folders that hold images for validation
# Options of `train`, when they have an effect, and what is said otherwise.
_TRAIN: tuple[tuple[tuple[str, ...], Callable[[Options], Any], str], ...] = (
    (("distill", "temperature", "alpha"), lambda given: given["teacher"], "needs `teacher`"),
    (("temperature",), lambda given: given["distill"] != "feature", "has no effect on features; leave it out"),
    (("ema_decay",), lambda given: given["ema"], "needs `ema=True`"),
    (
        ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "reprob"),
        lambda given: given["augment"],
        "needs `augment=True`",
    ),
    (
        ("color_jitter",),
        lambda given: not given["color_jitter"] or not given["auto_augment"] or "3a" in given["auto_augment"],
        "has no effect beside `auto_augment`, with which timm leaves colours alone",
    ),
    (("warmup_lr",), lambda given: given["warmup_epochs"], "needs `warmup_epochs`"),
    (
        ("min_lr",),
        lambda given: given["sched"] not in ("constant", "multistep", "none", "step"),
        "needs a schedule that goes down to it: cosine, poly, rsqrt, tanh or wsd",
    ),
    (("num_classes",), lambda given: given["dataset"], "needs `dataset`; the classes of a folder are counted"),
    (("train_split", "val_split", "dataset_download"), lambda given: given["dataset"], "needs `dataset`"),
    (("val_fraction", "on_broken"), lambda given: not given["dataset"], "is for a folder of images"),
    (
        ("val_fraction",),
        lambda given: not any(Path(given["data"], name).is_dir() for name in SPLITS),
        "is for a folder without images for validation",
    ),
    (
        ("pretrained",),
        lambda given: not given["checkpoint"],
        "and `checkpoint` are both weights to start from; give one",
    ),
)


def check_effects(options: Options) -> None:
    """Refuse options of `train` that are given and would change nothing.

    Raises:
        ValueError: For the first of them.
    """
    defaults = SOURCES["train"].read().defaults
    for names, has_effect, told in _TRAIN:
        for name in names:
            value = plain(options[name])
            if value != defaults[name] and not has_effect(options):
                raise ValueError(f"{name}={value!r} {told}")


def check_choices(command: str, options: Options) -> None:
    """Refuse what is none of the words that an option of a command knows, and one thing where a list of them is asked.

    Raises:
        ValueError: For the first of them.
    """
    source = SOURCES.get(command)
    for argument in source.read().arguments if source else ():
        if argument.name not in options:
            continue
        kind, value = argument.kind, options[argument.name]
        values: Collection[Any] = [value]
        if getattr(kind, "__origin__", None) is Sequence:
            if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
                raise ValueError(f"{argument.name}={value!r} must be a list")
            kind, values = kind.__args__[0], value
        choices: Any = kind.__args__ if getattr(kind, "__origin__", None) is Literal else None
        for one in values if choices else ():
            if one not in choices:
                raise ValueError(
                    f"{argument.name}={one!r} must be one of {', '.join(choices)}{did_you_mean(str(one), choices)}"
                )
