"""Other libraries' warnings, log lines and output, kept from the terminal."""

import ctypes
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar

__all__ = ["converting", "quiet", "verbose"]

_one_at_a_time = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of converters and drawing, of which each has its own, from the terminal.

    What keeps them is the process's, and so is what converters change of torch while they run: threads wait here for
    each other.
    """
    with _one_at_a_time:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


_verbose: ContextVar[bool] = ContextVar("verbose", default=False)


@contextmanager
def verbose() -> Iterator[None]:
    """Let converters say what they like meanwhile, in this thread."""
    token = _verbose.set(True)
    try:
        yield
    finally:
        _verbose.reset(token)


@contextmanager
def converting() -> Iterator[None]:
    """Keep quiet what `quiet` does, and what converters and the programs that they start print; all but with `verbose`.

    What they print goes to the process's own streams, whatever these are for Python.
    """
    if _verbose.get():
        with _one_at_a_time:
            yield
    else:
        with quiet(), _muted(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield


@contextmanager
def _muted() -> Iterator[None]:
    """Have nothing come out of the process's output and error streams."""
    _flush()
    kept = {}
    for stream in (1, 2):
        with suppress(OSError):  # of a process without
            kept[stream] = os.dup(stream)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        _flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
        for descriptor in (nowhere, *kept.values()):
            os.close(descriptor)


def _flush() -> None:
    """Write out what C libraries, which keep lines until they have many, hold back."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or closed
            stream.flush()
    if os.name == "posix":
        with suppress(OSError):
            ctypes.CDLL(None).fflush(None)
