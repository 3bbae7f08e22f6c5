"""The functions of `export`: a model by its name, or a network for each format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
from torch import nn

from timm_mobilevit_zoo.models.loading import load
from timm_mobilevit_zoo_cli.checks import plain

from .checked import write_checked
from .task import task_of

__all__ = ["export", "to_coreml", "to_executorch", "to_litert", "to_mnn", "to_ncnn", "to_onnx", "to_openvino"]


def export(
    model: str,
    *,
    format: Literal["onnx", "openvino", "executorch", "coreml", "litert", "ncnn", "mnn"],
    output: str,
    size: int | tuple[int, int] | None = None,
    dynamic: Sequence[Literal["batch", "size"]] = (),
    images: str = "",
    precision: Literal["fp32", "fp16", "int8"] | None = None,
    calibration: str = "",
    int8: str = "",
    on_broken: Literal["stop", "skip"] = "stop",
    backend: Literal["xnnpack", "coreml", "vulkan"] | None = None,
    tolerance: float | None = None,
    pretrained: bool = True,
    trust: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model's file for a runtime, run it, and compare it with eager mode.

    Args:
        model: Folder that train left, or a name that timm creates with weights.
        format: Format to write: onnx for ONNX Runtime, openvino, executorch (with XNNPACK), coreml, litert, ncnn or
            mnn.
        output: File to write, ending in .onnx, .xml, .pte, .mlpackage, .tflite, .param or .mnn. A manifest is written
            beside it.
        size: Side of the square input, or its height and width, in pixels; the model's own if not given.
        dynamic: What may vary between calls; if not given, the file takes one image of one size. For onnx, openvino and
            mnn only.
        images: Folder of images to compare on too; it may have one folder per class. If these are named like the
            model's labels, accuracy is measured too.
        precision: Numbers in the file: fp32, fp16 or int8, if the format has it. If not given, fp16 for coreml, which
            the Neural Engine needs, and fp32 for the others. Input and output are float32 in any case.
        calibration: Folder of images like those that the model will see, for int8. Convolutions and linear layers then
            compute in 8 bits, with ranges measured on up to 128 of these images.
        int8: The same folder; short for both of these options.
        on_broken: First read the images to be used from both folders, and stop at broken ones or skip them.
        backend: What computes, for executorch only: xnnpack on CPUs, coreml on Apple's systems, in 16 bits, or vulkan
            on GPUs. Files for coreml and vulkan are written without being run. If not given, xnnpack.
        tolerance: Largest error of a logit, in standard deviations of eager mode's logits; 0.001 if not given, 0.03
            with fp16. With int8, largest root mean square error of all logits; 0.2 if not given.
        pretrained: Give a name its published weights; to measure speed, random ones are enough.
        trust: Load a folder without checking its contents.
        overwrite: Replace output and manifest if they exist.

    Returns:
        The manifest: see `to_onnx`.

    Raises:
        ValueError: For arguments that cannot work, before any work, and for a wrong result: its file is not kept.
        FileNotFoundError: For an output in a folder that does not exist, or a model that does not exist.
        ModuleNotFoundError: Without the extra of the format; it names the pip command.
    """
    model = plain(model)
    if not isinstance(model, str):
        raise ValueError(f"model={model!r} must be a folder or a name; to_{format} takes a network")
    task = task_of(
        format, output, size, dynamic, images, precision, calibration, int8, tolerance, overwrite, on_broken, backend
    )
    if pretrained and timm.is_model(model) and not Path(model).exists():
        cfg: Any = timm.get_pretrained_cfg(model)
        if not cfg.has_weights:
            raise ValueError(f"model={model!r} has no published weights; `pretrained=False` exports random ones")
    return write_checked(load(model, pretrained=pretrained, trust=trust, img_size=task.size), task)


def to_onnx(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network as ONNX, for ONNX Runtime and whoever reads that format, and see that it computes the same.

    Args:
        network: A classifier in evaluation mode, of ours or of timm's, on any device, in any type and memory format;
            also in DistributedDataParallel, an average of weights or torch.compile. It is left as it is.
        output: File to write, ending in .onnx; a manifest, `output` and `.json`, is written beside it.
        **options: `size`, `dynamic`, `images`, `precision`, `calibration`, `int8`, `on_broken`, `backend`, `tolerance`
            and `overwrite`, as `export` has them.

    Returns:
        The manifest: `format`, `precision`, `files` with bytes and sha256, `architecture`, `weights_sha256`, `input`
        (name, shape with None for what may differ, layout; colours, number to divide by, mean and std, in the order in
        which they prepare a photo), `output` (logits, and how probabilities follow), `labels`, `checks` (for `random`
        and `real` images how many, the largest `error` in standard deviations of the logits and the root mean square,
        `rms`, of all, and the share that has the same `top1`), `versions`; of executorch also `xnnpack` (or another
        `backend`, whose `checks` are None), the `regions` that it takes and the operators `left` out of them; of coreml
        `mlprogram`: how many results are of each of its `types`, its `casts`, how many `weights_in_8_bits` there are,
        and what is reported to leave the Neural Engine, by rule (`operations`, `why`, `source`). `checked_by` says what
        computed the checks.
        With fp16 also that: `layers`, those with the largest values (or sums of a row), as a share of 65,504, the
        largest number in 16 bits; the `error` of the logits where the result of every step is rounded to 16 bits;
        `norms`, those that compute on values made smaller by a `factor`; for onnx `float32`, the operators that stay
        in 32 bits.
        With int8 also that: how many `images` it was calibrated on; `layers`, those in 8 bits, each with the `error` of
        its output on some of them (root mean square, as a part of float's), largest first; which operators are `float`,
        with how many of each, and `why_float`; `float_weights_bytes`, what weights take that are not quantised. The
        checks have `calibration`, too, and `real` has `accuracy` where the images' folders are labels.

    Raises:
        ValueError: For arguments that cannot work, for a network whose weights or logits are not finite or whose logits
            are constant, for an output that another process or thread is writing, and for a file whose result is wrong:
            it is not kept.
        FileNotFoundError: For an output without a folder.
        ModuleNotFoundError: Without the extra of the format; it names the pip command.
    """
    return _to("onnx", network, output, **options)


def to_openvino(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for OpenVINO, `output` ending in .xml and a .bin beside it; see `to_onnx` for the rest."""
    return _to("openvino", network, output, **options)


def to_executorch(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for ExecuTorch, `output` ending in .pte, for XNNPACK or another `backend`; see `to_onnx`."""
    return _to("executorch", network, output, **options)


def to_coreml(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for Core ML, `output` ending in .mlpackage; see `to_onnx` for the rest.

    Core ML does not run it: torch computes what the operations in the file are defined to be. In int8 weights alone are
    in 8 bits, which needs no images, and the rest in 16.
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


def to_mnn(network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    """Write a network for MNN, `output` ending in .mnn; see `to_onnx` for the rest.

    In int8 weights alone are in 8 bits, which needs no images.
    """
    return _to("mnn", network, output, **options)


def _to(format: str, network: nn.Module, output: str, **options: Any) -> dict[str, Any]:
    return write_checked(network, task_of(format, output, **options))
