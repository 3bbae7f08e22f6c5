"""OpenVINO, on Intel's and other processors."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import INPUT, OUTPUT, Format, Run
from .rewrite import transposeless

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("openvino", "openvino")
    batch, channels, height, width = x.shape
    sides = [-1, -1] if "size" in dynamic else [height, width]
    step("openvino: converting the network")
    with converting():
        shape = [-1 if "batch" in dynamic else batch, channels, *sides]
        converted = library.convert_model(transposeless(network), example_input=x, input=shape)
    converted.input(0).get_tensor().set_names({INPUT})
    converted.output(0).get_tensor().set_names({OUTPUT})
    library.save_model(converted, str(path), compress_to_fp16=False)


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


FORMAT = Format(".xml", "openvino", ("openvino",), ("batch", "size"), _write, _run, (".bin",))
