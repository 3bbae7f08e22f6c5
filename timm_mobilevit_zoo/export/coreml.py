"""Core ML, on Apple's systems, where alone its files can be run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .format import INPUT, OUTPUT, Format
from .plain import plain

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str]) -> None:
    library = require("coremltools", "coreml")
    step("coreml: converting the network")
    with converting():
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


FORMAT = Format(".mlpackage", "coreml", ("coremltools",), (), _write, None)
