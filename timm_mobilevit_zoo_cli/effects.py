"""Options that would have no effect beside the others: whoever gives one expects something of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from .numbers import plain
from .parser import SOURCES

__all__ = ["check_choices", "check_effects"]

Options = Mapping[str, Any]

SPLITS = ("val", "validation", "valid", "test")  # folders that hold images for validation
# Options of `train`, when they have an effect, and what is said otherwise.
_TRAIN: tuple[tuple[tuple[str, ...], Callable[[Options], Any], str], ...] = (
    (("distill", "temperature", "alpha"), lambda given: given["teacher"], "needs a teacher"),
    (("temperature",), lambda given: given["distill"] != "feature", "softens no features; leave it out"),
    (("ema_decay",), lambda given: given["ema"], "needs ema"),
    (
        ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "reprob"),
        lambda given: given["augment"],
        "needs augment",
    ),
    (
        ("color_jitter",),
        lambda given: not given["color_jitter"] or not given["auto_augment"] or "3a" in given["auto_augment"],
        "goes without auto_augment, in whose place timm leaves colours alone",
    ),
    (("warmup_lr",), lambda given: given["warmup_epochs"], "needs warmup_epochs"),
    (
        ("min_lr",),
        lambda given: given["sched"] not in ("constant", "multistep", "none", "step"),
        "needs a schedule that goes down to it: cosine, poly, rsqrt, tanh or wsd",
    ),
    (("num_classes",), lambda given: given["dataset"], "is for a named data set; a folder's classes are counted"),
    (("train_split", "val_split", "dataset_download"), lambda given: given["dataset"], "is for a named data set"),
    (("val_fraction", "on_broken"), lambda given: not given["dataset"], "is for a folder of images"),
    (
        ("val_fraction",),
        lambda given: not any(Path(given["data"], name).is_dir() for name in SPLITS),
        "is for a folder without images for validation",
    ),
    (("pretrained",), lambda given: not given["checkpoint"], "needs no checkpoint; it would replace those weights"),
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
    """Refuse what is none of the words that an option of a command knows.

    Raises:
        ValueError: For the first of them.
    """
    source = SOURCES.get(command)
    for argument in source.read().arguments if source else ():
        choices = getattr(argument.kind, "__args__", ())
        is_choice = getattr(argument.kind, "__origin__", None) is Literal
        if is_choice and argument.name in options and options[argument.name] not in choices:
            raise ValueError(f"{argument.name}={options[argument.name]!r} must be one of {', '.join(choices)}")
