"""The formats that `export` writes: for each what it is called, what it needs, how it is written and how it is run."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ._extras import require
from ._plain import plain
from ._rewrite import PooledSlices, simplified, split, transposeless

__all__ = ["FORMATS", "INPUT", "OUTPUT", "Format", "Run", "lower", "quiet"]

Run = Callable[[Any], Any]  # images `(B, C, H, W)` as a float32 array to logits `(B, num_classes)` as one

INPUT, OUTPUT = "images", "logits"


class Format(NamedTuple):
    """How a format is written and run.

    `write` puts a network for images like `x` into a file, and returns what else is to be told of it; `dynamic` says
    which of `batch` and `size` may vary. `run` returns what runs the file, None where nothing here can; it takes
    a number of threads, 0 for the runtime's own choice.
    """

    suffix: str
    extra: str
    modules: tuple[str, ...]  # what must be installed
    dynamic: tuple[str, ...]  # what it can leave open
    write: Callable[[nn.Module, Tensor, Path, Sequence[str]], dict[str, Any] | None]
    run: Callable[..., Run] | None
    beside: tuple[str, ...] = ()  # endings of files that come with it
    torch_below: str = ""  # the first version of torch that is too new for it


def _to_onnx(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    axes = {0: "batch"} if "batch" in dynamic else {}
    sides = {2: "height", 3: "width"} if "size" in dynamic else {}
    with quiet():
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


def _run_onnx(path: Path, threads: int = 0) -> Run:
    library = require("onnxruntime", "onnx")
    options = library.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads take the next one's cores
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def _to_openvino(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("openvino", "openvino")
    batch, channels, height, width = x.shape
    sides = [-1, -1] if "size" in dynamic else [height, width]
    with quiet():
        shape = [-1 if "batch" in dynamic else batch, channels, *sides]
        converted = library.convert_model(transposeless(network), example_input=x, input=shape)
    converted.input(0).get_tensor().set_names({INPUT})
    converted.output(0).get_tensor().set_names({OUTPUT})
    library.save_model(converted, str(path), compress_to_fp16=False)


def _run_openvino(path: Path, threads: int = 0, precision: str = "f32") -> Run:
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


def _to_executorch(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> dict[str, Any]:
    with quiet():
        exported = torch.export.export(plain(network, x), (x,), strict=False)
    return lower(exported, path)


def lower(exported: Any, path: Path) -> dict[str, Any]:
    """Write what torch.export returned for ExecuTorch, and return what is to be told of it."""
    exir = require("executorch.exir", "executorch")
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    with quiet():
        lowered = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner.XnnpackPartitioner()])
        told = _delegation(lowered.exported_program().graph_module)
        program = lowered.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)
    return {"xnnpack": told}


def _delegation(graph: Any) -> dict[str, Any]:
    """Return how many regions of a graph XNNPACK takes, and the operators that it leaves, with how many of each."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    names = [target.removeprefix("<EdgeOpOverload: ").partition(">")[0] for target in targets]
    left = Counter(name for name in names if "call_delegate" not in name and "getitem" not in name)
    return {"regions": sum("call_delegate" in name for name in names), "left": dict(left)}


def _run_executorch(path: Path, threads: int = 0) -> Run:
    if threads:
        require("executorch.extension.pybindings.portable_lib", "executorch")._unsafe_reset_threadpool(threads)
    runtime = require("executorch.runtime", "executorch").Runtime.get()
    method = runtime.load_program(path).load_method("forward")

    def run(images: Any) -> Any:
        return method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0].numpy().copy()

    return run


def _to_coreml(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("coremltools", "coreml")
    with quiet():
        exported = torch.export.export(plain(network, x), (x,), strict=False).run_decompositions({})
        converted = library.convert(
            exported,
            inputs=[library.TensorType(name=INPUT, shape=tuple(x.shape))],
            outputs=[library.TensorType(name=OUTPUT)],
            convert_to="mlprogram",
            compute_precision=library.precision.FLOAT32,
            minimum_deployment_target=library.target.iOS16,
        )
        converted.save(str(path))
        told = library.models.MLModel(str(path), skip_model_load=True).get_spec().description
    given, result = told.input[0], told.output[0]
    found = given.name, list(given.type.multiArrayType.shape), result.name
    if found != (INPUT, list(x.shape), OUTPUT):
        raise ValueError(f"coremltools wrote input, shape and output {found}, not {(INPUT, list(x.shape), OUTPUT)}")


def _to_ncnn(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("pnnx", "ncnn")
    network = split(network)
    with quiet(), PooledSlices():
        library.export(network, str(path.with_suffix(".pt")), (x,), fp16=False)
    layers = path.with_suffix(".ncnn.param").read_text(encoding="utf-8").splitlines()[2:]
    unknown = sorted(
        {layer.split()[0] for layer in layers if "." in layer.split()[0]}
    )  # torch's names, left as they were
    if unknown:
        raise ValueError(f"ncnn has no {', '.join(unknown)} as this network uses it")
    for suffix in (".param", ".bin"):
        path.with_suffix(f".ncnn{suffix}").replace(path.with_suffix(suffix))


def _run_ncnn(path: Path, threads: int = 0) -> Run:
    library = require("ncnn", "ncnn")
    network = library.Net()
    network.opt.num_threads = threads or network.opt.num_threads
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):  # or it computes in 16 bits
        setattr(network.opt, f"use_{option}", False)
    network.load_param(str(path))
    network.load_model(str(path.with_suffix(".bin")))

    def run(images: Any) -> Any:
        extractor = network.create_extractor()
        extractor.input("in0", library.Mat(images[0]).clone())
        return np.array(extractor.extract("out0")[1])[None]

    return run


def _to_litert(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("litert_torch", "litert")
    with quiet():
        library.convert(plain(network, x), (x,)).export(str(path))


def _run_litert(path: Path, threads: int = 0) -> Run:
    library = require("ai_edge_litert.interpreter", "litert")
    interpreter = library.Interpreter(model_path=str(path), num_threads=threads or None)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Any) -> Any:
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Keep converters' warnings and log lines, of which each has its own, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {
    "onnx": Format(".onnx", "onnx", ("onnx", "onnxruntime"), ("batch", "size"), _to_onnx, _run_onnx),
    "openvino": Format(".xml", "openvino", ("openvino",), ("batch", "size"), _to_openvino, _run_openvino, (".bin",)),
    "executorch": Format(".pte", "executorch", ("executorch",), (), _to_executorch, _run_executorch),
    "coreml": Format(".mlpackage", "coreml", ("coremltools",), (), _to_coreml, None),
    "litert": Format(
        ".tflite", "litert", ("litert_torch", "ai_edge_litert"), (), _to_litert, _run_litert, torch_below="2.15"
    ),
    "ncnn": Format(".param", "ncnn", ("pnnx", "ncnn"), (), _to_ncnn, _run_ncnn, (".bin",)),
}
