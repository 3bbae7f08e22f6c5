"""The folder of a run: opened, resumed from, and written at the end of each epoch."""

import copy
import csv
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from timm_mobilevit_zoo.common.files import replacing

__all__ = ["check_disk", "comparable", "open_run", "refuse_changes", "save_folder", "save_state", "write_summary"]

RUN_FILES = ("config.json", "curve.png", "last.ckpt", "model.safetensors", "summary.csv")


def comparable(options: dict[str, Any], labels: list[str], images: tuple[Any, ...], processes: int) -> dict[str, Any]:
    """Return what decides a run's result; it may move to another folder, or to another number of loaders."""
    free = ("output", "resume", "workers", "cpu", "data", "trust")
    pairs = ((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items())
    names = [
        f"{path.parent.name}/{path.name} {target}"
        for part in images
        for path, target in getattr(part, "samples", ())
        if isinstance(path, Path)
    ]
    facts = {
        "labels": labels,
        "images": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        "processes": processes,
    }
    return {key: value for key, value in pairs if key not in free} | facts


def open_run(out: Path, options: dict[str, Any], accelerator: Any) -> dict[str, Any] | None:
    """Return the state to resume from, or None for a new run in a new or empty folder."""
    last = out / "last.ckpt"
    if not (options["resume"] and last.is_file()):
        # A run that was killed in its first epoch leaves hidden files, and in its last moments some of the run's own.
        own = RUN_FILES if options["resume"] else ()
        held = [path.name for path in out.iterdir()] if out.is_dir() else []
        if out.is_file() or any(not name.startswith(".") and name not in own for name in held):
            need = "holds no last.ckpt" if options["resume"] else "choose another, or resume the run"
            raise ValueError(f"output={str(out)!r} exists and is not an empty folder; {need}")
        accelerator.wait_for_everyone()
        out.mkdir(parents=True, exist_ok=True)
        return None
    state: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True)
    return state


def refuse_changes(state: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run with other arguments or data than it began with."""
    changed = [
        f"{key}={now.get(key)!r} (was {state['options'].get(key)!r})"
        for key in sorted(now.keys() | state["options"].keys())
        if now.get(key) != state["options"].get(key)
    ]
    if changed:
        raise ValueError(f"a resumed run keeps its arguments and data, but these differ: {', '.join(changed)}")


def check_disk(out: Path, model: nn.Module, ema: bool) -> None:
    """Refuse a run that its disk has no room for."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # Weights, two moments and the average in the checkpoint, the weights in the folder; all twice while replaced.
    needed = 2 * weights * (4 + ema + 1) + 2**24
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(f"output={str(out)!r} has {free >> 20} MiB left on its disk; the run needs {needed >> 20} MiB")


def save_folder(model: Any, out: Path, labels: list[str]) -> None:
    """Write weights and config as timm loads them, with the names of the classes."""
    for stale in out.glob(".export-*"):  # of a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    weights = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        save_for_hf(weights, folder, model_config={"label_names": labels}, safe_serialization=True)
        for name in ("config.json", "model.safetensors"):
            with replacing(out / name) as part:
                shutil.copyfile(Path(folder) / name, part)


def save_state(out: Path, state: dict[str, Any]) -> None:
    """Write what a run is resumed from."""
    with replacing(out / "last.ckpt") as path:
        torch.save(state, path)


def write_summary(out: Path, history: list[dict[str, float]]) -> None:
    """Write the table of all epochs, and the picture of it."""
    with replacing(out / "summary.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axis, kind, unit in ((loss, "loss", "loss"), (top1, "top1", "top-1 (%)")):
        axis.plot(epochs, [row[f"train_{kind}"] for row in history], label="training")
        axis.plot(epochs, [row[f"val_{kind}"] for row in history], label="validation")
        axis.set(xlabel="epoch", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(out / "curve.png") as part:
        figure.savefig(part, format="png", dpi=120)
