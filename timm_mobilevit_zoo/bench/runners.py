"""The calls that `bench` times: a network made ready for a back end, and what its result must be."""

import copy
import importlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from timm_mobilevit_zoo.export.formats import FORMATS
from timm_mobilevit_zoo.fusion import fuse
from timm_mobilevit_zoo.models.loading import create
from timm_mobilevit_zoo.models.names import unknown
from timm_mobilevit_zoo.models.probe import seeded

from .layers import profiling

__all__ = [
    "BY_LAYER",
    "CPU_ONLY",
    "EXPORTED",
    "NARROW",
    "TYPES",
    "Backend",
    "Candidate",
    "Runner",
    "Setting",
    "build",
    "deviation",
    "moved",
    "peak_mib",
    "prepare",
    "reference",
    "resolve",
]

Backend = Literal["eager", "fuse", "prepack", "auto", "compile", "fuse+compile", "onnxruntime", "openvino"]
# Run outside of torch: evaluation, a CPU, tensors in their own order.
EXPORTED = {"onnxruntime": FORMATS["onnx"], "openvino": FORMATS["openvino"]}
BY_LAYER = ("eager", "fuse", "prepack", "auto")  # what torch runs operator by operator
CPU_ONLY = (*EXPORTED, "prepack", "auto")  # fp32, what is in NARROW beside it, and no choice of memory format
NARROW = {("openvino", "bf16"), ("onnxruntime", "int8")}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

# How far a result may be from float64's, as a part of its largest value. Back ends differ by 1e-6 in fp32, OpenVINO's
# activations by up to 3e-4. In 16 bits a network of random weights rounds to anything up to 0.13 in eager mode, and its
# gradients to nothing that could be compared. In 8 bits they are off by about 0.1.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.2, "int8": 0.5}
GRADIENT_TOLERANCE = 1e-2


class Candidate(NamedTuple):
    """What is compared: a network by name or `module:function`, and how it runs."""

    model: str
    backend: str
    memory_format: str
    dtype: str
    cuda_graphs: bool = False

    def __str__(self) -> str:
        """Return a name for tables."""
        parts = [self.model, self.backend, *["graph"] * self.cuda_graphs]
        parts += [self.memory_format] * (self.memory_format != "contiguous") + [self.dtype] * (self.dtype != "fp32")
        return " ".join(parts)


class Setting(NamedTuple):
    """What all candidates have in common."""

    mode: str
    img_size: int | Sequence[int]
    batch_size: int
    threads: int
    device: torch.device

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return sides_of(self.img_size)


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size, which may be one side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def size_text(size: int | Sequence[int]) -> str:
    """Return a size as tables show it: `224` or `192 x 256`."""
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))


class Runner(NamedTuple):
    """A call that gives logits; the network behind it, where torch runs it, with gradients after a training step."""

    call: Callable[[], Any]
    network: nn.Module | None

    def results(self) -> list[Tensor]:
        """Call once and return the logits and, after a training step, all gradients in a row."""
        logits = self.call()
        if isinstance(logits, Tensor):
            logits = logits.detach().clone()
        elif type(logits).__module__ == "numpy":
            logits = torch.from_numpy(logits)
        else:
            raise ValueError(f"the output is a {type(logits).__name__}, not logits")
        grads = [p.grad for p in self.network.parameters() if p.grad is not None] if self.network else []
        return [logits.double(), *([torch.cat([grad.flatten().double() for grad in grads])] if grads else [])]


def resolve(name: str, argument: str = "names") -> Callable[[Any], Any]:
    """Return what builds a network for an image size, as `create` takes it.

    Args:
        name: A name that timm knows, with or without a tag, or `module:function`; the function takes no arguments.
        argument: What messages call it.

    Raises:
        ValueError: For what is neither, or a function that is not there.
    """
    if timm.is_model(name):
        return lambda img_size: create(name, img_size=img_size)
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"{argument}={name!r} is neither module:function nor {unknown(name)}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}={name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{argument}={name!r} is not a function that returns a torch.nn.Module")
    return lambda img_size: found()


