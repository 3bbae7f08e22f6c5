"""Write networks whose convolutions and linear layers compute in 8 bits, with ranges that are measured on images.

All else stays in float: it has hardly any weights to make smaller, and was measured to cost accuracy in 8 bits (see
docs/export.md). Most of all softmax, which ONNX Runtime computes in 8 bits where it lies between layers that are, and
over a single position it then returns 0. So the products of two maps around it stay in float as well.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._extras import require
from ._formats import FORMATS, INPUT, lower, quiet
from ._plain import plain

__all__ = ["CALIBRATION", "INT8"]

CALIBRATION = 128  # images, at most
COMPARED = 8  # of them, on which each layer is compared with float's
WHY = "it has hardly any weights, and in 8 bits it costs accuracy, softmax and the products around it most"


def _told(
    network: nn.Module, images: Sequence[Tensor], errors: dict[str, float], left: Iterable[str]
) -> dict[str, Any]:
    """Return what the manifest says of 8 bits."""
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return {
        "images": len(images),
        "layers": [{"name": name, "error": error} for name, error in ordered],
        "float": dict(Counter(left).most_common()),
        "why_float": WHY,
        "float_weights_bytes": sum(value.numel() * value.element_size() for value in network.state_dict().values()),
    }


def _errors(pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Return how far each layer's output is from float's, as a part of it, both as root mean squares.

    Args:
        pairs: For each image the outputs of all layers, by name: those in float, and those in 8 bits.
    """
    power: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    for right, found in pairs:
        for name, value in right.items():
            power[name] += float(np.square(value).sum())
            noise[name] += float(np.square(found[name] - value).sum())
    return {name: (noise[name] / power[name]) ** 0.5 if power[name] else float(noise[name] > 0) for name in power}


def _onnx(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]) -> Any:
    """Write ONNX with QuantizeLinear and DequantizeLinear around what is computed in 8 bits."""
    onnx, tools = require("onnx", "onnx"), require("onnxruntime.quantization", "onnx")
    whole = path.with_name(f"float-{path.name}")
    FORMATS["onnx"].write(network, x, whole, dynamic)
    graph = onnx.shape_inference.infer_shapes(onnx.load(whole)).graph
    constants = {value.name for value in graph.initializer}
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    layers = {node.name: node for node in graph.node if node.op_type in kinds and constants.intersection(node.input)}

    feed = iter([{INPUT: image.numpy()} for image in images])
    reader = type("Reader", (tools.CalibrationDataReader,), {"get_next": lambda self: next(feed, None)})()
    with quiet():
        tools.quantize_static(
            str(whole),
            str(path),
            reader,
            op_types_to_quantize=list(kinds),
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,  # x86 multiplies these with signed weights, Arm takes either
            weight_type=tools.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # the logits
        )
    floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    rest = [node for node in graph.node if node.name not in layers and node.output[0] in floats]
    left = [node.op_type for node in rest if node.op_type not in MOVES]
    errors = _errors(zip(_onnx_outputs(whole, layers, images), _onnx_outputs(path, layers, images), strict=True))
    return {"int8": _told(network, images, errors, left)}


# ONNX's operators that compute nothing.
MOVES = {"Cast", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"}
MOVES |= {"Squeeze", "Transpose", "Unsqueeze"}


def _onnx_outputs(path: Path, layers: Iterable[str], images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
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


def _executorch(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]) -> Any:
    """Write for XNNPACK what PyTorch's quantisation of exported graphs makes."""
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "executorch")
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", "executorch")
    observers = require("torchao.quantization.pt2e", "executorch")
    kinds = torch.ops.aten.conv2d.default, torch.ops.aten.conv_transpose2d.input, torch.ops.aten.linear.default
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    # The histograms that it comes with take minutes.
    spec = replace(config.input_activation, observer_or_fake_quant_ctr=observers.MinMaxObserver)
    config = replace(config, input_activation=spec, output_activation=spec)
    quantizer = xnnpack.XNNPACKQuantizer()
    for kind in kinds:
        quantizer.set_operator_type(kind, config)
    quantizer.set_filter_function(lambda node: node.target not in kinds or _can_be_quantised(node))
    with quiet():
        exported = torch.export.export(plain(network, x), (x,), strict=False).module()
        quantised = pt2e.prepare_pt2e(copy.deepcopy(exported), quantizer)
        with torch.no_grad():
            for image in images:
                quantised(image)
        quantised = pt2e.convert_pt2e(quantised)
        told = lower(torch.export.export(quantised, (x,), strict=False), path)
    bits = {node.name for node in quantised.graph.nodes if node.target in kinds and _is_quantised(node.args[1])}
    layers = {node.name: node for node in exported.graph.nodes if node.name in bits}
    names = {name: _layer(node.args[1]) for name, node in layers.items()}
    errors = _errors(
        zip(_graph_outputs(exported, names, images), _graph_outputs(quantised, names, images), strict=True)
    )
    rest = [node for node in exported.graph.nodes if node.op == "call_function" and node.name not in bits]
    left = [str(node.target).removeprefix("aten.").partition(".")[0] for node in rest]
    return told | {"int8": _told(network, images, errors, (kind for kind in left if kind not in ATEN_MOVES))}


ATEN_MOVES = {"<built-in function getitem>", "cat", "chunk", "dropout", "expand", "flatten", "permute", "reshape"}
ATEN_MOVES |= {"slice", "split", "split_with_sizes", "squeeze", "transpose", "unsqueeze", "view"}


def _can_be_quantised(layer: Any) -> bool:
    """Say no of the mean that a norm takes, a layer with one output, and of what XNNPACK then gives a wrong shape."""
    resized = any("upsample" in str(user.target) for user in layer.users)  # ExecuTorch 1.5.1
    return len(layer.args[1].meta["val"]) > 1 and not resized


def _layer(weight: Any) -> str:
    """Return the name of the layer that has a weight: the graph no longer has the network's modules."""
    return str(weight.target).removeprefix("rewritten.").removesuffix(".weight")


def _is_quantised(node: Any) -> bool:
    return "dequantize_per" in str(node.target)


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps what some nodes hand on, behind their 8 bits where they have some."""

    def __init__(self, graph: Any, names: dict[str, str]) -> None:
        super().__init__(graph)
        self.ends: dict[Any, str] = {}
        self.found: dict[str, Any] = {}
        for node in graph.graph.nodes:
            if node.name in names:
                end = node
                while bits := [user for user in end.users if "quantize_per" in str(user.target)]:
                    end = bits[0]
                self.ends[end] = names[node.name]

    def run_node(self, n: Any) -> Any:
        value = super().run_node(n)
        if n in self.ends:
            self.found[self.ends[n]] = value.numpy()
        return value


@torch.inference_mode()
def _graph_outputs(graph: Any, names: dict[str, str], images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Yield for some images what the layers of a graph hand on."""
    recorder = _Recorder(graph, names)
    for image in images[:COMPARED]:
        recorder.run(image)
        yield dict(recorder.found)


INT8: dict[str, Callable[..., dict[str, Any]]] = {"onnx": _onnx, "executorch": _executorch}
