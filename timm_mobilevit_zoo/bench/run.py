"""Candidates that take turns in one process, setting by setting."""

import copy
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import claiming, replacing
from timm_mobilevit_zoo.common.machine import cpu_name
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.models.probe import gmacs
from timm_mobilevit_zoo_cli.checks import LEAST_ROUNDS, check, plain
from timm_mobilevit_zoo_cli.text import printable

from .layers import by_kind
from .limits import best_of
from .limits import limits as best_rates
from .machine import busy_seconds, facts
from .machine import seconds_of as _seconds
from .report import claimed, compare, draw, quartiles
from .runners import (
    BY_LAYER,
    CPU_ONLY,
    EXPORTED,
    NARROW,
    TYPES,
    Backend,
    Candidate,
    Runner,
    Setting,
    build,
    deviation,
    moved,
    peak_mib,
    prepare,
    reference,
    resolve,
    size_text,
)

__all__ = ["bench", "busy_seconds", "cpu_name", "take_turns"]

ROUND = 0.05  # seconds that one candidate's part of a round takes at least
WARM_UP = 0.2  # seconds
_alone = threading.RLock()  # two at once would time each other, and set torch's settings back to each other's


def bench(
    names: Sequence[str],
    *,
    against: str = "",
    backend: Sequence[Backend] = ("eager",),
    mode: Sequence[Literal["eval", "train"]] = ("eval",),
    batch_size: Sequence[int] = (1,),
    img_size: Sequence[int | tuple[int, int]] = (224,),
    dtype: Sequence[Literal["fp32", "bf16", "fp16", "int8"]] = ("fp32",),
    memory_format: Sequence[Literal["contiguous", "channels_last"]] = ("contiguous",),
    cuda_graphs: bool = False,
    threads: Sequence[int] = (),
    device: str = "",
    limits: bool = True,
    layers: bool = False,
    rounds: int = 25,
    seconds: float = 60.0,
    output: str = "",
    plot: str = "",
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Measure how fast models are, side by side, after checking each against float64.

    Every name is measured with every back end, type and memory format, all in turns; and this once for every mode,
    image size, batch size and number of threads. Weights are random; dropout and drop path are off.

    Args:
        names: Names that timm knows, or module:function for a function that returns a torch.nn.Module.
        against: Name to compare the others with, in eager mode; the first candidate if not given.
        backend: How networks run: fuse is a copy with norms folded into convolutions, prepack such a copy with weights
            laid out for the CPU, auto the copy that `fuse` finds to be the fastest here, compile the network compiled
            by torch.
        mode: Evaluation, or a training step: forward, cross-entropy, backward, SGD with momentum.
        batch_size: Images in a call.
        img_size: Side of the square input, in pixels, or height and width, on the command line as 192x256; each of
            several is measured.
        dtype: Type of the arithmetic: of weights and images in evaluation, of torch.autocast in training. Beside fp32,
            int8 adds the 8-bit file of `export` for onnxruntime, made for the batch that is timed, and bf16 adds
            openvino with 16 bits, if the CPU supports them.
        memory_format: Memory layout of weights and images, in torch.
        cuda_graphs: Also measure torch's back ends as replayed CUDA graphs, in evaluation.
        threads: Threads of the CPU; torch's default if not given.
        device: cpu or cuda; if not given, cuda if there is one. TF32 is off.
        limits: Also measure what the CPU reaches at best with these threads, in dense convolutions, matrix products and
            copies of memory, and show how much of it each network reaches; it takes a second or two.
        layers: Also show where the time goes, by kind of layer, and how far each kind is from the CPU's limits: of what
            torch runs layer by layer (eager, fuse, prepack, auto), in evaluation.
        rounds: Rounds of a comparison, at most.
        seconds: Start no further round of a comparison after this time, once there are five; compiling does not count.
        output: JSON file for the rows, rewritten after each comparison.
        plot: Picture to draw: claimed accuracy against measured latency; its ending sets the format.
        overwrite: Replace output and plot if they exist.

    Returns:
        A row for each candidate in each setting: what it is; `ms`, a call's median and quartiles over the rounds, and
        `round_ms`, all of them; `images_per_s`; `ratio`, how many times as fast as `against` it is (see `compare`);
        `deviation`, how far its logits are from `reference`'s, relative to the largest; `memory_mib`, the most that
        torch allocated in a call beyond weights, batch and optimizer; `params_m` and `gmacs`; `moved_mib`, the least
        that a call moves (weights, and inputs and outputs of convolutions and linear layers, once each); `others`, how
        many cores other processes kept busy meanwhile; `limits`, what the CPU reached at best (as `bench.limits` says);
        `gflop_s`, the rate of this network, two operations for each multiply-add, and `of_limit`, its share of the best
        rate in its type; `layers`, where its time goes (as `bench.layers` says). What does not apply is None. A
        candidate that could not be measured has `error` instead of times.

    Raises:
        ValueError: For arguments that cannot work, before anything is measured.
        FileNotFoundError: For an output in a folder that does not exist.
        ModuleNotFoundError: Without the extra `export` or `viz`, where it is needed.
    """
    options = plain(dict(locals()))
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:  # which lists devices that nothing here is measured on
        raise ValueError(f"device={device!r} must be cpu, or cuda where there is a GPU") from None
    _check(options, place)
    candidates = _candidates(options)
    with ExitStack() as held:
        for key in ("output", "plot"):
            if options[key]:
                held.enter_context(claiming(Path(options[key]), key))
        held.enter_context(_alone)
        return _measure(candidates, place, options)


def _measure(candidates: Sequence[Candidate], place: torch.device, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all settings, having written what was asked for; torch's own settings stay as they were."""
    first, rounds, output, plot = candidates[0], options["rounds"], options["output"], options["plot"]
    counts = options["threads"] or (torch.get_num_threads(),)
    settings = list(product(options["img_size"], options["mode"], options["batch_size"], counts))
    about = facts(place, set(EXPORTED).intersection(c.backend for c in candidates))
    networks: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    reached: dict[int, dict[str, Any]] = {}  # by number of threads
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    bar = tqdm(total=len(settings) * rounds, unit="round", disable=None, leave=False)
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for size, how, batch, count in settings:
            if not rows or rows[-1]["img_size"] != size:
                networks = {}  # they may be of a size
            setting = Setting(how, size, batch, count, place)
            torch.set_num_threads(count)
            if any("compile" in candidate.backend for candidate in candidates):
                torch.compiler.reset()
            if options["limits"] and place.type == "cpu" and count not in reached:
                bar.set_description("measuring what the CPU reaches at best")
                reached[count] = best_rates(tuple(options["dtype"]))
            many: Any = torch._dynamo.config.patch(cache_size_limit=1000)  # beyond it torch runs eager mode, silently
            with many, torch._inductor.config.patch({"cpp.threads": count}):
                found = _comparison(candidates, setting, networks, options, reached.get(count), bar)
            for candidate, row in zip(candidates, found, strict=True):
                base = found[0].get("round_ms")
                times = row.get("round_ms")
                row["against"] = str(first)
                row["ratio"] = compare(base, times) if base and times and row is not found[0] else None
                rows.append(candidate._asdict() | setting._asdict() | {"device": place.type} | row | about)
            if output:
                with replacing(Path(output)) as part:
                    part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    finally:
        bar.close()
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
    if plot:
        with replacing(Path(plot)) as part, quiet():  # a font may lack letters
            draw(rows).savefig(part, format=Path(plot).suffix.lower().removeprefix("."), dpi=150)
    return rows


def _check(options: dict[str, Any], device: torch.device) -> None:
    check("bench", options)
    names = [*options["names"], *filter(None, [options["against"]])]
    for name in options["names"]:
        resolve(name)
    if options["against"]:
        resolve(options["against"], "against")
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={str(device)!r} must be cpu, or cuda where there is a GPU")
    if device.type == "cpu" and "fp16" in options["dtype"]:
        raise ValueError("dtype=fp16 is for a GPU; bf16 works on a CPU, too")
    if options["cuda_graphs"] and (device.type != "cuda" or "train" in options["mode"]):
        raise ValueError("`cuda_graphs=True` needs device=cuda and mode=eval alone")
    outside = [name for name in options["backend"] if name in EXPORTED]
    tied = [name for name in options["backend"] if name in CPU_ONLY]
    if tied and (device.type != "cpu" or "fp32" not in options["dtype"]):
        raise ValueError(f"backend={tied[0]} is measured on a CPU in fp32; give device=cpu and dtype=fp32")
    if options["layers"] and (device.type != "cpu" or not set(BY_LAYER).intersection(options["backend"])):
        raise ValueError(f"`layers=True` is for a CPU, and for one of backend={', '.join(BY_LAYER)}")
    if "int8" in options["dtype"] and "onnxruntime" not in options["backend"]:
        raise ValueError("dtype=int8 is what export writes for backend=onnxruntime; give that, and fp32 beside int8")
    untrained = [name for name in options["backend"] if name not in ("eager", "compile")]
    if untrained and "train" in options["mode"]:
        raise ValueError(f"backend={untrained[0]} does not train; with mode=train give eager or compile alone")
    for module in {module for name in outside for module in EXPORTED[name].modules}:
        require(module, "export")
    if options["plot"]:
        endings = require("matplotlib.figure", "viz").Figure().canvas.get_supported_filetypes()
        if Path(options["plot"]).suffix.lower().removeprefix(".") not in endings:
            raise ValueError(f"plot={options['plot']!r} must end in one of .{', .'.join(sorted(endings))}")
        if "eval" not in options["mode"] or all(claimed(name) is None for name in names):
            raise ValueError(
                "`plot` needs mode=eval and a name with a claimed accuracy, as `timm-mobilevit-zoo models` tells"
            )


def _candidates(options: dict[str, Any]) -> list[Candidate]:
    """Return what takes turns, what the others are compared with first."""
    graphs = (False, True) if options["cuda_graphs"] else (False,)
    types = [dtype for dtype in options["dtype"] if dtype != "int8"]
    found = []
    if options["against"]:
        found.append(Candidate(options["against"], "eager", options["memory_format"][0], types[0]))
    for name, backend in product(options["names"], options["backend"]):
        if backend in CPU_ONLY:
            narrow = [dtype for dtype in options["dtype"] if (backend, dtype) in NARROW]
            found += [Candidate(name, backend, "contiguous", dtype) for dtype in ("fp32", *narrow)]
        else:
            ways = product(options["memory_format"], types, graphs)
            found += [Candidate(name, backend, *way) for way in ways]
    return found


def _comparison(
    candidates: Sequence[Candidate],
    setting: Setting,
    networks: dict[str, Any],
    options: dict[str, Any],
    limits: dict[str, Any] | None,
    bar: Any,
) -> list[dict[str, Any]]:
    """Return what was measured of each candidate in one setting."""
    found: list[dict[str, Any]] = []
    runners: dict[int, Runner] = {}
    expected: dict[str, Any] = {}
    failed: dict[int, str] = {}
    shape = setting.batch_size, 3, *setting.sides
    x: Any = None
    for place, candidate in enumerate(candidates):
        bar.set_description(f"preparing {printable(str(candidate))}")
        row: dict[str, Any] = {"error": None, "limits": limits, "gflop_s": None, "of_limit": None, "layers": None}
        found.append(row)
        try:
            if candidate.model not in networks:
                networks[candidate.model] = build(candidate.model, setting.img_size)
            network = networks[candidate.model]
            row |= _size(network, candidate, setting)
            if x is None:  # there may be no memory for so many
                generator = torch.Generator().manual_seed(0)
                images = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
                x = images.to(setting.device)
            if candidate.model not in expected:
                expected[candidate.model] = reference(network, x, setting)
            right, row["reference"] = expected[candidate.model]
            runner = prepare(candidate, setting, network, x)
            row["deviation"] = deviation(runner.results(), right, candidate.dtype)
            row["memory_mib"] = None if candidate.cuda_graphs else peak_mib(runner, setting.device)
            if options["layers"] and limits and setting.mode == "eval" and candidate.backend in BY_LAYER:
                row["layers"] = by_kind(runner.call, limits, candidate.dtype)
            runners[place] = runner
        except Exception as error:  # each back end has errors of its own
            failed[place] = _told(error)
    bar.set_description(f"{setting.mode}, {size_text(setting.img_size)} px, batch {setting.batch_size}")
    before = busy_seconds()
    calls = [_kept(runner.call, place, failed) for place, runner in runners.items()]
    done, counts = take_turns(calls, setting.device, options["rounds"], options["seconds"], bar)
    spent, busy, own = (b - a for a, b in zip(before, busy_seconds(), strict=True))
    for place, times, count in zip(runners, done, counts, strict=True):
        if place in failed:
            continue
        found[place]["others"] = None if math.isnan(busy) else round(max(0.0, busy - own) / spent, 2)
        found[place]["calls"] = count
        found[place]["round_ms"] = [float(f"{1000 * value:.6g}") for value in times]
        found[place]["ms"] = quartiles(found[place]["round_ms"])
        found[place]["images_per_s"] = 1000 * setting.batch_size / found[place]["ms"]["median"]
        if setting.mode == "eval":  # of a training step the multiply-adds are not counted
            found[place] |= _rates(found[place], candidates[place], limits)
    for place, told in failed.items():
        found[place]["error"] = told
    return found


def _kept(call: Callable[[], Any], place: int, failed: dict[int, str]) -> Callable[[], Any]:
    """Return a call that does nothing once it has failed, so that the others go on."""

    def kept() -> None:
        if place not in failed:
            try:
                call()
            except Exception as error:  # each back end has errors of its own
                failed[place] = _told(error)

    return kept


def _told(error: Exception) -> str:
    told = str(error).strip().partition("\n")[0]
    return told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}"


