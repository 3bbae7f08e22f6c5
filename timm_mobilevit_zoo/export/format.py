"""What a format of `export` is: how it is called, what it needs, how it is written and how it is run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["INPUT", "OUTPUT", "Format", "Run"]

Run = Callable[[Any], Any]  # images `(B, C, H, W)` as a float32 array to logits `(B, num_classes)` as one

INPUT, OUTPUT = "images", "logits"


class Format(NamedTuple):
    """How a format is written and run.

    `write` puts a network for images like `x` into a file, and returns what else is to be told of it; `dynamic` says
    which of `batch` and `size` may vary. `run` returns what runs the file, None where nothing here can; it takes
    a number of threads, 0 for the runtime's own choice. `int8` writes what computes in 8 bits, with ranges measured on
    images of `(1, C, H, W)`.
    """

    suffix: str
    extra: str
    modules: tuple[str, ...]  # what must be installed
    dynamic: tuple[str, ...]  # what it can leave open
    write: Callable[[nn.Module, Tensor, Path, Sequence[str]], dict[str, Any] | None]
    run: Callable[..., Run] | None
    beside: tuple[str, ...] = ()  # endings of files that come with it
    int8: Callable[[nn.Module, Tensor, Path, Sequence[str], Sequence[Tensor]], dict[str, Any]] | None = None
    torch_below: str = ""  # the first version of torch that is too new for it