def build(name: str, img_size: Any) -> nn.Module:
    """Return a network on the CPU, in evaluation mode, without dropout and drop path.

    One that timm names gets weights seeded by name and BatchNorm statistics of random images: in a new network most
    of these are 0 or 1, and a back end's mistake with them would not show. Another one's weights stay as they come.

    Raises:
        ValueError: Where a function returns no network.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        network = resolve(name)(img_size)
        if not isinstance(network, nn.Module):
            raise ValueError(f"a {type(network).__name__} was returned, not a torch.nn.Module")
        module: Any
        for module in network.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):  # DropPath, timm's and others'
                module.drop_prob = 0.0
        if timm.is_model(name):
            weights = network.state_dict().items()
            network.load_state_dict({k: seeded(k, tuple(v.shape)) if v.is_floating_point() else v for k, v in weights})
            _calibrate(network, sides_of(img_size))
    return network.eval()


@torch.no_grad()
def _calibrate(network: nn.Module, sides: tuple[int, int]) -> None:
    norms = [(module, module.momentum) for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 1.0
    if norms:
        network.train()(torch.randn(2, 3, *sides))
    for norm, momentum in norms:
        norm.momentum = momentum


def reference(network: nn.Module, x: Tensor, setting: Setting) -> tuple[list[Tensor], str]:
    """Return the results of eager mode in float64, or float32 where a network is tied to that, and which it was."""
    for dtype in (torch.float64, torch.float32):
        twin = copy.deepcopy(network).to(setting.device, dtype)
        try:
            runner = _training(twin, x.to(dtype), "fp32") if setting.mode == "train" else _evaluation(twin, x.to(dtype))
            return runner.results(), str(dtype).removeprefix("torch.")
        except RuntimeError:
            if dtype == torch.float32:
                raise
    raise AssertionError


def prepare(candidate: Candidate, setting: Setting, network: nn.Module, x: Tensor) -> Runner:
    """Return a copy of a network, ready to run on a batch `x` of `(B, 3, side, side)`.

    Raises:
        Exception: Whatever a back end has against the network.
    """
    if candidate.backend in EXPORTED:
        return Runner(_exported(candidate, network, x, setting.threads), None)
    layout: Any = torch.channels_last if candidate.memory_format == "channels_last" else torch.contiguous_format
    if candidate.backend == "prepack":
        return _evaluation(fuse(network, prepack=True), x)
    if candidate.backend == "auto":
        return _evaluation(fuse(network, prepack="auto", size=setting.sides), x)
    network = fuse(network) if "fuse" in candidate.backend else copy.deepcopy(network)
    network = network.to(setting.device).to(memory_format=layout)
    compiles, dtype = "compile" in candidate.backend, TYPES[candidate.dtype]
    if setting.mode == "train":
        return _training(network, x.contiguous(memory_format=layout), candidate.dtype, compiles)
    runner = _evaluation(network.to(dtype), x.to(dtype).contiguous(memory_format=layout), compiles)
    return Runner(_captured(runner.call), network) if candidate.cuda_graphs else runner


def _evaluation(network: nn.Module, x: Tensor, compiles: bool = False) -> Runner:
    forward: Any = torch.compile(network, dynamic=False) if compiles else network

    def call() -> Any:
        with torch.inference_mode():
            return forward(x)

    return Runner(call, network)


def _training(network: nn.Module, x: Tensor, dtype: str, compiles: bool = False) -> Runner:
    """Return a step: forward, cross-entropy, backward, SGD with momentum at learning rate 0, so that weights stay.

    In 16 bits the weights are float32 and the forward pass is torch.autocast's; in fp16 the loss is scaled.
    """
    forward: Any = torch.compile(network.train(), dynamic=False) if compiles else network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    scaler = torch.amp.GradScaler(x.device.type, init_scale=1024.0, enabled=dtype == "fp16")
    classes = torch.arange(len(x), device=x.device) % 2

    def call() -> Any:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, TYPES[dtype], enabled=dtype != "fp32"):
            logits = forward(x)
        loss = F.cross_entropy(logits if dtype == "fp32" else logits.float(), classes)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return logits

    return Runner(call, network)


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of a call's CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # torch asks for a few calls aside, before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def _exported(candidate: Candidate, network: nn.Module, x: Tensor, threads: int) -> Callable[[], Any]:
    """Return a call of what `export` writes for this one batch."""
    about, image = EXPORTED[candidate.backend], x.numpy()
    in_8_bits: Any = about.int8
    write: Any = partial(in_8_bits, images=[x]) if candidate.dtype == "int8" else about.write
    run: Any = about.run
    if candidate.dtype == "bf16":
        run = partial(run, precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model{about.suffix}")
        write(network, x, file, ())
        call = run(file, threads)
    return lambda: call(image)


def deviation(found: Iterable[Tensor], expected: Iterable[Tensor], dtype: str) -> float:
    """Return by how much the logits are off, as a part of the largest that was expected.

    Args:
        found: Logits and, in a training step, gradients.
        expected: The same, right.
        dtype: What was computed in.

    Raises:
        ValueError: For results that are wrong, infinite or NaN; it tells by how much.
    """
    tolerances = [TOLERANCE[dtype], *([GRADIENT_TOLERANCE] if dtype == "fp32" else [])]
    errors = []
    for what, tolerance, result, right in zip(("logits", "gradients"), tolerances, found, expected, strict=False):
        if result.shape != right.shape:
            raise ValueError(f"wrong result: {what} of shape {tuple(result.shape)}, not {tuple(right.shape)}")
        for whose, values in (("the reference's ", right), ("", result)):
            if not values.isfinite().all():
                raise ValueError(f"wrong result: {whose}{what} are not finite")
        largest = float(right.abs().max())
        errors.append(float((result - right).abs().max()) / (largest or 1.0))
        if errors[-1] > tolerance:
            raise ValueError(f"wrong result: {what} are off by {errors[-1]:.1e} of the largest, over {tolerance:g}")
    return errors[0]


def peak_mib(runner: Runner, device: torch.device) -> float | None:
    """Return the most that torch had allocated during one call, in MiB, without what was there before it.

    So weights, the batch and the optimizer's state do not count. On a CPU these are the events of torch's profiler,
    which sees torch's allocator: what a library takes elsewhere is not in it. None for what runs outside of torch.
    """
    if runner.network is None:
        return None
    for parameter in runner.network.parameters():
        parameter.grad = None  # the last step's
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        runner.call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profiling(profile_memory=True) as profile:
        runner.call()
    now = most = 0
    events: Any = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


@torch.no_grad()
def moved(meta: nn.Module, sides: tuple[int, int]) -> tuple[int, int]:
    """Return how many numbers one call must move at least: of weights, and of maps for one image.

    It reads each weight once, and what goes in and out of each convolution and linear layer once: as if all else were
    fused into these. No back end here fuses two of them.

    Args:
        meta: A network on the meta device.
        sides: Height and width of the image, in pixels.
    """
    counts = []

    def count(module: nn.Module, args: Any, out: Any) -> None:
        counts.append(args[0].numel() + out.numel())

    for module in meta.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            module.register_forward_hook(count)
    meta(torch.zeros(1, 3, *sides, device="meta"))
    return sum(p.numel() for p in meta.parameters()), sum(counts)
