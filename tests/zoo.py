"""What the tests know of the package: its names, its families, seeded weights and images. No name is typed here."""

import importlib
import json
import os
import signal
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from timm_mobilevit_zoo.models._staged import StagedModel
from timm_mobilevit_zoo.models.probe import seeded

NAMES = [
    name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm_mobilevit_zoo.")
]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"), key=lambda path: path.stat().st_size)


def family(name):
    return timm.model_entrypoint(name).__module__


@cache
def _layers(name):
    with torch.device("meta"):
        return {type(module) for module in timm.create_model(name).modules()}


def _count(name):
    with torch.device("meta"):
        return len(list(timm.create_model(name).modules()))


def _params(name):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def _first_of_its_layers():
    """Yield the first of each family, and those small ones with a layer that none before had."""
    for file in sorted(set(map(family, NAMES))):
        seen = set()
        for name in importlib.import_module(file).default_cfgs:  # smallest first, ablations after
            if not _layers(name) <= seen and _params(name) < 10_000_000:
                seen |= _layers(name)
                yield name


FIRST = list(_first_of_its_layers())
STAGED = [name for name in NAMES if any(issubclass(layer, StagedModel) for layer in _layers(name))]
FIXED = [name for name in NAMES if timm.get_pretrained_cfg(name).fixed_input_size]


# What lies around the networks asks for one of our own classes, that of fewest layers, and one of timm's.
KINDS = [min((name for name in FIRST if name in STAGED), key=_count), next(name for name in FIRST if name in FIXED)]
# Each test says how far it goes in the quick set, by what it costs; with EVERY_SIZE=1 all go through all names.
EVERY_SIZE = os.environ.get("EVERY_SIZE") == "1"


def limits(name):
    """What the file of a model says that it cannot do: the names of tests, each with the reason.

    What holds for one model of the file only has the model's name behind the test's, in brackets.
    """
    told = [(*test.partition("["), reason) for test, reason in declared(name).items()]
    return {test: reason for test, bracket, model, reason in told if not bracket or model == f"{name}]"}


def declared(name):
    """All that the file of a model declares as limits."""
    return getattr(importlib.import_module(family(name)), "limits", {})


def _decorator(names):
    def decorate(test):
        def marks(name):
            reason = limits(name).get(test.__name__)
            return pytest.mark.xfail(strict=True, reason=reason) if reason else ()

        return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in names])(test)

    return decorate


# Decorators. A test must fail for a model whose file declares it as a limit, so that no limit outlives its reason.
# Milliseconds a name: all of them but the largest.
_QUICK = {name for name in NAMES if EVERY_SIZE or _params(name) < 14_000_000}
every_name, every_staged, every_fixed = (
    _decorator([name for name in names if name in _QUICK]) for names in (NAMES, STAGED, FIXED)
)
# A part of a second: one size of each family. What holds for it holds for the others, which differ in numbers alone.
FAMILIES = NAMES if EVERY_SIZE else FIRST
_BY_SIZE = sorted(GOLDEN, key=lambda path: _params(path.stem), reverse=True)
RECORDED = GOLDEN if EVERY_SIZE else list({family(path.stem): path for path in _BY_SIZE}.values())
every_family, every_staged_family = _decorator(FAMILIES), _decorator([name for name in FAMILIES if name in STAGED])
# Seconds, of compilers and runtimes: one network of our own class and one of timm's.
both_kinds = _decorator(KINDS)
_KINDS = NAMES if EVERY_SIZE else KINDS
every_kind, every_staged_kind = _decorator(_KINDS), _decorator([name for name in _KINDS if name in STAGED])


def hear_interrupts():
    # A shell starts background jobs, these tests perhaps, with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interruptible(command):
    """Run a command that ends by SIGINT."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def recorded_facts(name):
    """What the authors' code says of a network, written down by hand."""
    return json.loads((Path(__file__).parent / "golden" / "facts.json").read_text(encoding="utf-8"))[name]


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


@cache
def outline(name):
    """A network without numbers, on the meta device and the same for all: to look at its layers and shapes."""
    return create(name, device="meta")


def classifiers(model):
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


def logits_of_each(model, pooled):
    """What each classifier of one of our own class makes of pooled features, behind its norm where it has one."""
    norms = (model.head_norm, model.head_dist_norm)
    return [head(norm(pooled)) for head, norm in zip(classifiers(model), norms, strict=False)]


def classifier_names(model):
    names = model.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def sizes(name):
    """The image sizes that tests use: the model's own where it has one, else odd ones and even ones."""
    return [timm.get_pretrained_cfg(name).input_size[1:]] if name in FIXED else [(75, 101), (64, 96)]


def own_image(name, **kwargs):
    return image(*sizes(name)[0], **kwargs)


def image(height=64, width=96, batch=2, chans=3):
    return torch.rand(batch, chans, height, width, generator=torch.Generator().manual_seed(0))


def write_blots(folder, count):
    """Write photos of smooth blots: of noise a network sees hardly more than its mean."""
    generator = np.random.default_rng(0)
    for i in range(count):
        blots = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        blots.resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


def recorded_image(height, width=None):
    shape = (2, 3, height, width or height)
    return torch.tensor(np.random.RandomState(0).standard_normal(shape), dtype=torch.float32)


def author_weights(path):
    """The seeded state dict, in the authors' layout, that a recording was made with."""
    with safe_open(path, "pt") as golden:
        shapes, gain = json.loads(golden.metadata()["author_state_dict"]), float(golden.metadata().get("gain", 1))
    return {key: seeded(key, shape, gain) for key, shape in shapes.items()}
