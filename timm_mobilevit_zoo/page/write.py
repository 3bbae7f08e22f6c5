"""The page written: models, their maps and the runtime, each compared before it is kept."""

import json
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import appearing, claiming, digests
from timm_mobilevit_zoo.common.images import data_config, images_in
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting
from timm_mobilevit_zoo.export.checked import write_checked
from timm_mobilevit_zoo.export.format import INPUT, PRECISIONS, Precision
from timm_mobilevit_zoo.export.formats import FORMATS
from timm_mobilevit_zoo.export.task import TOLERANCES, Task, precision_of, task_of
from timm_mobilevit_zoo.maps.panels import KINDS, panels_of
from timm_mobilevit_zoo.maps.recording import record
from timm_mobilevit_zoo.models.loading import load
from timm_mobilevit_zoo_cli.checks import INDEX, check, plain

from . import ortweb
from .server import POLICY

__all__ = ["page"]


def page(
    models: Sequence[str],
    *,
    output: str,
    runtime: str = "",
    fetch_runtime: bool = False,
    precision: Sequence[Literal["fp32", "fp16", "int8"]] = ("fp32",),
    calibration: str = "",
    images: str = "",
    on_broken: Literal["stop", "skip"] = "stop",
    pretrained: bool = True,
    trust: bool = False,
) -> dict[str, Any]:
    """Write a static page that runs models in a browser, on photos and the camera, with attention maps and timing.

    Args:
        models: Folders that train left, or names that timm creates with weights.
        output: Folder to write; it must be new or empty.
        runtime: ONNX Runtime Web: the file from `npm pack`, or an unpacked folder.
        fetch_runtime: Get ONNX Runtime Web with `npm pack`, about 32 MB.
        precision: Numbers in the models' files: each model is written once for each precision, and the page begins with
            the first. Attention maps stay in fp32.
        calibration: Folder of images like those that the models will see, for int8; up to 128 of them are used.
        images: Folder of images to compare the written models on, beside random ones.
        on_broken: First read the images to be used from both folders, and stop at broken ones or skip them.
        pretrained: Give names their published weights; to measure speed, random ones are enough.
        trust: Load folders without checking their contents.

    Returns:
        What the page reads first: `models`, each with its `name`, `files` (for each precision the `precision`, `file`,
        `bytes` and `manifest`), `maps` (None without recorded attention) and whether its weights are `random`; the
        `runtime` with its `version` and `files`; and `versions`.

    Raises:
        ValueError: For arguments that cannot work, before any work, and for a file that computes something else.
        FileNotFoundError: For an output without a folder around it, or a model or runtime that is not there.
        ModuleNotFoundError: Without the extra `onnx`; it names the pip command.
    """
    options = plain(dict(locals()))
    if isinstance(models, list):
        options["models"] = list(options["models"])  # messages tell what was given
    check("page", options)
    models, target, runtime = options["models"], Path(options["output"]), options["runtime"]
    if bool(runtime) == fetch_runtime:
        raise ValueError(
            f"the page needs onnxruntime-web {ortweb.VERSION}: give `fetch_runtime=True`, which runs "
            f"`{ortweb.COMMAND}`, or as `runtime` the file or folder that this left, and not both"
        )
    precisions = _precisions(options["precision"], options["calibration"])
    _check_images(options)
    for module in FORMATS["onnx"].modules:
        require(module, FORMATS["onnx"].extra)
    parts = None if fetch_runtime else ortweb.read(Path(runtime))
    with claiming(target, "output"):
        check("page", options)  # another may have written it since
        tasks = _tasks(target, precisions, options)
        named = dict(zip(_names(models), models, strict=True))
        networks = {name: _load(model, pretrained, trust) for name, model in named.items()}
        fresh = set() if pretrained else {name for name, model in named.items() if not Path(model).exists()}
        if parts is None:
            with tempfile.TemporaryDirectory() as scratch:
                parts = ortweb.fetch(Path(scratch))
        with appearing(target) as part:
            return _fill(part, networks, parts, tasks, fresh)


def _precisions(asked: Sequence[Precision], calibration: str) -> list[Precision]:
    """Return the precisions that are asked for, each once.

    Raises:
        ValueError: Without any, and where they and the images for int8 do not go together.
    """
    if not asked:
        raise ValueError("`precision` is empty")
    for one in asked:
        precision_of("onnx", one, calibration if one == "int8" or "int8" not in asked else "")
    return list(dict.fromkeys(asked))


def _check_images(options: Mapping[str, Any]) -> None:
    """Refuse folders without images, and a choice about images where there are none."""
    for name in ("calibration", "images"):
        folder = options[name]
        if folder and not (Path(folder).is_dir() and images_in(Path(folder))):
            raise ValueError(f"{name}={folder!r} must be a folder with images in it")
    if options["on_broken"] != "stop" and not (options["images"] or options["calibration"]):
        raise ValueError(f"on_broken={options['on_broken']!r} goes with `images` or `calibration`")


def _tasks(target: Path, precisions: Sequence[Precision], options: Mapping[str, Any]) -> list[Task]:
    """Return a task of `export` for each precision, with its images read; of each model they differ in the file alone.

    Raises:
        ValueError: For images that cannot be read.
    """
    tasks = []
    for precision in precisions:
        given = {"images": options["images"], "calibration": options["calibration"] if precision == "int8" else ""}
        if any(given.values()):
            given["on_broken"] = options["on_broken"]
        with tempfile.TemporaryDirectory() as scratch:  # where the file will lie there is no folder yet
            tasks.append(task_of("onnx", str(Path(scratch, "model.onnx")), precision=precision, **given))
    return tasks


