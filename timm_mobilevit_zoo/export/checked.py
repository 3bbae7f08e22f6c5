"""A network written, run and compared before any of its files takes its name."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.files import beside, claiming, digests, replacing_all
from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.models.copies import copied, unwrapped
from timm_mobilevit_zoo.models.loading import words_of
from timm_mobilevit_zoo_cli.checks import plain
from timm_mobilevit_zoo_cli.text import printable

from .compare import classes_of, compare, deviation_of, random_images, real_images, resized
from .format import INPUT, OUTPUT, Format, Run
from .formats import FORMATS
from .half import halved
from .task import Task, check_outputs, files_of

__all__ = ["versions_of", "write_checked"]

BITS = {"fp32": 32, "fp16": 16, "int8": 8}
OWN = "what its operations are defined to be, computed by torch"
SEEN = 8  # of the images to compare on, those that 16 bits are tried on beforehand


def write_checked(network: nn.Module, task: Task) -> dict[str, Any]:
    """Write a network as a task says, and return its manifest; nothing is left of a file that computes wrongly.

    Raises:
        ValueError: For a network that cannot be written, a wrong result, or files that another is writing.
    """
    about, output = FORMATS[task.format], task.output
    with claiming(output, "output"):
        check_outputs(task)  # another may have written them since
        network, config, x, logits = _prepared(network, task)
        labels = _labels(network, logits.shape[1])
        with beside(output) as scratch:
            part = scratch / output.name
            calibration = list(real_images(task.calibration, config))
            _warn_of_one_class(task, labels)
            told = _written(network, x, part, task, calibration, config)
            run = None if task.backend in about.backends else about.run(part)
            checks = _checks(network, run, task, config, x, calibration, labels) if run else None
            written = [path for path in files_of(about, part) if path.exists()]
            manifest = _manifest(network, task, config, x, logits) | {
                "labels": labels,
                "checks": checks,
                "checked_by": None if checks is None else OWN if about.stands_in else task.format,
                "tolerance": task.tolerance,
            }
            manifest |= {
                **told,
                "files": {path.name: _digest(path) for path in written},
                "versions": versions_of(about),
            }
            written.append(part.with_name(part.name + ".json"))
            written[-1].write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            _move(written, output.parent)
    return manifest


def _written(
    network: nn.Module, x: Tensor, part: Path, task: Task, calibration: list[Tensor], config: dict[str, Any]
) -> dict[str, Any]:
    """Write the file in the precision that is asked for, and return what is told of that."""
    about, told = FORMATS[task.format], {}
    if task.precision == "fp16" or (task.precision == "int8" and about.int8_in_16):
        seen = [*random_images(x, ()), *real_images(task.images[:SEEN], config)]
        network = copied(network)  # norms may change in it, and the manifest has the digest of the weights as they are
        told = {"fp16": halved(network, seen)}
    if task.backend is not None and task.backend in about.backends:
        return told | (about.backends[task.backend][1](network, x, part, task.dynamic) or {})
    if task.precision == "int8" and about.int8:
        return told | about.int8(network, x, part, task.dynamic, calibration)
    write = about.fp16 if task.precision == "fp16" and about.fp16 else about.write
    return told | (write(network, x, part, task.dynamic) or {})


def _warn_of_one_class(task: Task, labels: Sequence[str] | None) -> None:
    """Say so if all images that ranges are measured on are of one class."""
    classes = classes_of(task.calibration, labels or ()) if task.calibration and labels else None
    if labels and len(labels) > 1 and classes is not None and len(classes.unique()) == 1:
        sys.stderr.write(
            f"warning: all {len(classes)} images that 8 bits are laid out for are of the class "
            f"{printable(str(labels[int(classes[0])]))}: give images of all classes, or others will be computed worse\n"
        )


def _move(written: Sequence[Path], folder: Path) -> None:
    """Have files that belong together, the manifest last, take their names in a folder."""
    if written[0].is_dir():  # it is new: one that exists is never replaced, but there may be an old one's manifest
        (folder / written[-1].name).unlink(missing_ok=True)
        written[0].replace(folder / written[0].name)
        written = written[1:]
    first, *more = (folder / path.name for path in written)
    with replacing_all(first, *more) as parts:
        for path, part in zip(written, parts, strict=True):
            path.replace(part)


def _prepared(network: nn.Module, task: Task) -> tuple[Any, dict[str, Any], Tensor, Tensor]:
    """Return a copy of the network as it is written, its data config, an image for it and that one's logits.

    The copy is in float32, on the CPU, its weights in tensors' own order, whatever the network itself is like.
    """
    network = unwrapped(network)
    cfg: Any = getattr(network, "pretrained_cfg", None)
    if not isinstance(network, nn.Module) or not cfg:
        raise ValueError(f"network={type(network).__name__} is not a timm network; give it as create_model returned it")
    named = f"network={cfg['architecture']}"
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        where = f" ({training[0]} is)" if training[0] else ""
        raise ValueError(f"{named} is in training mode{where}: call network.eval() first")
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        raise ValueError(f"{named} is on the meta device: it has no weights")
    own: Any = copied(network).float().cpu().to(memory_format=torch.contiguous_format)
    parameters = dict(own.named_parameters())
    for name, tensor in own.state_dict().items():
        # Buffers may have infinities, as masks of attention do.
        if not (tensor.isfinite() if name in parameters else ~tensor.isnan()).all():
            raise ValueError(f"{named} has weights that are not finite, in {name}")
    own.pretrained_cfg = plain(cfg)
    config = data_config(own, **({"input_size": (own.in_chans, *task.size)} if task.size else {}))
    channels, height, width = config["input_size"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, height, width, generator=generator, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        try:
            logits = own(x)
        except Exception as error:  # of timm's classes each has its own
            raise ValueError(
                f"size={height} x {width} is not a size that {cfg['architecture']} takes: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{named} returns {what}, not logits (B, num_classes)")
    try:
        deviation_of(logits)
    except ValueError as error:
        raise ValueError(f"{named} cannot be compared with what is written: {error}") from None
    return own, config, x, logits


def _labels(network: Any, count: int) -> list[str] | None:
    """Return the names of classes that a network's config has, where there are as many as it computes."""
    return words_of(network) if count == network.num_classes else None  # a head that was put in has another number


