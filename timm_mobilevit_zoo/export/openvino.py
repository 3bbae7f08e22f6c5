"""OpenVINO, on Intel's and other processors."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import INPUT, OUTPUT, Format, Run
from .int8 import COMPARED, errors_of, told_of
from .rewrite import transposeless

__all__ = ["FORMAT"]


def _converted(network: nn.Module, x: Tensor, dynamic: Sequence[str]) -> Any:
    library = require("openvino", "openvino")
    batch, channels, height, width = x.shape
    sides = [-1, -1] if "size" in dynamic else [height, width]
    step("openvino: converting the network")
    with converting():
        shape = [-1 if "batch" in dynamic else batch, channels, *sides]
        converted = library.convert_model(transposeless(network), example_input=x, input=shape)
    converted.input(0).get_tensor().set_names({INPUT})
    converted.output(0).get_tensor().set_names({OUTPUT})
    return converted


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], half: bool = False) -> None:
    """Write weights in 32 bits, or in 16: in how many is computed, a device chooses, a CPU 32."""
    converted = _converted(network, x, dynamic)
    require("openvino", "openvino").save_model(converted, str(path), compress_to_fp16=half)


def _write_int8(
    network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]
) -> dict[str, Any]:
    """Write what NNCF makes of the network."""
    nncf = require("nncf", "openvino")
    converted = _converted(network, x, dynamic)
    step(f"openvino: measuring ranges on {len(images)} images, for 8 bits")
    with converting():
        quantised = nncf.quantize(
            converted,
            nncf.Dataset([image.numpy() for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,  # which leaves softmax and the sums around it in float
            ignored_scope=nncf.IgnoredScope(names=_left_in_float(converted), validate=False),
            subset_size=len(images),
        )
        require("openvino", "openvino").save_model(quantised, str(path), compress_to_fp16=False)
    layers, left = _computed_in_8_bits(quantised)
    step(f"openvino: comparing the layers in 8 bits with those in float, on {len(images[:COMPARED])} images")
    errors = errors_of(zip(_outputs(converted, layers, images), _outputs(quantised, layers, images), strict=True))
    return {"int8": told_of(network, images, errors, left)}


_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
_MOVES = {"Broadcast", "Concat", "Constant", "Convert", "FakeQuantize", "Gather", "Pad", "Parameter", "Reshape"}
_MOVES |= {"Result", "ShapeOf", "Split", "Squeeze", "StridedSlice", "Slice", "Transpose", "Unsqueeze", "VariadicSplit"}


def _fixed(model: Any) -> set[str]:
    """Return the names of what is computed of constants alone, as weights in 8 bits are brought to float's range."""
    found: set[str] = set()
    for node in model.get_ordered_ops():
        given = _given(node)
        if found.issuperset(given) if given else node.get_type_name() == "Constant":
            found.add(node.get_friendly_name())
    return found


def _left_in_float(model: Any) -> list[str]:
    """Return the names of what gains nothing in 8 bits.

    Products of two maps, as in attention, cost accuracy, and OpenVINO then takes apart what it computes as one in
    float. Of convolutions in groups it has kernels in 8 bits for one output channel a group; others took three times as
    long as in float (2026.4, AVX2).
    """
    fixed, found = _fixed(model), []
    for node in model.get_ops():
        kind = node.get_type_name()
        is_product = kind == "ScaledDotProductAttention" or (kind == "MatMul" and fixed.isdisjoint(_given(node)))
        # Of weights (groups, outputs of a group, inputs of one, height, width).
        if is_product or (kind == "GroupConvolution" and node.input_value(1).get_partial_shape()[1].get_length() > 1):
            found.append(node.get_friendly_name())
    return found


def _given(node: Any) -> list[str]:
    """Return the names of what an operator takes."""
    return [node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())]


def _computed_in_8_bits(model: Any) -> tuple[list[str], list[str]]:
    """Return the names of layers with an input in 8 bits, and the operators that are in float."""
    layers, left, fixed = [], [], _fixed(model)
    for node in model.get_ops():
        if node.get_friendly_name() in fixed:
            continue
        kind = node.get_type_name()
        given = [node.input_value(i).get_node().get_type_name() for i in range(node.get_input_size())]
        if kind in _LAYERS and "FakeQuantize" in given:
            layers.append(node.get_friendly_name())
        elif kind not in _MOVES:
            left.append(kind)
    return layers, left


def _outputs(model: Any, names: Sequence[str], images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Yield for some images what the layers of a model hand on."""
    library = require("openvino", "openvino")
    wanted, model = set(names), model.clone()
    nodes = [node for node in model.get_ops() if node.get_friendly_name() in wanted]
    model.add_outputs([node.output(0) for node in nodes])
    compiled = library.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for image in images[:COMPARED]:
        values = compiled([image.numpy()])
        yield {node.get_friendly_name(): values[i + 1] for i, node in enumerate(nodes)}


def _run(path: Path, threads: int = 0, precision: str = "f32") -> Run:
    library = require("openvino", "openvino")
    core = library.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is moved afterwards, or goes
    # Without a hint bfloat16 would be chosen where a CPU has it.
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(str(path), "CPU", hints)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if chosen != precision:
        raise ValueError(f"this CPU has no {precision} in OpenVINO: it takes {chosen}")
    request, logits = compiled.create_infer_request(), compiled.output(0)
    return lambda images: request.infer([images], share_inputs=True)[logits]


FORMAT = Format(
    ".xml",
    "openvino",
    ("openvino",),
    ("batch", "size"),
    _write,
    _run,
    (".bin",),
    fp16=partial(_write, half=True),
    int8=_write_int8,
    needs={"int8": ("nncf", "openvino")},
)
