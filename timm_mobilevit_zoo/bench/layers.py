"""Where the time of a network goes, by kind of layer, and how far each kind is from what the machine could do.

Each call of an operator is timed by torch's profiler, and bounded by what it cannot do without: its operations at the
best rate of dense layers, or the bytes of its tensors at the rate of a copy of that size, whichever takes longer.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .limits import CPU, best_of, copy_rate
from .machine import seconds_of

__all__ = ["KINDS", "TITLES", "aligned", "by_kind", "layers_cells", "layers_text", "profiling"]

CALLS = 7  # that are profiled
DENSE, DEPTHWISE, MOVES, OTHER = "dense layers and products", "depthwise convolution", "elementwise and moves", "other"
TITLES = ("calls", "ms", "of the time", "GFLOP", "MB", "bound (ms)", "of the bound")
MARK = "timm_mobilevit_zoo: operator"
KINDS = (DENSE, DEPTHWISE, "norm", "softmax", "activation", MOVES, OTHER)
_PRODUCTS = {"linear", "_linear_pointwise", "addmm", "baddbmm", "bmm", "einsum", "matmul", "mm"}
_ACTIVATIONS = {
    "celu",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
}
_MOVES = {
    "_to_copy",
    "abs",
    "add",
    "cat",
    "clamp",
    "clone",
    "concat",
    "constant_pad_nd",
    "contiguous",
    "copy",
    "copy_",
    "div",
    "exp",
    "expand",
    "flip",
    "gather",
    "index",
    "index_select",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pow",
    "reciprocal",
    "repeat",
    "repeat_interleave",
    "reshape",
    "roll",
    "rsqrt",
    "rsub",
    "sqrt",
    "stack",
    "sub",
    "to",
    "tile",
    "where",
}


class Work(NamedTuple):
    """What one call of an operator is and needs."""

    kind: str
    flop: float
    size: float  # bytes of what it reads and writes


@contextmanager
def profiling(**options: Any) -> Iterator[Any]:
    """Profile what the CPU does meanwhile; what torch's profiler writes into the terminal is left out."""
    level = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = level or "99"
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **options) as profile:
            yield profile
    finally:
        if level is None:
            del os.environ["KINETO_LOG_LEVEL"]