def _fill(
    part: Path, networks: dict[str, Any], parts: dict[str, bytes], tasks: Sequence[Task], fresh: Collection[str]
) -> dict[str, Any]:
    """Write all files of a page into an empty folder, and return what the page reads first."""
    shutil.copytree(Path(__file__).with_name("assets"), part, dirs_exist_ok=True)
    html = part / "index.html"
    html.write_text(html.read_text(encoding="utf-8").replace("{{policy}}", POLICY), encoding="utf-8")
    for folder in (part / INDEX.parent, part / "runtime"):
        folder.mkdir()
    for name, content in parts.items():
        (part / "runtime" / name).write_bytes(content)
    (part / "LICENSE.onnxruntime").replace(part / "runtime" / "LICENSE")
    index = {
        "models": [
            _write(name, network, part / INDEX.parent, tasks) | {"random": name in fresh}
            for name, network in networks.items()
        ],
        "runtime": {"version": ortweb.VERSION, "files": {name: len(content) for name, content in parts.items()}},
        "versions": {"timm_mobilevit_zoo": __version__, "timm": timm.__version__, "torch": torch.__version__},
    }
    (part / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _names(models: Sequence[str]) -> list[str]:
    """Return names for files and readers: the last part of each model's, with a number where a file of it is taken."""
    names: list[str] = []
    taken: set[str] = set()
    for model in models:
        last = Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2]
        first = re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip(".-") or "model"
        numbered = chain([first], (f"{first}-{number}" for number in count(2)))
        names.append(next(name for name in numbered if not taken & _files_of(name)))
        taken |= _files_of(names[-1])
    return names


def _files_of(name: str) -> set[str]:
    """Return what may be written for a name, in the case that some file systems do not tell from others."""
    models = [_file_of(name, precision) for precision in PRECISIONS]
    return {file.lower() for file in [*models, *(f"{model}.json" for model in models), f"{name}.maps.onnx"]}


def _file_of(name: str, precision: Precision) -> str:
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def _load(model: str, pretrained: bool, trust: bool) -> Any:
    """Return a network that the page can feed."""
    if pretrained and timm.is_model(model) and not Path(model).exists():
        known: Any = timm.get_pretrained_cfg(model)
        if not known.has_weights:
            raise ValueError(f"models={model!r} has no published weights; `pretrained=False` takes random ones")
    network = load(model, pretrained=pretrained, trust=trust)
    config = data_config(network)
    can = {"interpolation": ("bicubic", "bilinear"), "crop_mode": ("center", "squash")}
    for key, values in can.items():
        if config[key] not in values:
            raise ValueError(f"models={model!r} has {key}={config[key]!r}; the page does {' and '.join(values)}")
    channels = config["input_size"][0]
    if channels not in (1, 3) or len(config["mean"]) != channels:
        raise ValueError(f"models={model!r} takes images of {channels} channels; the page has 3, or 1 of grey")
    return network


def _write(name: str, network: Any, folder: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """Write a network in each precision, and its maps, and return what the page is told of them."""
    files: list[dict[str, Any]] = []
    manifest: dict[str, Any] = {}
    for task in tasks:
        file = folder / _file_of(name, task.precision)
        step(f"{name}: a model of the page, in {task.precision}")
        manifest = write_checked(network, task._replace(output=file))
        size = manifest["files"][file.name]["bytes"]
        files.append({"precision": task.precision, "file": file.name, "bytes": size, "manifest": f"{file.name}.json"})
    shape, generator = manifest["input"]["shape"], torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float32, device="cpu")
    return {
        "name": name,
        "files": files,
        "maps": _write_maps(network, x, folder / f"{name}.maps.onnx"),
    }


class _Maps(nn.Module):
    """What there is to show of a network over an image: `(1, C, H, W)` to one `(H', W')` a layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.told: list[dict[str, Any]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        panels = [one for one in panels_of(self.network, x, record(self.network, x)) if one.kind != "matrix"]
        self.told = [
            {"output": f"map{i}", "title": one.title, "kind": one.kind, "text": KINDS[one.kind]}
            | {"shape": [int(side) for side in one.values.shape], "cells": list(one.cells)}
            for i, one in enumerate(panels)
        ]
        return tuple(one.values for one in panels)


def _write_maps(network: nn.Module, x: Tensor, path: Path) -> dict[str, Any] | None:
    """Write the maps of a network for images like `x[0]` and compare them on `x[1]`; return None where it has none."""
    shown = _Maps(network).eval()
    try:
        expected = shown(x[1])
    except ValueError:  # no attention that is recorded
        return None
    told = shown.told
    if not told:
        return None
    step(f"{path.name}: writing the maps")
    with converting():
        torch.onnx.export(
            shown,
            (x[0],),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=[INPUT],
            output_names=[one["output"] for one in told],
        )
    session = require("onnxruntime", "onnx").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(values) for values in session.run(None, {INPUT: x[1].numpy()})]
    if not all(values.isfinite().all() for values in found):
        raise ValueError(f"onnx computes the maps of {path.name} wrongly: they are not finite")
    error = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(found, expected, strict=True)
    )
    if error > TOLERANCES["fp32"]:
        raise ValueError(f"onnx computes the maps of {path.name} wrongly: off by {error:.1e} of the largest value")
    content = path.read_bytes()
    digest = digests(content)["sha256"]
    return {"file": path.name, "bytes": len(content), "sha256": digest, "error": error, "outputs": told}
