"""ncnn, on phones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import Format, Run
from .rewrite import PooledSlices, split

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], half: bool = False) -> None:
    """Write weights in 32 bits, or in 16: in how many is computed, an app chooses."""
    library = require("pnnx", "ncnn")
    network = split(network)
    step("ncnn: pnnx converts the network")
    with converting(), PooledSlices():
        library.export(network, str(path.with_suffix(".pt")), (x,), fp16=half)
    layers = path.with_suffix(".ncnn.param").read_text(encoding="utf-8").splitlines()[2:]
    unknown = sorted(
        {layer.split()[0] for layer in layers if "." in layer.split()[0]}
    )  # torch's names, left as they were
    if unknown:
        raise ValueError(f"ncnn has no {', '.join(unknown)} as this network uses it")
    for suffix in (".param", ".bin"):
        path.with_suffix(f".ncnn{suffix}").replace(path.with_suffix(suffix))


def _run(path: Path, threads: int = 0) -> Run:
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


# November 2026: the wheels hold a Python module and the converter, and Debian has no package of ncnn's tools.
LACKS = {"int8": "its tools for that, ncnn2table and ncnn2int8, come with neither its wheel nor pnnx's"}

FORMAT = Format(
    ".param", "ncnn", ("pnnx", "ncnn"), (), _write, _run, (".bin",), fp16=partial(_write, half=True), lacks=LACKS
)
