"""MNN, on phones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from . import onnx
from .format import INPUT, OUTPUT, Format, Run

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], options: Sequence[str] = ()) -> None:
    whole = path.with_suffix(".onnx")
    onnx.FORMAT.write(network, x, whole, dynamic)
    step("mnn: converting the network")
    # The package's own Python module for this installs another package and reports each use to a server of its makers.
    tools = require("_tools", "mnn")
    words = ["mnnconvert", "-f", "ONNX", "--modelFile", str(whole), "--MNNModel", str(path), "--bizCode", "zoo"]
    with converting():
        tools.mnnconvert([*words, *options])
    whole.unlink()
    if not path.is_file():
        raise ValueError("MNN's converter wrote no file; `verbose` shows what it says")


def _write_int8(
    network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]
) -> dict[str, Any]:
    """Write weights in 8 bits, a range for each channel; all else is computed in float, or as an app chooses.

    MNN 3.6's quantiser of what layers hand on ends in a fault for some networks and costs others accuracy: see
    docs/export.md.
    """
    _write(network, x, path, dynamic, ["--weightQuantBits", "8"])
    return {"int8": {"weights_only": True}}


def _run(path: Path, threads: int = 0) -> Run:
    require("MNN", "mnn")
    values, networks = require("MNN.expr", "mnn"), require("MNN.nn", "mnn")
    config = {"backend": "CPU", "precision": "high", "numThread": threads or 4}
    with converting():
        runtime = networks.create_runtime_manager((config,))
        network = networks.load_module_from_file(str(path), [INPUT], [OUTPUT], runtime_manager=runtime)

    def run(images: Any) -> Any:
        given = values.const(np.ascontiguousarray(images), list(images.shape), values.NCHW)
        (found,) = network.forward([given])
        return np.array(values.convert(found, values.NCHW).read()).reshape(len(images), -1)

    return run


FORMAT = Format(
    ".mnn",
    "mnn",
    ("MNN", "onnx"),
    ("batch", "size"),
    _write,
    _run,
    fp16=partial(_write, options=["--fp16"]),
    int8=_write_int8,
    calibrated=False,
)
