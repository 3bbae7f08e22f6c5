"""ExecuTorch with what computes on GPUs or Apple's Neural Engine: files that are written here and run elsewhere."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.progress import step
from timm_mobilevit_zoo.common.quiet import converting

from .executorch import lower
from .format import Precision, Write
from .plain import plain

__all__ = ["BACKENDS"]


def _write(network: nn.Module, x: Tensor, path: Path, dynamic: Sequence[str], backend: str) -> dict[str, Any]:
    step("executorch: exporting the network as a graph")
    with converting():
        graph = torch.export.export(plain(network, x, in_steps=backend == "coreml"), (x,), strict=False)
    told = lower(graph, path, _PARTITIONERS[backend], backend)
    if not told["regions"]:
        raise ValueError(f"{backend} takes nothing of this network")
    return {backend: told}


def _coreml() -> Any:
    """Return what takes operations for Core ML, in 16 bits: the Neural Engine computes in no others."""
    library = require("coremltools", "coreml")
    compiler = require("executorch.backends.apple.coreml.compiler", "executorch").CoreMLBackend
    specs = compiler.generate_compile_specs(
        compute_precision=library.precision.FLOAT16, minimum_deployment_target=library.target.iOS16
    )
    return require("executorch.backends.apple.coreml.partition", "executorch").CoreMLPartitioner(compile_specs=specs)


def _vulkan() -> Any:
    return require("executorch.backends.vulkan.partitioner.vulkan_partitioner", "executorch").VulkanPartitioner()


_PARTITIONERS = {"coreml": _coreml, "vulkan": _vulkan}
BACKENDS: dict[str, tuple[Precision, Write]] = {
    "coreml": ("fp16", partial(_write, backend="coreml")),
    "vulkan": ("fp32", partial(_write, backend="vulkan")),
}