def by_kind(call: Callable[[], Any], found: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return where the time of a call goes.

    Args:
        call: Runs a network on a CPU, in evaluation, operator by operator.
        found: What `limits` returned.
        dtype: Type whose rate bounds dense layers: fp32 where that one's was not measured.

    Returns:
        `ms` of the whole, when nobody looks; and in `kinds`, for each of `KINDS` that occurs, `calls`, `ms`, `gflop`,
        `mb` (bytes of tensors read and written, in 10^6) and `bound_ms`. What these leave of the whole is Python and
        the way to the operators. Times are the least of a few calls: what else the machine does only ever adds to them.
    """
    whole, works, times = _observed(call)
    rate = best_of(found, dtype) or best_of(found, "fp32") or math.inf
    table: dict[str, Any] = {}
    for kind in KINDS:
        own = [(work, seconds) for work, seconds in zip(works, times, strict=True) if work.kind == kind]
        if own:
            bounds = [max(w.flop / rate, w.size / copy_rate(found, w.size)) / 1e9 for w, _ in own]
            table[kind] = {
                "calls": len(own),
                "ms": _digits(1000 * sum(seconds for _, seconds in own)),
                "gflop": _digits(sum(w.flop for w, _ in own) / 1e9),
                "mb": _digits(sum(w.size for w, _ in own) / 1e6),
                "bound_ms": _digits(1000 * sum(bounds)),
            }
    return {"ms": _digits(1000 * whole), "kinds": table}


def layers_text(name: str, found: dict[str, Any]) -> list[str]:
    """Return lines that tell what `by_kind` found.

    Args:
        name: The candidate's.
        found: What `by_kind` returned.
    """
    return aligned([[f"{name}, by kind of layer", *TITLES], *layers_cells(found)])


def layers_cells(found: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table that tells what `by_kind` found, below `TITLES`."""
    whole, rows = found["ms"], []
    for kind, row in found["kinds"].items():
        reached = f"{100 * row['bound_ms'] / row['ms']:.0f}%" if row["ms"] else ""
        times = [f"{row['ms']:.3f}", f"{100 * row['ms'] / whole:.0f}%"]
        numbers = [f"{row['gflop']:.3f}", f"{row['mb']:.1f}", f"{row['bound_ms']:.3f}", reached]
        rows.append([kind, str(row["calls"]), *times, *numbers])
    rest = whole - sum(row["ms"] for row in found["kinds"].values())
    bound = sum(row["bound_ms"] for row in found["kinds"].values())
    rows.append(["between layers", "", f"{rest:.3f}", f"{100 * rest / whole:.0f}%", "", "", "", ""])
    return [*rows, ["all", "", f"{whole:.3f}", "", "", "", f"{bound:.3f}", f"{100 * bound / whole:.0f}%"]]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines in which columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _observed(call: Callable[[], Any]) -> tuple[float, list[Work], list[float]]:
    """Return the seconds of a call, what each of its operators is, and the seconds of each.

    Calls that are watched and others take turns, so that what else the machine does meets both alike.
    """
    call()
    wholes, rounds, works = [], [], []
    for _ in range(CALLS):
        wholes.append(seconds_of(call, 1, CPU))
        with profiling() as profile, _Watch() as watch:
            call()
        events: Any = profile.profiler.kineto_results.events()
        rounds.append(_inner_seconds(sorted(events, key=lambda event: (event.start_ns(), -event.duration_ns()))))
        works = watch.works
    return min(wholes), works, [min(column) for column in zip(*rounds, strict=True)]


def _inner_seconds(events: Sequence[Any]) -> list[float]:
    """Return the seconds of the operator in each of the ranges that `_Watch` marks, which itself takes time."""
    found = []
    for place, event in enumerate(events):
        if event.name() == MARK:
            end = event.start_ns() + event.duration_ns()
            inner = events[place + 1] if place + 1 < len(events) else event
            is_in = inner.start_ns() + inner.duration_ns() <= end
            found.append((inner if is_in else event).duration_ns() / 1e9)
    return found


class _Watch(TorchDispatchMode):
    """Marks the calls of operators in this thread for the profiler, and tells what they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.works: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.profiler.record_function(MARK):
            out = func(*args, **(kwargs or {}))
        self.works.append(_work(func, args, kwargs or {}, out))
        return out


def _work(func: Any, args: Any, kwargs: Any, out: Any) -> Work:
    name = func._schema.name.partition("::")[2].rstrip("_")
    read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    written = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
    known = {_storage(one) for one in read}
    is_view = not func._schema.is_mutable and all(_storage(one) in known for one in written)
    size = 0.0 if is_view or not written else float(sum(map(_size, (*read, *written))))
    return Work(_kind(name, read, size), _flop(name, args, read, written), size)


def _storage(tensor: Tensor) -> int:
    return id(tensor) if tensor.layout != torch.strided else tensor.untyped_storage().data_ptr()


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements, each once where it is expanded."""
    if tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    sides = (side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sides) * tensor.element_size()


def _kind(name: str, read: Sequence[Tensor], size: float) -> str:
    if "conv" in name and len(read) > 1:
        return DEPTHWISE if _groups(*read[:2]) > 1 and read[1].shape[1] == 1 else DENSE
    if name in _PRODUCTS or "scaled_dot_product" in name:
        return DENSE
    for kind in ("softmax", "norm"):
        if kind in name:
            return kind
    if name in _ACTIVATIONS:
        return "activation"
    return MOVES if name in _MOVES or not size else OTHER


def _groups(x: Tensor, weight: Tensor) -> int:
    return x.shape[1] // max(weight.shape[1], 1)


def _flop(name: str, args: Any, read: Sequence[Tensor], written: Sequence[Tensor]) -> float:
    """Return the operations of a layer that multiplies and adds, two for each of these; 0 for another."""
    if "scaled_dot_product" in name:
        query, key, value = read[:3]
        return 2.0 * query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
    if "conv" in name and len(read) > 1:
        each = read[1].numel() / read[1].shape[0]
        return 2.0 * each * (read[0] if "transpose" in name else written[0]).numel()
    if name == "einsum":
        letters = dict(zip("".join(args[0].replace(" ", "").partition("->")[0].split(",")), _sides(read), strict=True))
        return 2.0 * math.prod(letters.values())
    if name in _PRODUCTS:
        left = read[1] if name in ("addmm", "baddbmm") else read[0]
        return 2.0 * left.shape[-1] * written[0].numel()
    return 0.0


def _sides(tensors: Sequence[Tensor]) -> list[int]:
    return [side for tensor in tensors for side in tensor.shape]
