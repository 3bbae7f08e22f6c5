"""LiteRT, TensorFlow Lite before, on Android."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import Format, Run
from .int8 import COMPARED, errors_of, told_of
from .plain import plain

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("litert_torch", "litert")
    step("litert: converting the network")
    with converting():
        library.convert(plain(network, x), (x,)).export(str(path))


# What is computed of weights. LiteRT's quantiser knows more kinds, most of which have none.
LAYERS = ("CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def _quantiser(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> Any:
    """Write the network in float32 beside `path`, and return LiteRT's quantiser of it."""
    whole = path.with_name(f"float-{path.name}")
    _write(network, x, whole, dynamic)
    return require("ai_edge_quantizer.quantizer", "litert").Quantizer(str(whole))


def _write_fp16(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    """Write weights in 16 bits: in how many is computed, an app and its delegate choose."""
    quantiser = _quantiser(network, x, path, dynamic)
    names = require("ai_edge_quantizer.qtyping", "litert").TFLOperationName
    key = require("ai_edge_quantizer.algorithm_manager", "litert").AlgorithmName.FLOAT_CASTING
    step("litert: rounding weights to 16 bits")
    with converting():
        for layer in LAYERS:
            quantiser.add_weight_only_config(".*", names[layer], 16, algorithm_key=key)
        quantiser.quantize(serialize_to_path=str(path), enable_progress_bar=False, enable_progress_report=False)


def _write_int8(
    network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]
) -> dict[str, Any]:
    """Write layers that compute in 8 bits, with ranges from the least to the largest value."""
    quantiser = _quantiser(network, x, path, dynamic)
    names = require("ai_edge_quantizer.qtyping", "litert").TFLOperationName
    whole = path.with_name(f"float-{path.name}")
    interpreter = _reading(whole)
    ((signature, ends),) = interpreter.get_signature_list().items()
    layers = [(kind, result["name"]) for kind, result in _results(interpreter) if _can_be_quantised(kind, result)]
    step(f"litert: measuring ranges on {len(images)} images, for 8 bits")
    with converting():
        for kind, name in layers:
            quantiser.add_static_config(f"^{re.escape(name)};?$", names[kind], 8, 8)
        given = [{ends["inputs"][0]: image.numpy()} for image in images]
        ranges = quantiser.calibrate({signature: given}, num_threads=1)
        quantiser.quantize(ranges, str(path), enable_progress_bar=False, enable_progress_report=False)
    step(f"litert: comparing the layers in 8 bits with those in float, on {len(images[:COMPARED])} images")
    float_ends, ends_8 = (_layers(_reading(one)) for one in (whole, path))
    bits = [i for i, (_, result) in enumerate(ends_8) if result["dtype"] is np.int8]
    names = [float_ends[i][1]["name"] for i in bits]
    errors = errors_of(zip(_outputs(whole, bits, names, images), _outputs(path, bits, names, images), strict=True))
    left = [kind for kind, result in _results(_reading(path)) if result["dtype"] is np.float32 and kind not in MOVES]
    return {"int8": told_of(network, images, errors, left)}


def _can_be_quantised(kind: str, result: dict[str, Any]) -> bool:
    """Say no of the mean over channels that a norm takes, a layer with one output, as other formats do."""
    return kind in LAYERS and result["shape"][-1] > 1


# LiteRT's operators that compute nothing.
MOVES = {"CONCATENATION", "DELEGATE", "DEQUANTIZE", "PAD", "QUANTIZE", "RESHAPE", "SLICE", "STRIDED_SLICE", "TRANSPOSE"}


def _reading(path: Path) -> Any:
    """Return an interpreter that keeps what every operator hands on."""
    library = require("ai_edge_litert.interpreter", "litert")
    plainly = library.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = library.Interpreter(
        model_path=str(path), experimental_op_resolver_type=plainly, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    return interpreter


def _results(interpreter: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return each operator's kind and what the file says of its result, in the order of the file."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    return [(op["op_name"], tensors[op["outputs"][0]]) for op in interpreter._get_ops_details()]


def _layers(interpreter: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, result) for kind, result in _results(interpreter) if kind in LAYERS]


def _outputs(path: Path, places: Sequence[int], names: Sequence[str], images: Sequence[Tensor]) -> Iterator[Any]:
    """Yield for some images what some layers of a file, counted from its beginning, hand on, under these names."""
    interpreter = _reading(path)
    layers = _layers(interpreter)
    for image in images[:COMPARED]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.numpy())
        interpreter.invoke()
        yield {name: _in_float(interpreter, layers[i][1]) for i, name in zip(places, names, strict=True)}


def _in_float(interpreter: Any, tensor: dict[str, Any]) -> Any:
    values = interpreter.get_tensor(tensor["index"]).astype(np.float32)
    scale, zero = tensor["quantization"]
    return (values - zero) * scale if scale else values


def _run(path: Path, threads: int = 0) -> Run:
    library = require("ai_edge_litert.interpreter", "litert")
    interpreter = library.Interpreter(model_path=str(path), num_threads=threads or None)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Any) -> Any:
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return run


FORMAT = Format(
    ".tflite",
    "litert",
    ("litert_torch", "ai_edge_litert"),
    (),
    _write,
    _run,
    fp16=_write_fp16,
    int8=_write_int8,
    needs=dict.fromkeys(("fp16", "int8"), ("ai_edge_quantizer", "litert")),
    torch_below="2.15",
)
