"""What the tests know of the package: its names, its families, seeded weights and images. No name is typed here."""

import importlib
import json
import zlib
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import safe_open

import timm_mobilevit_zoo  # noqa: F401

NAMES = [
    name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm_mobilevit_zoo.")
]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))


def family(name):
    return timm.model_entrypoint(name).__module__


# Slow checks take the first variant of each family: its file lists them smallest first, ablations after.
FIRST = [next(iter(importlib.import_module(f).default_cfgs)) for f in sorted(set(map(family, NAMES)))]


def image(height=64, width=96, batch=2, chans=3):
    return torch.rand(batch, chans, height, width, generator=torch.Generator().manual_seed(0))


def seeded(key, shape):
    """A tensor that depends on its key and shape alone, by the rule that the recordings were made with."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) == 1:
        x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(x, dtype=torch.float32)


def recorded_image(size):
    return torch.tensor(np.random.RandomState(0).standard_normal((2, 3, size, size)), dtype=torch.float32)


def author_weights(path):
    """The seeded state dict, in the authors' layout, that a recording was made with."""
    with safe_open(path, "pt") as golden:
        shapes = json.loads(golden.metadata()["author_state_dict"])
    return {key: seeded(key, shape) for key, shape in shapes.items()}
