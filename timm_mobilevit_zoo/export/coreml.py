"""Core ML, on Apple's systems, where alone its files can be run."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from . import mil
from .format import INPUT, OUTPUT, Format
from .neural import leaving
from .plain import plain

__all__ = ["FORMAT"]


def _write(
    network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], half: bool = False, eighth: bool = False
) -> dict[str, Any]:
    library = require("coremltools", "coreml")
    step("coreml: converting the network")
    with converting():
        exported = torch.export.export(plain(network, x, in_steps=half), (x,), strict=False).run_decompositions({})
        converted = library.convert(
            exported,
            inputs=[library.TensorType(name=INPUT, shape=tuple(x.shape), dtype=np.float32)],
            outputs=[library.TensorType(name=OUTPUT, dtype=np.float32)],
            convert_to="mlprogram",
            compute_precision=library.precision.FLOAT16 if half else library.precision.FLOAT32,
            minimum_deployment_target=library.target.iOS16,
            skip_model_load=True,
        )
    if eighth:
        step("coreml: rounding weights to 8 bits")
        with converting():
            converted = _in_8_bits(converted)
    with converting():
        converted.save(str(path))
    program = mil.Program(path)
    given, result = program.spec.description.input[0], program.spec.description.output[0]
    found = given.name, list(given.type.multiArrayType.shape), result.name
    if found != (INPUT, list(x.shape), OUTPUT):
        raise ValueError(f"coremltools wrote input, shape and output {found}, not {(INPUT, list(x.shape), OUTPUT)}")
    return _told(program)


# What is computed of weights. Others, such as embeddings of positions, are added to maps and stay in 16 bits.
LAYERS = ("conv", "conv_transpose", "linear", "matmul")


def _in_8_bits(converted: Any) -> Any:
    """Return a program with the weights of layers in 8 bits, symmetric, a scale for each channel that they compute."""
    tools = require("coremltools.optimize.coreml", "coreml")
    config = tools.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    return tools.linear_quantize_weights(
        converted, tools.OptimizationConfig(op_type_configs=dict.fromkeys(LAYERS, config))
    )


def _write_int8(
    network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], images: Sequence[Tensor]
) -> dict[str, Any]:
    """Write weights in 8 bits; all else is computed in 16.

    coremltools has 8 bits for what layers hand on, too, but measures ranges by Core ML itself, which needs macOS.
    """
    told = _write(network, x, path, dynamic, half=True, eighth=True)
    constants = told["mlprogram"]["weights_in_8_bits"]
    if not constants:
        raise ValueError("coremltools left every weight in 16 bits: the network has none large enough for 8")
    return told | {"int8": {"weights_only": True, "weights": constants}}


def _told(program: mil.Program) -> dict[str, Any]:
    """Return how many results of a program are of each type, how many casts there are, and what weights are in 8 bits.

    Two casts are the network's own: its images are in 32 bits, and its logits.
    """
    weights, operations = (
        [one for one in program.operations if one.type.startswith("constexpr_") is constant]
        for constant in (True, False)
    )
    names = program.spec.mlProgram.DESCRIPTOR.file.pool.FindEnumTypeByName("CoreML.Specification.MILSpec.DataType")
    types = Counter(
        names.values_by_number[result.type.tensorType.dataType].name.lower()
        for one in operations
        if one.type != "cast"
        for result in one.outputs
    )
    told = {
        "types": dict(types.most_common()),
        "casts": sum(one.type == "cast" for one in operations),
        "weights_in_8_bits": len(weights),
        "leaves_neural_engine": leaving(program),
    }
    if unknown := program.unknown():
        told["not_compared"] = f"{', '.join(unknown)} is not defined here"
    return {"mlprogram": told}


FORMAT = Format(
    ".mlpackage",
    "coreml",
    ("coremltools",),
    (),
    _write,
    mil.run,
    fp16=partial(_write, half=True),
    int8=_write_int8,
    int8_in_16=True,
    calibrated=False,
    precision="fp16",
    stands_in=True,
)
