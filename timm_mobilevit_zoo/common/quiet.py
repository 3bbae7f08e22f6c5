"""Other libraries' warnings and log lines, kept from the terminal."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

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