def _size(network: nn.Module, candidate: Candidate, setting: Setting) -> dict[str, Any]:
    row: dict[str, Any] = {"params_m": sum(p.numel() for p in network.parameters()) / 1e6}
    try:
        meta = copy.deepcopy(network).to("meta")
        weights, maps = moved(meta, setting.sides)
        row["gmacs"] = gmacs(meta, (3, *setting.sides))
    except (RuntimeError, NotImplementedError):  # what asks for a tensor's values cannot be counted without any
        return row | {"gmacs": None, "moved_mib": None}
    width = TYPES[candidate.dtype].itemsize
    once = setting.mode == "eval"
    return row | {"moved_mib": width * (weights + setting.batch_size * maps) / 2**20 if once else None}


def _rates(row: dict[str, Any], candidate: Candidate, limits: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the rate of a network in GFLOP/s, and the share of the best one in its type that it is."""
    if row["gmacs"] is None:
        return {}
    rate, best = 2 * row["gmacs"] * row["images_per_s"], best_of(limits, candidate.dtype)
    return {"gflop_s": float(f"{rate:.6g}"), "of_limit": float(f"{rate / best:.4g}") if best else None}


def take_turns(
    calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int, seconds: float, bar: Any
) -> tuple[list[list[float]], list[int]]:
    """Return the seconds of a call, for each round, and how many calls a round has, for each of some functions."""
    counts = []
    for call in calls:
        single: list[float] = []
        began = time.perf_counter()
        while len(single) < 3 or time.perf_counter() - began < WARM_UP:
            single.append(_seconds(call, 1, device))
        counts.append(math.ceil(ROUND / statistics.median(single)))
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    for turn in range(rounds if calls else 0):
        if turn >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for call, count, done in zip(calls, counts, times, strict=True):
            call()  # the one before has left its own data in the caches
            done.append(_seconds(call, count, device))
        bar.update()
    bar.update(rounds - len(times[0]) if calls else rounds)
    return times, counts
