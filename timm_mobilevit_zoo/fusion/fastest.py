"""Which form of a fused network runs fastest here: tried once, and remembered.

What is remembered is for one processor, number of threads, type, version of torch, network and image size. It lies in
the user's cache folder, a small file each, and is nothing but a hint: whatever is wrong with it, it is tried anew.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.files import open_regular, replacing
from timm_mobilevit_zoo.common.machine import cpu_name
from timm_mobilevit_zoo.common.progress import step

__all__ = ["cache_folder", "fastest", "image_size"]

Forms = Mapping[str, Callable[[], nn.Module]]

BUDGET = 1.5  # seconds that all calls may take, the first ones included
ROUNDS = 15
MARGIN = 0.03  # by which a form must be faster than the first: below that it may have been luck
TOLERANCE = 1e-3  # of the largest value: another form rounds otherwise, by 1e-6 to 1e-5
VARIABLE = "TIMM_MOBILEVIT_ZOO_CACHE"
LARGEST = 1 << 16  # bytes of a file that is read
_clock = time.perf_counter
_log = logging.getLogger(__name__)


def fastest(forms: Forms, model: nn.Module, size: Sequence[int]) -> nn.Module:
    """Return the fastest of some forms of a network for one image on this CPU, with the threads that torch has.

    Args:
        forms: What makes each form, by name: the first is the one that the others must beat.
        model: The network that they were made of, which names it.
        size: Channels, height and width of the image.

    Raises:
        Exception: Whatever the first form has against such an image.
    """
    key = _key(model, size)
    name = f"{key['architecture']} at {' x '.join(map(str, size[1:]))} px, threads: {key['threads']}"
    path = _path(key)
    if (known := _recalled(path, key)) in forms:
        _log.info("fuse: %s: %s, as tried before", name, known)
        return forms[known]()
    step(f"trying which form of {name} is the fastest")
    networks = {form: make() for form, make in forms.items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, *size, generator=generator, dtype=torch.float32, device="cpu").to(_dtype(model))
    found = _tried({form: _call(network, x) for form, network in networks.items()})
    first = next(iter(forms))
    best = min(found, key=lambda form: found[form] * (1 - MARGIN if form == first else 1))
    told = ", ".join(f"{form} {1000 * seconds:.3g} ms" for form, seconds in found.items())
    _log.info("fuse: %s: %s (%s)", name, best, told)
    if len(found) > 1:
        _remember(path, {"key": key, "form": best, "ms": {form: 1000 * spent for form, spent in found.items()}})
    return networks[best]


def image_size(model: nn.Module, size: int | Sequence[int] | None) -> tuple[int, int, int]:
    """Return channels, height and width of a model's images.

    Args:
        model: A network: of timm's, where no size is given.
        size: Side of a square, or height and width, in pixels; that of the model's config if None.

    Raises:
        ValueError: For what is no size, and for a model without a config where none is given.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    told = config.get("input_size") if size is None else (3, *((size, size) if isinstance(size, int) else size))
    if told is None:
        raise ValueError(f"model={type(model).__name__} has no config that tells its images' size: give size=")
    if len(told) != 3 or not all(isinstance(side, int) and side > 0 for side in told):
        raise ValueError(f"size={size!r} must be a side, or height and width, in pixels")
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = getattr(model, "in_chans", None) or next((conv.in_channels for conv in convs), told[0])
    return channels, told[1], told[2]


def cache_folder() -> Path:
    """Return where this package remembers: `$TIMM_MOBILEVIT_ZOO_CACHE`, or below the user's cache folder.

    Raises:
        RuntimeError: Where the user has no home.
    """
    if own := os.environ.get(VARIABLE):
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache", "timm_mobilevit_zoo")


def _call(network: nn.Module, x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return network(x)

    return call


def _tried(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least seconds of a call of each form: of none that fails, computes otherwise or came too late.

    They take turns, so that what else the machine does meets all of them alike; it only ever adds to a call's time, so
    the least is the best that is known. The first call of each, which allocates, counts only where there is no time for
    more.
    """
    began, right = _clock(), None
    found: dict[str, float] = {}
    for form, call in calls.items():
        if found and _clock() - began > BUDGET / 2:
            break
        start = _clock()
        try:
            out = call()
            spent = _clock() - start
            if right is not None and not _alike(out, right):
                continue
        except Exception:  # each form has errors of its own
            if right is None:
                raise
            continue
        right = out if right is None else right
        found[form] = spent
    for turn in range(ROUNDS if len(found) > 1 else 0):
        if _clock() - began + sum(found.values()) > BUDGET:
            break
        for form in found:
            start = _clock()
            calls[form]()
            spent = _clock() - start
            found[form] = spent if turn == 0 else min(found[form], spent)
    return found


def _alike(out: Any, right: Any) -> bool:
    pairs = [[one for one in tree_leaves(result) if isinstance(one, Tensor)] for result in (out, right)]
    if [one.shape for one in pairs[0]] != [one.shape for one in pairs[1]]:
        return False
    tolerance = TOLERANCE if all(one.dtype in (torch.float32, torch.float64) for one in pairs[1]) else 0.1
    return all(bool((a - b).abs().max() <= tolerance * b.abs().max()) for a, b in zip(*pairs, strict=True) if b.numel())


def _dtype(model: nn.Module) -> torch.dtype:
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)


def _key(model: nn.Module, size: Sequence[int]) -> dict[str, Any]:
    """Return what a choice is for. Two networks of a name may have other layers, which the shapes of tensors tell."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    return {
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(_dtype(model)).removeprefix("torch."),
        "torch": torch.__version__,
        "timm_mobilevit_zoo": __version__,
        "architecture": config.get("architecture") or type(model).__qualname__,
        "tensors": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "size": list(size),
    }


def _path(key: Mapping[str, Any]) -> Path | None:
    with suppress(RuntimeError):  # no home
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "fuse" / f"{digest[:32]}.json"
    return None


def _recalled(path: Path | None, key: Mapping[str, Any]) -> Any:
    """Return the form that was found for a key; None where there is no such file, or none that can be trusted."""
    with suppress(OSError, ValueError, RecursionError):
        if path is not None:
            with open_regular(path) as file:
                told = json.loads(file.read(LARGEST))
            if isinstance(told, dict) and told.get("key") == key and isinstance(told.get("form"), str):
                return told["form"]
    return None


def _remember(path: Path | None, what: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a cache that cannot be written to is no cache
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                part.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
