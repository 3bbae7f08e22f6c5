"""The two files of a folder of weights, each opened and read once: what is looked at then is what is used."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from timm_mobilevit_zoo.common.files import open_regular
from timm_mobilevit_zoo.models.checkpoints import counters
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS

from .checks import Refused, need

__all__ = ["MAX_CONFIG_BYTES", "most_bytes", "read_config", "read_weights"]

MAX_CONFIG_BYTES = 8 << 20  # 100,000 label names fit
HEADER_BYTES = 1 << 20, 1 << 10  # room for a header of safetensors: at all, and for each tensor
TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}  # as safetensors call them


def read_config(folder: Path) -> bytes:
    """Return what a folder's config file holds, for `check_config`."""
    return _read(folder / CONFIG, MAX_CONFIG_BYTES)


def _read(path: Path, most: int) -> bytes:
    """Return the content of a file, once: what is looked at then is what is used."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most + 1) if size <= most else b""
    except (OSError, ValueError) as error:
        raise Refused(f"{path.name} cannot be read: {str(error)[:200]}") from None
    need(max(size, len(data)) <= most, f"{path.name} has more than {most} bytes")
    return data


def most_bytes(model: nn.Module) -> int:
    """Return how large a file with the weights of a network can be."""
    tensors = model.state_dict().values()
    return sum(HEADER_BYTES[1] + tensor.numel() * tensor.element_size() for tensor in tensors) + HEADER_BYTES[0]


def read_weights(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file and its sha256; refuse names, shapes and types that are not the network's.

    The file is read once, and not at all where it is larger than the network can need.

    Args:
        path: File of safetensors.
        model: The network, on the meta device.
    """
    wanted = model.state_dict()
    data = _read(path, most_bytes(model))
    room = HEADER_BYTES[0] + HEADER_BYTES[1] * len(wanted)
    header = int.from_bytes(data[:8], "little")
    need(header <= room, f"{WEIGHTS} is not a safetensors file: its header has {header:,} bytes, over {room:,}")
    try:
        tensors = load(data)
    except Exception as error:  # its own, and others for types that it knows and torch lacks
        raise Refused(f"{WEIGHTS} is not a safetensors file: {str(error)[:200]}") from None
    tensors = counters(wanted, tensors) | tensors
    for kind, odd in (("missing", wanted.keys() - tensors), ("unexpected", tensors.keys() - wanted)):
        need(not odd, f"{WEIGHTS}: {len(odd)} {kind}, as {', '.join(sorted(odd)[:3])[:200]}")
    for name, tensor in wanted.items():
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        need(shape == tuple(tensor.shape), f"{WEIGHTS}: {name} is {shape}, not {tuple(tensor.shape)}")
        told = TYPES.get(dtype, str(dtype))
        need(dtype == tensor.dtype, f"{WEIGHTS}: {name} is {told}, not {tensor.dtype}, as `model.float()` makes it")
    return tensors, hashlib.sha256(data).hexdigest()
