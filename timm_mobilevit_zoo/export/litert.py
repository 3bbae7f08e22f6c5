"""LiteRT, TensorFlow Lite before, on Android."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import Format, Run
from .plain import plain

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("litert_torch", "litert")
    step("litert: converting the network")
    with converting():
        library.convert(plain(network, x), (x,)).export(str(path))


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


FORMAT = Format(".tflite", "litert", ("litert_torch", "ai_edge_litert"), (), _write, _run, torch_below="2.15")
