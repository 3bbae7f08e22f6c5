"""How far work is: a bar on a terminal, a line every so often in a file, and the steps of what takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

__all__ = ["is_shown", "progress", "showing", "step"]

EVERY = 30.0  # seconds between two lines
NOTED = 10  # items between two notes on a bar, which may wait for a device
_shown: ContextVar[bool] = ContextVar("shown", default=False)
_clock = time.monotonic


def progress(items: Any, what: str, unit: str, *, note: Callable[[], str] = str, hide: bool = False) -> Iterator[Any]:
    """Yield items, and show on stderr how many have been.

    Args:
        items: A list, a loader, or what else has a length.
        what: The work.
        unit: What the items are, in plural.
        note: Returns what is to be said besides.
        hide: Show nothing, as all processes do but one.
    """
    if hide:
        yield from items
    elif sys.stderr.isatty():
        bar = tqdm(items, desc=what, unit=f" {unit}", leave=False)
        for count, item in enumerate(bar, 1):
            yield item
            if count % NOTED == 0:
                bar.set_postfix_str(note(), refresh=False)
    else:
        began = last = _clock()
        for count, item in enumerate(items, 1):
            yield item
            if (now := _clock()) - last >= EVERY:
                last = now
                told = f"{count} of {len(items)} {unit}, {now - began:.0f} s"
                _line(f"{what}: " + ", ".join(filter(None, (told, note()))))


@contextmanager
def showing() -> Iterator[None]:
    """Have `step` tell of its steps meanwhile, in this thread: a command does, and a library keeps still."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def is_shown() -> bool:
    """Tell whether `showing` is on."""
    return _shown.get()


def step(what: str) -> None:
    """Tell on stderr what begins, where `showing` is on."""
    if _shown.get():
        _line(f"{what} ...")


def _line(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above a bar
    sys.stderr.flush()
