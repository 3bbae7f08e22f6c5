"""The machine that `bench` measures on: its clock, how busy it is, what it is."""

import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.machine import cpu_name

__all__ = ["busy_seconds", "facts", "seconds_of"]


def seconds_of(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """Return the seconds of one of `count` calls on a device."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / count
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def busy_seconds() -> tuple[float, float, float]:
    """Return seconds: by the clock, those that all cores were busy (NaN where nobody tells), and those that we were."""
    info = Path("/proc/stat")
    busy = math.nan
    if info.is_file():  # user, nice, system, idle, waiting, irq, softirq, stolen; the other columns are in these
        user, nice, system, _, _, *rest = map(int, info.read_text().split()[1:9])
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, sum(os.times()[:4])


def facts(device: torch.device, packages: Iterable[str]) -> dict[str, Any]:
    """Return `machine`, `versions` and `date`, which every row has.

    Args:
        device: Where it is measured.
        packages: Those whose versions are told beside timm's and torch's.
    """
    machine: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()}
    machine |= {"gpu": None, "copy_gib_s": None}
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "copy_gib_s": _copy_speed(device)}
    versions = {
        "python": platform.python_version(),
        "timm_mobilevit_zoo": __version__,
        **{name: version(name) for name in ["timm", "torch", *sorted(packages)]},
    }
    return {"machine": machine, "versions": versions, "date": datetime.date.today().isoformat()}


def _copy_speed(device: torch.device) -> float:
    """Return what the memory moves when a tensor is copied, read and written, in GiB a second."""
    source = torch.zeros(2**28, device=device)  # 1 GiB
    target = torch.empty_like(source)
    spent = [seconds_of(lambda: target.copy_(source), 10, device) for _ in range(5)]
    return round(2 / min(spent), 1)
