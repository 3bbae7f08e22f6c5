"""What the processor reaches at best: dense convolutions and matrix products, and copies of memory.

A network's rate means something beside these alone: processors differ by orders of magnitude, and a machine that is
shared or throttled from one minute to the next. So they are measured in the run that measures the networks.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from timm_mobilevit_zoo.fusion.prepack import packed

from .machine import seconds_of

__all__ = ["best_of", "copy_rate", "limits"]

CPU = torch.device("cpu")
LONG = 0.03  # seconds that a shape is computed for
LEAST = 3  # calls of it, at least
# Kernel's side, channels, map's side: layers as these networks have them, 0.1 to 0.5 GFLOP each.
CONVS = ((1, 64, 56), (1, 128, 56), (1, 256, 28), (1, 512, 14), (3, 64, 56), (3, 128, 28), (3, 256, 14), (3, 512, 14))
PRODUCTS = (256, 512, 1024)  # sides of square matrices
COPIES = (0.25, 1, 4, 16, 256)  # MiB that a copy reads and writes: the last one's is beyond caches
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def limits(dtypes: tuple[str, ...] = ("fp32",)) -> dict[str, Any]:
    """Return the best rates of the CPU, with the threads that torch has: one to two seconds' work.

    Each layer is computed as torch computes it, and with weights laid out for oneDNN where torch has that: the faster
    counts. In bfloat16 this is measured where oneDNN takes it. In 8 bits nothing is: here these run in ONNX Runtime,
    whose rate torch's would not bound.

    Args:
        dtypes: `fp32` or `bf16`; others are left out.

    Returns:
        `gflop_s`, for each type the best rate of a `convolution` and of a `product`; and `copy_gb_s`, pairs of the MiB
        that a copy reads and writes and its rate in GB/s. A multiply-add is two operations.
    """
    taken = [name for name in dtypes if name in TYPES and _takes(name)]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        rates = {name: {what: _best_rate(work(TYPES[name])) for what, work in _WORK.items()} for name in taken}
        copies = [[mib, round(_copy_rate(mib), 1)] for mib in COPIES]
    return {"gflop_s": rates, "copy_gb_s": copies}


def best_of(found: dict[str, Any] | None, dtype: str) -> float | None:
    """Return the best rate of dense layers in a type, in GFLOP/s; None where it was not measured."""
    rates = found["gflop_s"].get(dtype) if found else None
    return max(rates.values()) if rates else None


def copy_rate(found: dict[str, Any], size: float) -> float:
    """Return the rate of copies of a size, in GB/s: of the smallest measured that is as large, so of its cache.

    Args:
        found: What `limits` returned.
        size: Bytes read and written.
    """
    pairs = found["copy_gb_s"]
    return next((rate for mib, rate in pairs if mib * 2**20 >= size), pairs[-1][1])


def _takes(dtype: str) -> bool:
    if dtype == "fp32":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _convolutions(dtype: torch.dtype) -> Iterator[tuple[float, Callable[[], Any]]]:
    """Yield operations, in 10^9, and a call that computes them."""
    for kernel, channels, side in CONVS:
        layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, device="cpu", dtype=dtype)
        x = torch.randn(1, channels, side, side, device="cpu", dtype=dtype)
        gflop = 2e-9 * layer.weight.numel() * side * side
        for call in _ways(layer, x.contiguous(memory_format=torch.channels_last)):
            yield gflop, call


def _products(dtype: torch.dtype) -> Iterator[tuple[float, Callable[[], Any]]]:
    for side in PRODUCTS:
        layer = nn.Linear(side, side, device="cpu", dtype=dtype)
        x = torch.randn(side, side, device="cpu", dtype=dtype)
        for call in _ways(layer, x):
            yield 2e-9 * side**3, call


def _ways(layer: nn.Module, x: torch.Tensor) -> Iterator[Callable[[], Any]]:
    yield lambda: layer(x)
    if torch.backends.mkldnn.is_available() and (laid_out := packed(layer, None)) is not None:
        yield lambda: laid_out(x)


_WORK: dict[str, Callable[[torch.dtype], Iterator[tuple[float, Callable[[], Any]]]]] = {
    "convolution": _convolutions,
    "product": _products,
}


def _best_rate(work: Iterator[tuple[float, Callable[[], Any]]]) -> float:
    return round(max(gflop / _least_seconds(call) for gflop, call in work), 1)


def _copy_rate(mib: float) -> float:
    source = torch.zeros(int(mib * 2**20 / 8), device="cpu")  # 4 bytes each, read and written
    target = torch.empty_like(source)
    return mib * 2**20 / 1e9 / _least_seconds(lambda: target.copy_(source))


def _least_seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest call, of as many as the time allows: what else runs only ever adds to it."""
    call()
    least, count, began = float("inf"), 0, time.perf_counter()
    while count < LEAST or time.perf_counter() - began < LONG:
        least = min(least, seconds_of(call, 1, CPU))
        count += 1
    return max(least, 1e-9)  # where a clock is too coarse to see it
