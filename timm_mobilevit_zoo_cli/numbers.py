"""Which numbers an option takes: one table for all commands, in which every option that is a number has a line."""

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

__all__ = ["LEAST_ROUNDS", "NUMBERS", "check_numbers", "plain"]

LEAST_ROUNDS = 5  # of a comparison: quartiles of fewer say nothing


class Number(NamedTuple):
    """What a number has to be, besides finite."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False  # `low` itself is not right
    below: bool = False  # `high` itself is not right
    optional: bool = False  # None is right, too
    said: str = ""  # what follows "must", where it is not what follows from the above

    def holds(self, value: Any) -> bool:
        """Tell whether a value is such a number."""
        if not _is(Integral if self.whole else Real, value):
            return False
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    def words(self, value: Any) -> str:
        """Return what a value must, that does not hold."""
        if self.said:
            return self.said
        if not _is(Real, value):
            return "be a whole number" if self.whole else "be a number"
        low, high = f"{'above' if self.above else 'at least'} {self.low}", f"at most {self.high}"
        if self.whole:
            return f"be {low}" if value < self.low else f"be {high}" if value > self.high else "be a whole number"
        if self.high == math.inf:
            return f"be {low}" + ("" if math.isfinite(value) else " and finite")
        if self.above == self.below:
            return f"lie between {self.low} and {self.high}" if self.above else f"lie in {self.low}..{self.high}"
        return f"be {low} and {f'below {self.high}' if self.below else high}"


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_SHARE = Number(0, 1)
_DROPPED = Number(0, 1, below=True, optional=True)
_POSITIVE = Number(0, above=True)
_LEAST_0 = Number(0)
_COUNT = Number(1, 2**31 - 1, whole=True)
_SIDE = Number(
    1, 2**14, whole=True, optional=True, said="be a side, or height and width, in pixels: whole numbers from 1 to 16384"
)
_PART = Number(0, 1, above=True, optional=True)

# Limits above are what no machine goes beyond, so that a slip is told at once and not when memory or processes run out.
NUMBERS: Mapping[str, Number] = {
    "alpha": _SHARE,
    "batch_size": _COUNT,
    "clip_grad": _POSITIVE._replace(optional=True),
    "color_jitter": _LEAST_0,
    "crop_pct": _PART,
    "cutmix": _LEAST_0,
    "drop_path_rate": _DROPPED,
    "drop_rate": _DROPPED,
    "ema_decay": Number(0, 1, above=True, below=True),
    "epochs": _COUNT,
    "grad_accum_steps": _COUNT,
    "hflip": _SHARE,
    "img_size": _SIDE,
    "in_chans": Number(1, 3, whole=True, said="be 1 (grey) or 3 (RGB)"),
    "layer_decay": _PART,
    "lr": _POSITIVE,
    "min_lr": _LEAST_0,
    "mixup": _LEAST_0,
    "num_classes": Number(1, 10**6, whole=True, optional=True),
    "port": Number(0, 65535, whole=True, said="be from 0 to 65535"),
    "ratio": _POSITIVE,
    "reprob": _SHARE,
    "rounds": Number(LEAST_ROUNDS, 2**31 - 1, whole=True, said=f"be at least {LEAST_ROUNDS}, or quartiles say nothing"),
    "scale": Number(0, 1, above=True),
    "seconds": _POSITIVE,
    "seed": Number(0, 2**31 - 1, whole=True),
    "size": _SIDE,
    "smoothing": _SHARE,
    "temperature": _POSITIVE,
    "threads": Number(1, 1024, whole=True),
    "tolerance": _POSITIVE._replace(optional=True),
    "top": _COUNT,
    "val_every": Number(2, 2**31 - 1, whole=True),
    "val_fraction": Number(0, 1, below=True),
    "vflip": _SHARE,
    "warmup_epochs": Number(0, 2**31 - 1, whole=True),
    "warmup_lr": _LEAST_0,
    "weight_decay": _LEAST_0,
    "workers": Number(0, 256, whole=True),
}


def check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse what is not the number that an option needs; of a sequence, each.

    Args:
        options: Arguments of a function, by name. Those that are no numbers are left alone.

    Raises:
        ValueError: For the first that does not hold.
    """
    for name, value in options.items():
        rule = NUMBERS.get(name)
        if rule is None or (value is None and rule.optional):
            continue
        several = isinstance(value, (list, tuple))
        each = (
            [one for part in value for one in (part if isinstance(part, (list, tuple)) else [part])]
            if several
            else [value]
        )
        odd = [one for one in each if not rule.holds(one)]
        if odd:
            shown = " ".join(map(str, each)) if several else f"{value}"
            raise ValueError(f"{name}={shown} must {rule.words(odd[0])}" + " each" * (several and not rule.said))


def plain(value: Any) -> Any:
    """Return an argument as Python's own types: numbers and arrays of other libraries, paths, lists as tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(one) for one in value)
    if not _is(Real, value):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
