"""What a run tells of itself: on the terminal before it begins, and in its folder, for whoever publishes it."""

import copy
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.probe import gmacs
from timm_mobilevit_zoo_cli.text import printable

if TYPE_CHECKING:
    from .run import Run

__all__ = ["beginning", "epoch_line", "facts_of", "warmup_of"]

LISTED = 12  # classes on the terminal, at most


def warmup_of(options: dict[str, Any]) -> int:
    """Return the epochs of warm-up, which are half the run's where more are asked for than it has."""
    asked, epochs = options["warmup_epochs"], options["epochs"]
    return int(asked if asked < epochs else epochs // 2)


def facts_of(run: "Run", given: list[str]) -> dict[str, Any]:
    """Return what is known of a run before its first epoch, for `run.json`.

    Args:
        run: Its network is there, but not yet wherever Accelerate puts it.
        given: The names of those of its arguments that are not the defaults.

    Returns:
        `architecture`, `params`, `gmacs` (None for a network of timm's), `input_size`, `start` (of which weights);
        `classes`, for each the number of `train` and `val` images, which are None for a data set that does not tell,
        and those in all, `train` and `val`; `device`, `processes`; `options`, all arguments, and `given`, the names of
        those that are not the default; `warmup_epochs` and `versions`.
    """
    network = run.student
    name = network.pretrained_cfg["architecture"]
    counts = [Counter(target for _, target in getattr(part, "samples", ())) for part in (run.train_set, run.val_set)]
    known = run.options["dataset"] == ""
    return {
        "architecture": name,
        "gmacs": gmacs(copy.deepcopy(network).to("meta"), run.config["input_size"]) if name in our_models() else None,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "input_size": list(run.config["input_size"]),
        "start": _start(run.options),
        "classes": {
            label: dict(zip(("train", "val"), (count[i] if known else None for count in counts), strict=True))
            for i, label in enumerate(run.labels)
        },
        "train": len(run.train_set) if hasattr(run.train_set, "__len__") else None,
        "val": len(run.val_set) if hasattr(run.val_set, "__len__") else None,
        "device": str(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "options": run.options,
        "given": sorted(given),
        "warmup_epochs": warmup_of(run.options),
        "versions": {"timm_mobilevit_zoo": __version__, "timm": timm.__version__, "torch": str(torch.__version__)},
    }


def _start(options: dict[str, Any]) -> str:
    """Return which weights a run starts from; of a path its last part, which is nobody's business but its owner's."""
    name = options["model"]
    if options["checkpoint"]:
        return f"the file {Path(options['checkpoint']).name}"
    if ":" in name:
        kind, _, place = name.partition(":")
        return f"the folder {Path(os.path.abspath(place)).name}" if kind == "local-dir" else name
    return f"the published weights of {name}" if options["pretrained"] else "random weights"


def beginning(run: "Run", facts: dict[str, Any]) -> list[str]:
    """Return the lines that a run begins with."""
    options, classes = run.options, facts["classes"]
    train, val = ("an unknown number of" if facts[part] is None else f"{facts[part]:,}" for part in ("train", "val"))
    lines = [f"data     {options['data']}: {train} images to train on, {val} to validate on, {len(classes)} classes"]
    if any(count["train"] is not None for count in classes.values()):
        told = [f"{name}: {count['train']} + {count['val']}" for name, count in list(classes.items())[:LISTED]]
        lines.append(f"classes  {', '.join(told)}" + (", ... (all in run.json)" if len(classes) > LISTED else ""))
    channels, height, width = facts["input_size"]
    size = f"{height} x {width} pixels" + ", grey" * (channels == 1)
    cost = "" if facts["gmacs"] is None else f", {facts['gmacs']:.3g} GMACs"
    network = f"{facts['architecture']}, {facts['params'] / 1e6:.2f} M parameters{cost}"
    lines.append(f"model    {network}, from {facts['start']}; images of {size}")
    several = f"{facts['processes']} processes on " if facts["processes"] > 1 else ""
    cores = f", {torch.get_num_threads()} thread(s)" if run.accelerator.device.type == "cpu" else ""
    precision = "" if options["mixed_precision"] == "no" else f", {options['mixed_precision']}"
    lines.append(f"device   {several}{run.accelerator.device}{cores}{precision}")
    warmup, epochs = facts["warmup_epochs"], options["epochs"]
    capped = f" ({options['warmup_epochs']} are too many: half of all)" if warmup != options["warmup_epochs"] else ""
    lines.append(f"epochs   {epochs}, warm-up {warmup}{capped}, {run.updates:,} updates of the weights in each")
    lines.append(f"writes   {run.out}")
    if done := len(run.history):
        left = f"{epochs - done} to go" if done < epochs else "nothing is left to train"
        lines.append(f"resumed  behind epoch {done}: {left}")
    return [printable(line) for line in lines]


def epoch_line(row: dict[str, float], epochs: int, best: dict[str, float]) -> str:
    """Return the line that is told at the end of an epoch.

    Args:
        row: What the table has of it.
        epochs: Of the run.
        best: What the table has of the best epoch so far.
    """
    seen = "no validation"
    if "val_top1" in row:
        seen = f"val loss {row['val_loss']:.4f}  val top-1 {row['val_top1']:.2f}%  best {best['val_top1']:.2f}%"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  {seen}  "
        f"{row['images_per_s']:.0f} images/s  {row['seconds']:.1f} s"
    )
