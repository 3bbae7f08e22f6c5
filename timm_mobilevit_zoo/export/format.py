"""What a format of `export` is: how it is called, what it needs, how it is written and how it is run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

__all__ = ["INPUT", "OUTPUT", "PRECISIONS", "Format", "Precision", "Run", "Write"]

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

Write = Callable[[nn.Module, Tensor, Path, Sequence[str]], "dict[str, Any] | None"]
Run = Callable[[Any], Any]  # images `(B, C, H, W)` as a float32 array to logits `(B, num_classes)` as one

INPUT, OUTPUT = "images", "logits"


class Format(NamedTuple):
    """How a format is written and run.

    `write` puts a network for images like `x` into a file, and returns what else is to be told of it; `dynamic` says
    which of `batch` and `size` may vary. `fp16` does so in 16 bits, with input and output in float32 all the same, and
    `int8` writes what computes in 8 bits, with ranges measured on images of `(1, C, H, W)`. `run` returns what runs the
    file, None where nothing here can; it takes a number of threads, 0 for the runtime's own choice. Where `stands_in`,
    that is not the runtime, which needs another system, but what the operations in the file are defined to be.
    """

    suffix: str
    extra: str
    modules: tuple[str, ...]  # what must be installed
    dynamic: tuple[str, ...]  # what it can leave open
    write: Write
    run: Callable[..., Run | None]
    beside: tuple[str, ...] = ()  # endings of files that come with it
    fp16: Write | None = None
    int8: Callable[[nn.Module, Tensor, Path, Sequence[str], Sequence[Tensor]], dict[str, Any]] | None = None
    calibrated: bool = True  # whether `int8` wants images; without them weights alone are in 8 bits
    int8_in_16: bool = False  # whether all that `int8` leaves is in 16 bits, and may overflow there
    stands_in: bool = False
    # What takes operations instead of the usual library and cannot be run here; the precision in which it does.
    backends: Mapping[str, tuple[Precision, Write]] = MappingProxyType({})
    precision: Precision = "fp32"  # where none is asked for
    lacks: Mapping[str, str] = MappingProxyType({})  # why it has no file of a precision
    needs: Mapping[str, tuple[str, str]] = MappingProxyType({})  # a module and its extra that a precision wants, too
    torch_below: str = ""  # the first version of torch that is too new for it

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What `export` writes in this format."""
        found = {"fp32": self.write, "fp16": self.fp16, "int8": self.int8}
        return tuple(one for one in PRECISIONS if found[one])
