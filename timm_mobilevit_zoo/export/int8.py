"""What networks in 8 bits tell, whose convolutions and linear layers compute so, with ranges measured on images.

All else stays in float: it has hardly any weights to make smaller, and was measured to cost accuracy in 8 bits (see
docs/export.md). Most of all softmax, which ONNX Runtime computes in 8 bits where it lies between layers that are, and
over a single position it then returns 0. So the products of two maps around it stay in float as well.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["CALIBRATION", "COMPARED", "errors_of", "told_of"]

CALIBRATION = 128  # images, at most
COMPARED = 8  # of them, on which each layer is compared with float's
WHY = "it has hardly any weights, and in 8 bits it costs accuracy, softmax and the products around it most"


def told_of(
    network: nn.Module, images: Sequence[Tensor], errors: dict[str, float], left: Iterable[str]
) -> dict[str, Any]:
    """Return what the manifest says of 8 bits."""
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return {
        "images": len(images),
        "layers": [{"name": name, "error": error} for name, error in ordered],
        "float": dict(Counter(left).most_common()),
        "why_float": WHY,
        "float_weights_bytes": sum(value.numel() * value.element_size() for value in network.state_dict().values()),
    }


def errors_of(pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Return how far each layer's output is from float's, as a part of it, both as root mean squares.

    Args:
        pairs: For each image the outputs of all layers, by name: those in float, and those in 8 bits.
    """
    power: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    for right, found in pairs:
        for name, value in right.items():
            power[name] += float(np.square(value).sum())
            noise[name] += float(np.square(found[name] - value).sum())
    return {name: (noise[name] / power[name]) ** 0.5 if power[name] else float(noise[name] > 0) for name in power}
