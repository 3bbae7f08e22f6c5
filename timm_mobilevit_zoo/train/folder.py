"""The folder of a run: held, opened, resumed from, and written at the end of each epoch.

It is a folder of weights, to be published as it stands: what a run resumes from, a pickle, lies in a folder of its own.
"""

import copy
import csv
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import digests, holding, replacing, replacing_all, sweep
from timm_mobilevit_zoo.common.progress import progress
from timm_mobilevit_zoo.models.probe import PROBE_GMACS, PROBE_SIDE, SEED, probe
from timm_mobilevit_zoo.models.saving import mended

__all__ = ["LAST", "best_of", "check_disk", "comparable", "open_run", "refuse_changes", "restore", "write_epoch"]

WEIGHTS = ("model.safetensors", "config.json")
TABLE = ("summary.csv", "curve.png", "run.json")
RUN_FILES = (*WEIGHTS, *TABLE)
LAST = "checkpoints/last.ckpt"
CARDS = ("README.md", "README.old.md")
STEADY = ("constant", "multistep", "none", "step")  # schedules whose rates do not depend on how many epochs there are
DIGEST = 64  # characters of a sha256


def best_of(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the epoch of the highest accuracy, the earliest of several; the last of a run without validation."""
    return max(history, key=lambda row: row["val_top1"]) if "val_top1" in history[-1] else history[-1]


def comparable(options: dict[str, Any], labels: list[str], images: tuple[Any, ...], accelerator: Any) -> dict[str, Any]:
    """Return what decides a run's result; it may move to another folder, or to another number of loaders.

    Images are known by what their files hold; those that are trusted, and those of a data set that timm names, by size
    and time of change.

    Raises:
        ValueError: For an image whose name is no text.
    """
    free = ("output", "resume", "workers", "cpu", "data", "trust")
    read = not options["dataset"] and options["on_broken"] != "trust"
    samples = [
        (Path(path), target)
        for part in images
        for path, target in getattr(part, "samples", ())
        if isinstance(path, (str, Path))
    ]
    odd = next((path for path, _ in samples if str(path) != str(path).encode(errors="ignore").decode()), None)
    if odd is not None:
        raise ValueError(f"{str(odd)!r} has a name that is not UTF-8; rename it")
    found = [""]
    if accelerator.is_main_process:
        found = [_digest(samples, read, [len(part) for part in images if hasattr(part, "__len__")])]
    facts = {
        "labels": labels,
        "images": require("accelerate", "train").utils.broadcast_object_list(found)[0],
        "processes": accelerator.num_processes,
    }
    return {key: value for key, value in options.items() if key not in free} | facts


def _digest(samples: list[tuple[Path, int]], read: bool, counts: list[int]) -> str:
    told = hashlib.sha256(repr(counts).encode())
    for path, target in progress(samples, "comparing images", "images"):
        if read:
            held = digests(path)["sha256"]
        else:
            stat = path.stat()
            held = f"{stat.st_size} {stat.st_mtime_ns}"
        told.update(f"{path.parent.name}/{path.name} {target} {held}\n".encode())
    return told.hexdigest()[:16]


def open_run(out: Path, options: dict[str, Any], accelerator: Any, held: ExitStack) -> dict[str, Any] | None:
    """Hold a run's folder, and return the state to resume from, or None for a new run in a new or empty folder.

    Args:
        out: The folder.
        options: The arguments of `train`.
        accelerator: Accelerate's; its main process holds the folder for all.
        held: What lets go of the folder at its end.

    Raises:
        ValueError: For a folder that another run holds, that cannot be written to, or that holds something else.
    """
    fault = ""
    if accelerator.is_main_process:
        try:
            _take(out, options["resume"], held)
        except (ValueError, OSError) as error:
            fault = str(error)
    fault = require("accelerate", "train").utils.broadcast_object_list([fault])[0]
    if fault:
        raise ValueError(fault)
    last = out / LAST
    return _read_state(last) if options["resume"] and last.is_file() else None


def _take(out: Path, resume: bool, held: ExitStack) -> None:
    told = f"output={str(out)!r}"
    if out.is_file():
        raise ValueError(f"{told} exists and is not an empty folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(holding(out))
    except BlockingIOError as error:
        raise ValueError(f"{told} is the folder of a run in progress: {error.strerror}; choose another") from error
    except OSError as error:
        raise ValueError(f"{told} cannot be written to: {error}") from error
    # Whatever is half-written here was left by a run that was killed: one that lives would hold the folder.
    for folder in (out, (out / LAST).parent):
        sweep(folder, everyone=True)
    for stale in out.glob(".export-*"):
        shutil.rmtree(stale, ignore_errors=True)
    if resume and (out / "last.ckpt").is_file() and not (out / LAST).exists():  # where older versions put it
        (out / LAST).parent.mkdir(exist_ok=True)
        (out / "last.ckpt").replace(out / LAST)
    if resume and (out / LAST).is_file():
        return
    # An empty file of a run's own is nothing that could be lost, and neither is an empty folder for checkpoints.
    lost = [path for path in out.iterdir() if not path.name.startswith(".") and not (resume and _is_empty(path))]
    if lost:
        need = (
            f"it holds no {LAST} to resume from, so choose another"
            if resume
            else "choose another, or give `resume=True`"
        )
        raise ValueError(f"{told} exists and is not an empty folder; {need}")


def _is_empty(path: Path) -> bool:
    """Tell whether a file or folder is a run's own and holds nothing."""
    if path.is_dir():
        return path.name == Path(LAST).parent.name and not any(path.iterdir())
    return path.name in RUN_FILES and not path.lstat().st_size


def refuse_changes(state: dict[str, Any], now: dict[str, Any], warmups: tuple[int, int]) -> None:
    """Refuse to resume a run with other arguments or data than it began with.

    It may be given more epochs where its schedule's rates do not depend on how many there are.

    Args:
        state: Its checkpoint.
        now: What `comparable` returns.
        warmups: Epochs of warm-up that it had, and that it would have now.
    """
    before = state["options"]
    changed = {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}
    longer = "epochs" in changed and now["epochs"] > before["epochs"]
    if changed == {"epochs"} and longer and now["sched"] in STEADY and warmups[0] == warmups[1]:
        return
    if changed:
        told = ", ".join(f"{key}={now.get(key)!r} (was {before.get(key)!r})" for key in sorted(changed))
        if changed == {"epochs"} and longer:
            steady = f"its warm-up had {warmups[0]} epoch(s), and would have {warmups[1]}"
            planned = f"sched={now['sched']!r} has planned its rates for {before['epochs']} epoch(s)"
            told += (
                f"; {steady if now['sched'] in STEADY else planned}: to go on from the weights, train with "
                "--model local-dir:RUN, the folder of this run, and another --output"
            )
        raise ValueError(f"a resumed run keeps its arguments and data, but these differ: {told}")


def check_disk(out: Path, model: nn.Module, ema: bool) -> None:
    """Refuse a run that its disk has no room for."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # Weights, two moments and the average in the checkpoint, the weights in the folder; all twice while replaced.
    needed = 2 * weights * (4 + ema + 1) + 2**24
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(f"output={str(out)!r} has {free >> 20} MiB left on its disk; the run needs {needed >> 20} MiB")


def write_epoch(out: Path, labels: list[str], state: dict[str, Any], best: Any = None) -> None:
    """Write what a run has at the end of an epoch.

    The checkpoint comes first and holds all that the other files follow from: where a run is killed between two
    renames, `restore` writes the rest.

    Args:
        out: The run's folder.
        labels: Names of the classes.
        state: What the run is resumed from. Its `weights` are the sha256 of the best epoch's file and of the one before
            it, its `facts` what `run.json` tells besides the epochs.
        best: The network, if this epoch is the best.
    """
    names = TABLE if best is None else (*WEIGHTS, *TABLE)
    with replacing_all(*(out / name for name in names)) as parts:
        if best is not None:
            _write_weights(best, out, labels, state["facts"]["gmacs"], parts)
            state["weights"] = [digests(parts[0])["sha256"], *state["weights"][:1]]
        _write_table(state, *parts[-len(TABLE) :])
        _write_state(out / LAST, state)
        if best is not None and (out / CARDS[0]).exists():
            (out / CARDS[0]).replace(out / CARDS[1])
            sys.stderr.write(f"{out / CARDS[0]} spoke of an earlier epoch's weights; it is {CARDS[1]} now\n")


def restore(out: Path, labels: list[str], state: dict[str, Any], last: Any) -> None:
    """Make a folder whole that a run was killed in while it wrote, and refuse one with other weights than the run's.

    Args:
        out: The run's folder.
        labels: Names of the classes.
        state: Its checkpoint.
        last: The network at the end of the checkpoint's epoch.

    Raises:
        ValueError: Where the folder's weights are not those that the checkpoint speaks of.
    """
    history, (now, *before) = state["history"], state["weights"]
    weights, config = (out / name for name in WEIGHTS)
    held = digests(weights)["sha256"] if weights.is_file() else None
    if held == now and config.is_file():
        with replacing_all(*(out / name for name in TABLE)) as parts:
            _write_table(state, *parts)
    elif best_of(history) is history[-1] and held in (now, *(before or [None])):
        state["weights"] = before
        write_epoch(out, labels, state, last)
    else:
        raise ValueError(
            f"output={str(out)!r} lacks the weights of epoch {best_of(history)['epoch']}, the one that its {LAST} "
            "speaks of, or has others in their place, which are not replaced; choose another folder"
        )


def _write_weights(model: Any, out: Path, labels: list[str], gmacs: float | None, parts: list[Path]) -> None:
    """Write weights and config as timm loads them, with the names of the classes."""
    weights = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".export-{os.getpid()}-") as folder:
        save_for_hf(weights, folder, model_config={"label_names": labels}, safe_serialization=True)
        if gmacs is not None:  # a network of ours: timm's own are as timm writes them
            _mend(Path(folder) / "config.json", weights, gmacs)
        for name, part in zip(WEIGHTS, parts, strict=False):
            shutil.copyfile(Path(folder) / name, part)


def _mend(path: Path, network: Any, gmacs: float) -> None:
    """Have a config say what a published one does, and the logits of one known image, where these are cheap."""
    config = mended(json.loads(path.read_text(encoding="utf-8")), network)
    size = config["pretrained_cfg"]["input_size"]
    if max(size[1:]) <= PROBE_SIDE and gmacs <= PROBE_GMACS:
        with suppress(ValueError):  # of images nothing is too large for a number, of that one it may be
            config["probe"] = {"seed": SEED, "logits": probe(network, size)}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint as `torch.load` reads it: a zip file whose comment is the sha256 of all before it."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as part:
        torch.save(state, part)
        with part.open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(DIGEST.to_bytes(2, "little"))  # length of the comment
        digest = digests(part)["sha256"]
        with part.open("ab") as file:
            file.write(digest.encode())


def _read_state(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if hashlib.sha256(data[:-DIGEST]).hexdigest().encode() != data[-DIGEST:]:
        raise ValueError(f"{str(path)!r} is damaged, or not a checkpoint of a run: its digest is not its own")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _write_table(state: dict[str, Any], table: Path, curve: Path, record: Path) -> None:
    """Write the table of all epochs, the picture of it, and what the run was."""
    history = state["history"]
    told = {**state["facts"], "epochs": len(history), "best": best_of(history), "sha256": state["weights"][0]}
    record.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    _draw_curve(history, curve)


def _draw_curve(history: list[dict[str, float]], curve: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axis, kind, unit in ((loss, "loss", "loss"), (top1, "top1", "top-1 (%)")):
        axis.plot(epochs, [row[f"train_{kind}"] for row in history], label="training")
        if f"val_{kind}" in history[-1]:
            axis.plot(epochs, [row[f"val_{kind}"] for row in history], label="validation")
        axis.set(xlabel="epoch", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(curve, format="png", dpi=120)
