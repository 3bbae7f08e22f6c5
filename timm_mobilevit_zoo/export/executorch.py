"""ExecuTorch with XNNPACK, in apps on phones."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import is_shown, progress, step
from timm_mobilevit_zoo.common.quiet import converting

from .format import Format, Run
from .int8 import COMPARED, errors_of, told_of
from .plain import plain

__all__ = ["FORMAT", "lower"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> dict[str, Any]:
    step("executorch: exporting the network as a graph")
    with converting():
        exported = torch.export.export(plain(network, x), (x,), strict=False)
    return _lower(exported, path)


def _lower(exported: Any, path: Path) -> dict[str, Any]:
    """Write what torch.export returned for XNNPACK, and return what is to be told of it."""
    with converting():
        partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    return {"xnnpack": lower(exported, path, partitioner.XnnpackPartitioner, "XNNPACK")}


def lower(exported: Any, path: Path, partitioner: Callable[[], Any], name: str) -> dict[str, Any]:
    """Write what torch.export returned, and return how many regions a partitioner's library takes, and what is left.

    Args:
        exported: What torch.export returned.
        path: File to write.
        partitioner: Makes what chooses the operators that the library takes.
        name: The library's.
    """
    step(f"executorch: lowering the graph to {name}, which takes a while")
    with converting():
        exir = require("executorch.exir", "executorch")
        lowered = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner()])
        told = _delegation(lowered.exported_program().graph_module)
        program = lowered.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)
    return told


def _delegation(graph: Any) -> dict[str, Any]:
    """Return how many regions of a graph a library takes, and the operators that it leaves, with how many of each."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    names = [target.removeprefix("<EdgeOpOverload: ").partition(">")[0] for target in targets]
    left = Counter(name for name in names if "call_delegate" not in name and "getitem" not in name)
    return {"regions": sum("call_delegate" in name for name in names), "left": dict(left)}


def _run(path: Path, threads: int = 0) -> Run:
    with converting():  # its import already tells of the CPU
        if threads:
            require("executorch.extension.pybindings.portable_lib", "executorch")._unsafe_reset_threadpool(threads)
        runtime = require("executorch.runtime", "executorch").Runtime.get()
        method = runtime.load_program(path).load_method("forward")

    def run(images: Any) -> Any:
        return method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0].numpy().copy()

    return run


def _write_int8(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]) -> Any:
    """Write for XNNPACK what PyTorch's quantisation of exported graphs makes."""
    with converting():
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
    step("executorch: exporting the network as a graph")
    with converting():
        exported = torch.export.export(plain(network, x), (x,), strict=False).module()
        quantised = pt2e.prepare_pt2e(copy.deepcopy(exported), quantizer)
    step(f"executorch: measuring ranges on {len(images)} images, for 8 bits")
    with torch.no_grad():
        for image in progress(images, "measuring ranges", "images", hide=not is_shown()):
            quantised(image)
    with converting():
        quantised = pt2e.convert_pt2e(quantised)
        graph = torch.export.export(quantised, (x,), strict=False)
    told = _lower(graph, path)
    bits = {node.name for node in quantised.graph.nodes if node.target in kinds and _is_quantised(node.args[1])}
    layers = {node.name: node for node in exported.graph.nodes if node.name in bits}
    names = {name: _layer(node.args[1]) for name, node in layers.items()}
    step(f"executorch: comparing the layers in 8 bits with those in float, on {len(images[:COMPARED])} images")
    errors = errors_of(
        zip(_graph_outputs(exported, names, images), _graph_outputs(quantised, names, images), strict=True)
    )
    rest = [node for node in exported.graph.nodes if node.op == "call_function" and node.name not in bits]
    left = [str(node.target).removeprefix("aten.").partition(".")[0] for node in rest]
    return told | {"int8": told_of(network, images, errors, (kind for kind in left if kind not in ATEN_MOVES))}


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


# ExecuTorch 1.5.1: the file was as large as one in 32 bits, and XNNPACK left every GELU, in 37 regions instead of one.
LACKS = {"fp16": "XNNPACK stores weights of 16 bits in 32, and leaves GELU to slow code"}

FORMAT = Format(".pte", "executorch", ("executorch",), (), _write, _run, int8=_write_int8, lacks=LACKS)
