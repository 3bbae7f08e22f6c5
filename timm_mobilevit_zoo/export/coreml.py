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

from .format import INPUT, OUTPUT, Format
from .plain import plain

__all__ = ["FORMAT"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], half: bool = False) -> dict[str, Any]:
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
        )
        converted.save(str(path))
        spec = library.models.MLModel(str(path), skip_model_load=True).get_spec()
    given, result = spec.description.input[0], spec.description.output[0]
    found = given.name, list(given.type.multiArrayType.shape), result.name
    if found != (INPUT, list(x.shape), OUTPUT):
        raise ValueError(f"coremltools wrote input, shape and output {found}, not {(INPUT, list(x.shape), OUTPUT)}")
    return _told(spec)


def _told(spec: Any) -> dict[str, Any]:
    """Return how many results of a program are of each type, and how many casts there are between them.

    Two are the network's own: its images are in 32 bits, and its logits.
    """
    block = spec.mlProgram.functions["main"].block_specializations
    operations = [one for each in block.values() for one in each.operations if one.type != "const"]
    casts = sum(one.type == "cast" for one in operations)
    names = spec.mlProgram.DESCRIPTOR.file.pool.FindEnumTypeByName("CoreML.Specification.MILSpec.DataType")
    types = Counter(
        names.values_by_number[result.type.tensorType.dataType].name.lower()
        for one in operations
        if one.type != "cast"
        for result in one.outputs
    )
    return {"mlprogram": {"types": dict(types.most_common()), "casts": casts}}


FORMAT = Format(
    ".mlpackage",
    "coreml",
    ("coremltools",),
    (),
    _write,
    None,
    fp16=partial(_write, half=True),
    precision="fp16",
)