def _checks(
    network: Any, run: Run, task: Task, config: dict[str, Any], x: Tensor, calibration: Sequence[Tensor], labels: Any
) -> dict[str, Any]:
    """Return how the file compares with eager mode, or raise where it is off by more than the task allows."""
    cfg, classes = network.pretrained_cfg, classes_of(task.images, labels or ())
    kinds = ("calibration" if calibration else "random") + f" and {len(task.images)} real" * bool(task.images)
    step(f"{task.format}: comparing the file with eager mode, on {kinds} images")
    if calibration:  # noise is beyond what 8 bits are laid out for
        images = [*calibration, *resized(calibration, x, task.dynamic)]
        checks = {"calibration": compare(network, run, images)}
    else:
        checks = {"random": compare(network, run, random_images(x, task.dynamic))}
    if task.images:
        checks["real"] = compare(network, run, real_images(task.images, config), classes)
    wrong = f"wrongly in {BITS[task.precision]} bits" if task.precision != "fp32" else "wrongly"
    measure = "rms" if task.precision == "int8" else "error"
    for kind, found in checks.items():
        if not found[measure] <= task.tolerance:  # NaN is not
            raise ValueError(
                f"{task.format} computes {cfg['architecture']} {wrong}: on {kind} images logits are off by "
                f"{found[measure]:.1e} of their standard deviation, over {task.tolerance:g}; nothing was written"
            )
    return checks


def _manifest(network: Any, task: Task, config: dict[str, Any], x: Tensor, logits: Tensor) -> dict[str, Any]:
    """Return what is told of the network, its input and its output."""
    cfg, weights = network.pretrained_cfg, network.state_dict()
    return {
        "format": task.format,
        "precision": task.precision,
        **({"backend": task.backend} if task.backend else {}),
        "files": {},
        "architecture": cfg["architecture"],
        "weights_sha256": digests(save({name: own.contiguous().clone() for name, own in weights.items()}))["sha256"],
        "input": {
            "name": INPUT,
            "shape": _open(x.shape, task.dynamic),
            "layout": "NCHW",
            "dtype": "float32",
            # What to do with a photo's bytes, in this order: colours, division, then mean and std.
            "colours": "grey" if x.shape[1] == 1 else "RGB" if x.shape[1] == 3 else None,
            "divide_by": 255,
            **{key: [float(value) for value in config[key]] for key in ("mean", "std")},
            **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
        },
        "output": {
            "name": OUTPUT,
            "shape": [_open(x.shape, task.dynamic)[0], logits.shape[1]],
            "values": "logits",
            "probabilities": "softmax over the last axis",
        },
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
