"""ONNX, for ONNX Runtime and whoever reads that format."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import INPUT, OUTPUT, Format, Run
from .int8 import COMPARED, errors_of, told_of
from .rewrite import simplified

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    axes = {0: "batch"} if "batch" in dynamic else {}
    sides = {2: "height", 3: "width"} if "size" in dynamic else {}
    step("onnx: writing the network")
    with converting():
        torch.onnx.export(
            simplified(network),
            (x,),
            str(path),
            dynamo=False,  # every version of torch has it
            opset_version=17,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes | sides, OUTPUT: axes},
        )


# What adds up many values, or divides by their sums, stays in 32 bits: some runtimes add up in the type of the map.
IN_FLOAT = ["GlobalAveragePool", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Pow"]
IN_FLOAT += ["ReduceL2", "ReduceMean", "ReduceSum", "Resize", "Softmax"]


def _write_fp16(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> dict[str, Any]:
    onnx, tools = require("onnx", "onnx"), require("onnxruntime.transformers.float16", "onnx")
    whole = path.with_name(f"float-{path.name}")
    _write(network, x, whole, dynamic)
    step("onnx: rounding weights and maps to 16 bits")
    with converting():
        model = onnx.shape_inference.infer_shapes(onnx.load(whole))
        model = tools.convert_float_to_float16(model, keep_io_types=True, op_block_list=IN_FLOAT)
        onnx.save(model, str(path))
    whole.unlink()
    kinds = Counter(node.op_type for node in model.graph.node)
    return {"float32": {kind: kinds[kind] for kind in IN_FLOAT if kind in kinds}}


def _run(path: Path, threads: int = 0) -> Run:
    library = require("onnxruntime", "onnx")
    options = library.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # it warns of each 16-bit operator that it computes in 32 bits
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads take the next one's cores
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


# ONNX's operators that compute nothing.
MOVES = {"Cast", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"}
MOVES |= {"Squeeze", "Transpose", "Unsqueeze"}


def _write_int8(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]) -> Any:
    """Write ONNX with QuantizeLinear and DequantizeLinear around what is computed in 8 bits."""
    onnx, tools = require("onnx", "onnx"), require("onnxruntime.quantization", "onnx")
    whole = path.with_name(f"float-{path.name}")
    _write(network, x, whole, dynamic)
    graph = onnx.shape_inference.infer_shapes(onnx.load(whole)).graph
    constants = {value.name for value in graph.initializer}
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    layers = {node.name: node for node in graph.node if node.op_type in kinds and constants.intersection(node.input)}

    feed = iter([{INPUT: image.numpy()} for image in images])
    reader = type("Reader", (tools.CalibrationDataReader,), {"get_next": lambda self: next(feed, None)})()
    step(f"onnx: measuring the ranges of {len(layers)} layers on {len(images)} images, for 8 bits")
    with converting():
        tools.quantize_static(
            str(whole),
            str(path),
            reader,
            op_types_to_quantize=list(kinds),
            nodes_to_quantize=list(layers),
            per_channel=True,
            reduce_range=True,  # of weights: x86 without VNNI adds products in 16 bits, and cuts off what is more
            activation_type=tools.QuantType.QUInt8,  # x86 multiplies these with signed weights, Arm takes either
            weight_type=tools.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # the logits
        )
    floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    rest = [node for node in graph.node if node.name not in layers and node.output[0] in floats]
    left = [node.op_type for node in rest if node.op_type not in MOVES]
    step(f"onnx: comparing the layers in 8 bits with those in float, on {len(images[:COMPARED])} images")
    errors = errors_of(zip(_outputs(whole, layers, images), _outputs(path, layers, images), strict=True))
    return {"int8": told_of(network, images, errors, left)}


def _outputs(path: Path, layers: Iterable[str], images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Yield for some images what the layers of a file hand on: behind their 8 bits, where they have some."""
    onnx, library = require("onnx", "onnx"), require("onnxruntime", "onnx")
    model = onnx.load(path)
    bits = {node.input[0]: node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    ends = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    for name, end in ends.items():
        while end in bits:
            end = ends[name] = bits[end].output[0]
    logits = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(end) for end in {*ends.values()} - logits)
    options = library.SessionOptions()
    options.log_severity_level = 3
    session = library.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for image in images[:COMPARED]:
        values = session.run(list(ends.values()), {INPUT: image.numpy()})
        yield dict(zip(ends, values, strict=True))


FORMAT = Format(
    ".onnx", "onnx", ("onnx", "onnxruntime"), ("batch", "size"), _write, _run, fp16=_write_fp16, int8=_write_int8
)
