"""What a network computes for one known image: eight numbers that tell whether it is still the same network.

The image and, where there are no trained weights, the weights come from `numpy.random.RandomState`, whose stream NumPy
has frozen: they are the same on every version of NumPy, torch and timm.
"""

import math
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "COUNT",
    "PROBE_GMACS",
    "PROBE_SIDE",
    "SEED",
    "affordable",
    "gmacs",
    "matches",
    "probe",
    "seed_weights",
    "seeded",
]

SEED = 0
COUNT = 8
PROBE_SIDE = 384  # pixels
PROBE_GMACS = 20.0  # twice the dearest network here at that size: seconds on one core


def probe(model: nn.Module, input_size: Sequence[int]) -> list[float]:
    """Return the first eight logits of the seeded image, rounded to six digits.

    The image has standard normal values, `RandomState(SEED).standard_normal((1, *input_size))` as float32: what it is
    after normalisation. It is the output's first values that are taken, in memory order: of a model without classes the
    features, and fewer where there are fewer.

    Args:
        model: In float32, on the CPU. It is put into evaluation mode.
        input_size: Channels, height and width of the image.

    Raises:
        ValueError: Where the output is not finite.
    """
    image = np.random.RandomState(SEED).standard_normal((1, *input_size))
    with torch.inference_mode():
        values = model.eval()(torch.tensor(image, dtype=torch.float32)).flatten()[:COUNT].tolist()
    if not all(map(math.isfinite, values)):
        raise ValueError(f"the seeded image's logits are not finite: {values}")
    return [float(f"{value:.6g}") for value in values]


def matches(found: Sequence[float], expected: Sequence[float], tolerance: float = 1e-3) -> bool:
    """Tell whether two probes agree as far as CPUs, thread counts and versions of torch do.

    Rounding errors grow with the numbers that are summed, not with how much the logits differ from each other: so the
    measure is the expected logits' root mean square. On seeded weights torch 2.4 and 2.15, vectorised or not, with
    fused attention or not, agree within 1.1e-5 of it; trained weights may be less even.

    Args:
        found: Logits.
        expected: Logits.
        tolerance: How far apart they may be, as a part of the root mean square; 1e-6 more where they are zero.
    """
    if len(found) != len(expected):
        return False
    allowed = 1e-6 + tolerance * math.sqrt(sum(value * value for value in expected) / max(len(expected), 1))
    return all(abs(a - b) <= allowed for a, b in zip(found, expected, strict=True))


def gmacs(model: nn.Module, input_size: Sequence[int]) -> float:
    """Return the multiply-adds of one image, in 10^9.

    Args:
        model: On the meta device: nothing is computed.
        input_size: Channels, height and width of the image.
    """
    image = torch.zeros(1, *input_size, device="meta")
    with torch.no_grad(), _PlainAttention(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return counter.get_total_flops() / 2 / 1e9


class _PlainAttention(TorchFunctionMode):
    """While this is open, in this thread, fused attention is its two matrix products, which every torch counts."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs or {})
        names = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return names["query"] @ names["key"].transpose(-2, -1) @ names["value"]


def affordable(model: nn.Module, input_size: Sequence[int]) -> bool:
    """Tell whether a probe costs no more than `PROBE_GMACS` at no more than `PROBE_SIDE` pixels a side.

    Args:
        model: On the meta device.
        input_size: Channels, height and width of the image.
    """
    return max(input_size[1:]) <= PROBE_SIDE and gmacs(model, input_size) <= PROBE_GMACS


def seeded(key: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
    """Return a tensor that depends on its name and shape alone, by the rule of the recordings in `tests/golden`.

    Args:
        key: Name in a state dict.
        shape: The tensor's.
        gain: Factor of the weights of linear layers and convolutions.
    """
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    x: Any = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) == 1:
        x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    else:
        x = gain * x / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(x, dtype=torch.float32)


def seed_weights(model: nn.Module) -> nn.Module:
    """Give each tensor of a model's state dict the values that `seeded` draws for its name, and return the model.

    The gain is 1, or the `seeded_gain` in the file of a family whose numbers would overflow.
    """
    gain = getattr(sys.modules[type(model).__module__], "seeded_gain", 1.0)
    model.load_state_dict({key: seeded(key, tuple(value.shape), gain) for key, value in model.state_dict().items()})
    return model
