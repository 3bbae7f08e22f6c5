"""Write a network as a file that a runtime takes, and see that the file computes the same.

No file is left that was not run: it is compared with eager mode first, on random images and on those of a folder. Core
ML is the exception: it runs on Apple's systems alone, and elsewhere only its structure can be looked at.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from safetensors.torch import save
from timm.data import resolve_data_config
from torch import Tensor, nn

from . import __version__
from ._data import images_in, reader
from ._extras import require
from ._files import check_free
from ._formats import FORMATS, INPUT, OUTPUT, Format, Run
from ._int8 import CALIBRATION, INT8
from ._remote import digests
from .predict import load

__all__ = ["export", "to_coreml", "to_executorch", "to_litert", "to_ncnn", "to_onnx", "to_openvino"]

TOLERANCE = 1e-3  # of a standard deviation of the logits; what runs in float32 is off by 1e-6 to 1e-4
INT8_TOLERANCE = 0.2  # of the same, on average; trained networks are off by 0.02 to 0.1, what is broken by 0.3 and more
IMAGES, MEASURED = 64, 1000  # of a folder, at most: to compare, and to tell the accuracy in 8 bits


def export(
    model: str,
    *,
    format: Literal["onnx", "openvino", "executorch", "coreml", "litert", "ncnn"],
    output: str,
    size: tuple[int, int] | None = None,
    dynamic: Sequence[Literal["batch", "size"]] = (),
    images: str = "",
    int8: str = "",
    tolerance: float | None = None,
    pretrained: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model for a runtime, run what was written, and compare it with eager mode.

    Args:
        model: Folder that train left, or a name that timm creates with weights.
        format: What to write: onnx for ONNX Runtime, openvino, executorch (with XNNPACK), coreml, litert, or ncnn.
        output: File to write, ending in .onnx, .xml, .pte, .mlpackage, .tflite or .param. A manifest is written
            beside it.
        size: Height and width of the image, in pixels; those of the model where not given.
        dynamic: What may differ in each call, of batch and size; without them one image of one size. In onnx and
            openvino alone.
        images: Folder of images to compare on too; it may have folders, one a class. Where these have the names of the
            model's labels, accuracy is told, too.
        int8: Folder of images, as the model will see: convolutions and linear layers compute in 8 bits, whose ranges
            are measured on up to 128 of them. In onnx and executorch alone.
        tolerance: How far a logit may be from eager mode's, in standard deviations of the logits; 0.001 where not
            given. With int8 how far logits may be on average, as a root mean square, and 0.2 where not given.
        pretrained: Give a name its weights; without, random ones, as they serve to measure time.
        overwrite: Replace output and manifest where they exist.

    Returns:
        The manifest: see `to_onnx`.

    Raises:
        ValueError: For arguments that cannot work, before any work, and for a wrong result: its file is not kept.
        FileNotFoundError: For an output without a folder, or a model that is none.
        ModuleNotFoundError: Without the extra of the format; it names the pip command.
    """
    task = _task(format, output, size, dynamic, images, int8, tolerance, overwrite)
    if pretrained and timm.is_model(model) and not Path(model).exists():
        cfg: Any = timm.get_pretrained_cfg(model)
        if not cfg.has_weights:
            raise ValueError(f"model={model!r} has no published weights; --no-pretrained exports random ones")
    square = size is not None and size[0] == size[1]  # what is built for one size is built for a square
    return _export(load(model, pretrained=pretrained, **({"img_size": size[0]} if size and square else {})), task)


