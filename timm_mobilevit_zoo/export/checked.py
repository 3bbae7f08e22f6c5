"""A network written, run and compared before any of its files takes its name."""

import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.files import digests
from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.models.loading import labels_of

from .compare import classes_of, compare, random_images, real_images, resized
from .format import INPUT, OUTPUT, Format, Run
from .formats import FORMATS
from .task import Task, files_of

__all__ = ["versions_of", "write_checked"]


def write_checked(network: nn.Module, task: Task) -> dict[str, Any]:
    """Write a network as a task says, and return its manifest; nothing is left of a file that computes wrongly.

    Raises:
        ValueError: For a network that cannot be written, or a wrong result.
    """
    about, output = FORMATS[task.format], task.output
    network, config, x, logits = _prepared(network, task)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}-") as scratch:
        part = Path(scratch, output.name)
        calibration = list(real_images(task.int8, config))
        if about.int8 and calibration:
            told = about.int8(network, x, part, task.dynamic, calibration)
        else:
            told = about.write(network, x, part, task.dynamic) or {}
        checks = _checks(network, about.run(part), task, config, x, calibration) if about.run else None
        written = [path for path in files_of(about, part) if path.exists()]
        manifest = _manifest(network, task, config, x, logits) | {"checks": checks, "tolerance": task.tolerance, **told}
        manifest |= {"files": {path.name: _digest(path) for path in written}, "versions": versions_of(about)}
        written.append(part.with_name(part.name + ".json"))
        written[-1].write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in written:
            target = output.with_name(path.name)
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    return manifest


def _prepared(network: nn.Module, task: Task) -> tuple[Any, dict[str, Any], Tensor, Tensor]:
    """Return a copy of the network in float32 on the CPU, its data config, an image for it and that one's logits."""
    cfg: Any = getattr(network, "pretrained_cfg", None)
    if not isinstance(network, nn.Module) or not cfg:
        raise ValueError(
            f"network={type(network).__name__} is no network of timm's; give it as create_model returned it"
        )
    if network.training:
        raise ValueError(f"network={cfg['architecture']} is in training mode: call network.eval() first")
    own: Any = copy.deepcopy(network).float().cpu()
    config = data_config(own, **({"input_size": (own.in_chans, *task.size)} if task.size else {}))
    channels, height, width = config["input_size"]
    x = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            logits = own(x)
        except Exception as error:  # of timm's classes each has its own
            raise ValueError(f"size={height} x {width} is none that {cfg['architecture']} takes: {error}") from error
    if logits.dim() != 2:
        raise ValueError(f"network={cfg['architecture']} returns {tuple(logits.shape)}, not logits (B, num_classes)")
    return own, config, x, logits


def _checks(
    network: Any, run: Run, task: Task, config: dict[str, Any], x: Tensor, calibration: Sequence[Tensor]
) -> dict[str, Any]:
    """Return how the file compares with eager mode, or raise where it is off by more than the task allows."""
    cfg, classes = network.pretrained_cfg, classes_of(task.images, labels_of(network) or ())
    if calibration:  # noise is beyond what 8 bits are laid out for
        images = [*calibration, *resized(calibration, x, task.dynamic)]
        checks = {"calibration": compare(network, run, images)}
    else:
        checks = {"random": compare(network, run, random_images(x, task.dynamic))}
    if task.images:
        checks["real"] = compare(network, run, real_images(task.images, config), classes)
    wrong, measure = ("wrongly in 8 bits", "rms") if calibration else ("wrongly", "error")
    for kind, found in checks.items():
        if not found[measure] <= task.tolerance:  # NaN is not
            raise ValueError(
                f"{task.format} computes {cfg['architecture']} {wrong}: on {kind} images logits are off by "
                f"{found[measure]:.1e} of their standard deviation, over {task.tolerance:g}; nothing was written"
            )
    return checks


def _manifest(network: Any, task: Task, config: dict[str, Any], x: Tensor, logits: Tensor) -> dict[str, Any]:
    """Return what is told of the network, its input and its output."""
    cfg = network.pretrained_cfg
    return {
        "format": task.format,
        "files": {},
        "architecture": cfg["architecture"],
        "weights_sha256": digests(save(network.state_dict()))["sha256"],
        "input": {
            "name": INPUT,
            "shape": _open(x.shape, task.dynamic),
            "layout": "NCHW",
            "dtype": "float32",
            **{key: list(config[key]) for key in ("mean", "std")},
            **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
        },
        "output": {"name": OUTPUT, "shape": [_open(x.shape, task.dynamic)[0], logits.shape[1]]},
        "labels": labels_of(network),
    }


def _open(shape: Sequence[int], dynamic: Sequence[str]) -> list[int | None]:
    batch, channels, height, width = shape
    sides = [None, None] if "size" in dynamic else [height, width]
    return [None if "batch" in dynamic else batch, channels, *sides]


def _digest(path: Path) -> dict[str, Any]:
    """Return the bytes and the sha256 of a file, or of all files of a folder in the order of their names."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    content = b"".join(file.read_bytes() for file in files)
    return {"bytes": len(content), "sha256": digests(content)["sha256"]}


def versions_of(about: Format) -> dict[str, str]:
    """Return the versions of all that wrote a file."""
    found = {"timm_mobilevit_zoo": __version__, "timm": version("timm"), "torch": version("torch")}
    return found | {name: version(name) for name in about.modules}