def to_onnx(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network as ONNX, for ONNX Runtime and whoever reads that format, and see that it computes the same.

    Args:
        network: A classifier in evaluation mode, of ours or of timm's. It is left as it is.
        output: File to write, ending in .onnx; a manifest, `output` and `.json`, is written beside it.
        **options: `size`, `dynamic`, `images`, `int8`, `tolerance` and `overwrite`, as `export` has them.

    Returns:
        The manifest: `format`, `files` with bytes and sha256, `architecture`, `weights_sha256`, `input` (name, shape
        with None for what may differ, layout, mean, std), `output`, `labels`, `checks` (for `random` and `real` images
        how many, the largest `error` in standard deviations of the logits and the root mean square, `rms`, of all, and
        the share that has the same `top1`),
        `versions`; of executorch also `xnnpack`, the `regions` that it takes and the operators `left` out of them.
        With int8 also that: how many `images` it was calibrated on; `layers`, those in 8 bits, each with the `error` of
        its output on some of them (root mean square, as a part of float's), largest first; which operators are `float`,
        with how many of each, and `why_float`; `float_weights_bytes`, what weights take that are not quantised. The
        checks have `calibration`, too, and `real` has `accuracy` where the images' folders are labels.

    Raises:
        ValueError: For arguments that cannot work, and for a file whose result is wrong: it is not kept.
        FileNotFoundError: For an output without a folder.
        ModuleNotFoundError: Without the extra of the format; it names the pip command.
    """
    return _to("onnx", network, output, **options)


def to_openvino(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for OpenVINO, `output` ending in .xml and a .bin beside it; see `to_onnx` for the rest."""
    return _to("openvino", network, output, **options)


def to_executorch(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for ExecuTorch with XNNPACK, `output` ending in .pte; see `to_onnx` for the rest."""
    return _to("executorch", network, output, **options)


def to_coreml(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for Core ML, `output` ending in .mlpackage; see `to_onnx` for the rest.

    The file is not run: only the names of its input and output and the input's shape are compared.
    """
    return _to("coreml", network, output, **options)


def to_litert(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for LiteRT, `output` ending in .tflite; see `to_onnx` for the rest.

    Raises:
        ModuleNotFoundError: Also where torch is newer than its converter takes.
    """
    return _to("litert", network, output, **options)


def to_ncnn(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for ncnn, `output` ending in .param and a .bin beside it; see `to_onnx` for the rest."""
    return _to("ncnn", network, output, **options)


class _Task(NamedTuple):
    """What to write and how to compare it, known to be possible."""

    format: str
    output: Path
    size: tuple[int, int] | None
    dynamic: Sequence[str]
    images: list[Path]
    int8: list[Path]
    tolerance: float


def _to(format: str, network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    return _export(network, _task(format, output, **options))


def _task(
    format: str,
    output: str,
    size: tuple[int, int] | None = None,
    dynamic: Sequence[str] = (),
    images: str = "",
    int8: str = "",
    tolerance: float | None = None,
    overwrite: bool = False,
) -> _Task:
    """Return the task, or raise what is wrong with an argument."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    about, target = FORMATS[format], Path(output)
    if target.suffix != about.suffix:
        raise ValueError(f"output={output!r} must end in {about.suffix} for format={format}")
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side >= 1 for side in size)):
        raise ValueError(f"size={size} must be height and width in pixels, whole numbers from 1")
    for one in dynamic:
        if one not in about.dynamic:
            can = f"one of {', '.join(about.dynamic)}" if about.dynamic else "left out"
            raise ValueError(f"dynamic={one!r} must be {can} for format={format}")
    if int8 and format not in INT8:
        raise ValueError(f"int8={int8!r} must be left out for format={format}: only {' and '.join(INT8)} can")
    if tolerance is None:
        tolerance = INT8_TOLERANCE if int8 else TOLERANCE
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be above 0")
    compared = _some("images", images, MEASURED if int8 else IMAGES)
    calibration = _some("int8", int8, CALIBRATION)
    for path in _files(about, target):
        check_free("output", path, overwrite)
    for module in about.modules:
        require(module, about.extra)
    if about.torch_below and torch.__version__ >= about.torch_below:
        raise ModuleNotFoundError(
            f"torch {torch.__version__} is too new for {about.modules[0]}: in an environment of its own, "
            f"pip install 'timm-mobilevit-zoo[{about.extra}]'"
        )
    return _Task(format, target, size, dynamic, compared, calibration, tolerance)


def _some(name: str, folder: str, count: int) -> list[Path]:
    """Return at most as many images of a folder, of each class in it as large a share, and none without a folder."""
    found = images_in(Path(folder)) if folder and Path(folder).is_dir() else []
    if folder and not found:
        raise ValueError(f"{name}={folder!r} must be a folder with images in it")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _files(about: Format, output: Path) -> list[Path]:
    """Return what is written: the file, what comes with it, the manifest."""
    return [output, *(output.with_suffix(suffix) for suffix in about.beside), output.with_name(output.name + ".json")]


def _export(network: nn.Module, task: _Task) -> dict[str, Any]:
    format, output, size, dynamic, images, int8, tolerance = task
    cfg: Any = getattr(network, "pretrained_cfg", None)
    if not isinstance(network, nn.Module) or not cfg:
        raise ValueError(
            f"network={type(network).__name__} is no network of timm's; give it as create_model returned it"
        )
    if network.training:
        raise ValueError(f"network={cfg['architecture']} is in training mode: call network.eval() first")
    about = FORMATS[format]
    network = copy.deepcopy(network).float().cpu()
    config = resolve_data_config({"input_size": (network.in_chans, *size)} if size else {}, model=network)
    channels, height, width = config["input_size"]
    x = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            logits = network(x)
        except Exception as error:  # of timm's classes each has its own
            raise ValueError(f"size={height} x {width} is none that {cfg['architecture']} takes: {error}") from error
    if logits.dim() != 2:
        raise ValueError(f"network={cfg['architecture']} returns {tuple(logits.shape)}, not logits (B, num_classes)")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}-") as scratch:
        part = Path(scratch, output.name)
        calibration = list(_real(int8, config))
        write = partial(INT8[format], images=calibration) if int8 else about.write
        told = write(network, x, part, dynamic) or {}
        checks: dict[str, Any] | None = None
        if about.run:
            run, classes = about.run(part), _classes(images, cfg.get("label_names") or ())
            if calibration:  # noise is beyond what 8 bits are laid out for
                checks = {"calibration": _compare(network, run, [*calibration, *_resized(calibration, x, dynamic)])}
            else:
                checks = {"random": _compare(network, run, _random(x, dynamic))}
            if images:
                checks["real"] = _compare(network, run, _real(images, config), classes)
            wrong, measure = ("wrongly in 8 bits", "rms") if int8 else ("wrongly", "error")
            for kind, found in checks.items():
                if not found[measure] <= tolerance:  # NaN is not
                    raise ValueError(
                        f"{format} computes {cfg['architecture']} {wrong}: on {kind} images logits are off by "
                        f"{found[measure]:.1e} of their standard deviation, over {tolerance:g}; nothing was written"
                    )
        written = [path for path in _files(about, part) if path.exists()]
        manifest = {
            "format": format,
            "files": {path.name: _digest(path) for path in written},
            "architecture": cfg["architecture"],
            "weights_sha256": digests(save(network.state_dict()))["sha256"],
            "input": {
                "name": INPUT,
                "shape": _open(x.shape, dynamic),
                "layout": "NCHW",
                "dtype": "float32",
                **{key: list(config[key]) for key in ("mean", "std")},
                **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
            },
            "output": {"name": OUTPUT, "shape": [_open(x.shape, dynamic)[0], logits.shape[1]]},
            "labels": cfg.get("label_names"),
            "checks": checks,
            "tolerance": tolerance,
            **told,
            "versions": _versions(about),
        }
        written.append(part.with_name(part.name + ".json"))
        written[-1].write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in written:
            target = output.with_name(path.name)
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    return manifest


def _open(shape: Sequence[int], dynamic: Sequence[str]) -> list[int | None]:
    batch, channels, height, width = shape
    sides = [None, None] if "size" in dynamic else [height, width]
    return [None if "batch" in dynamic else batch, channels, *sides]


def _shapes(x: Tensor, dynamic: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Yield shapes as the file must take them: the size that it was written for, and others where it can."""
    _, channels, height, width = x.shape
    sizes = [(height, width)] * 4 + [(height + 31, width), (height // 2 + 9, 2 * width - 5)] * ("size" in dynamic)
    for sides in sizes:
        yield 3 if "batch" in dynamic else 1, channels, *sides


def _random(x: Tensor, dynamic: Sequence[str]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for shape in _shapes(x, dynamic):
        yield torch.randn(shape, generator=generator)


def _resized(images: Sequence[Tensor], x: Tensor, dynamic: Sequence[str]) -> Iterator[Tensor]:
    for batch, _, *sides in _shapes(x, dynamic) if dynamic else ():
        yield nn.functional.interpolate(torch.cat([*images, *images, *images][:batch]), sides, mode="bilinear")


def _real(images: Sequence[Path], config: dict[str, Any]) -> Iterator[Tensor]:
    read = reader(config)
    for path in images:
        yield read(path)[None]


def _classes(images: Sequence[Path], labels: Sequence[str]) -> Tensor | None:
    """Return the class of each image, if all lie in folders that have the names of labels."""
    index = {str(label): i for i, label in enumerate(labels)}
    known = all(path.parent.name in index for path in images)
    return torch.tensor([index[path.parent.name] for path in images]) if known else None


@torch.inference_mode()
def _compare(network: nn.Module, run: Run, batches: Iterable[Tensor], classes: Tensor | None = None) -> dict[str, Any]:
    pairs = [(network(batch), torch.from_numpy(run(batch.numpy()))) for batch in batches]
    expected, found = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    if found.shape != expected.shape:
        raise ValueError(f"what was written returns {tuple(found.shape)}, not {tuple(expected.shape)}")
    told: dict[str, Any] = {
        "images": len(expected),
        "error": float((found - expected).abs().max() / expected.std()),
        "rms": float((found - expected).square().mean().sqrt() / expected.std()),
        "top1": _share(found, expected.argmax(1)),
    }
    if classes is not None:
        told["accuracy"] = {"eager": _share(expected, classes), "file": _share(found, classes)}
    return told


def _share(logits: Tensor, classes: Tensor) -> float:
    return float((logits.argmax(1) == classes).float().mean())


def _digest(path: Path) -> dict[str, Any]:
    """Return the bytes and the sha256 of a file, or of all files of a folder in the order of their names."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    content = b"".join(file.read_bytes() for file in files)
    return {"bytes": len(content), "sha256": digests(content)["sha256"]}


def _versions(about: Format) -> dict[str, str]:
    found = {"timm_mobilevit_zoo": __version__, "timm": version("timm"), "torch": version("torch")}
    return found | {name: version(name) for name in about.modules}
