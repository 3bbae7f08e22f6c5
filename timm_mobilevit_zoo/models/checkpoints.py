"""Files of weights, as trainers leave them: read once, without running what they hold, in time that grows with them."""

import codecs
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load
from torch import Tensor

from timm_mobilevit_zoo.common.files import open_regular
from timm_mobilevit_zoo_cli.text import check_labels, printable

__all__ = ["MAX_CHANNELS", "MAX_CLASSES", "counters", "odd_ones", "read_checkpoint", "read_told"]

MAX_CLASSES = 100_000
MAX_CHANNELS = 64  # of images
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
NESTS = (
    *("state_dict", "model", "module", "net", "network", "params", "weights", "state"),
    *("model_state_dict", "model_state", "backbone", "encoder", "student"),
)
MAX_DEPTH = 10  # of nests in each other
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.")
COUNTERS = {"n_averaged"}  # beside the weights, as torch.optim.swa_utils counts
SHOWN = 5  # of what does not fit
# What trainers put beside the weights, by name: nothing of it is used, so something empty stands in for it.
BESIDE = (
    "argparse.Namespace",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *(f"{module}.Pure{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
)
_pickles = threading.Lock()  # torch's list of what a pickle may hold is the whole process's


class _Beside:
    """An object of another class that a pickle holds: it takes whatever it is given, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Beside":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def _stand_in(path: str) -> type:
    module, _, name = path.rpartition(".")
    return type(name, (_Beside,), {"__module__": module, "__qualname__": name})


STAND_INS = {path: _stand_in(path) for path in BESIDE}


def read_checkpoint(file: str | Path, *, ema: bool | None = False) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, in whatever layout it has; see `read_told`."""
    return read_told(file, ema=ema)[0]


def read_told(file: str | Path, *, ema: bool | None = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint by name, in whatever layout it has, and what it tells beside them.

    Pickles are read without running what they hold (`weights_only=True`). Arguments, paths and scores of NumPy's that
    trainers put beside the weights are passed over. A prefix that all names share, as wrappers and trainers add one, is
    taken off. What birder's trainer tells is the classes' names, mean and standard deviation.

    Args:
        file: `.safetensors`, or what `torch.save` wrote: a state dict, bare or below `state_dict`, `model` or the like.
        ema: Take the averaged weights; with None where there are any.

    Returns:
        The tensors, and entries of a `timm` config: `label_names`, `mean` and `std`, those that the file tells.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For a file that holds no weights, none that are averaged, or tensors that are larger than the file.
    """
    path = Path(file)
    told = printable(f"checkpoint={str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{told} is not a file")
    with open_regular(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        found: Any = (_safetensors if path.suffix == ".safetensors" else _pickle)(opened, told, size)
    facts = _facts(found, told)
    if ema is not False and isinstance(found, Mapping):
        average = next((found[key] for key in AVERAGES if _is_nest(found, key)), None)
        if average is None and ema:
            raise ValueError(f"{told} holds no averaged weights ({', '.join(AVERAGES)})")
        found = found if average is None else average
    for _ in range(MAX_DEPTH):  # a pickle can hold itself
        inner = next((key for key in NESTS if isinstance(found, Mapping) and _is_nest(found, key)), None)
        found = found[inner] if inner else found
    named = isinstance(found, Mapping) and all(isinstance(key, str) for key in found)
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if named else {}
    if not tensors:
        raise ValueError(f"{told} holds no tensors by name")
    tensors = _bare({key: value for key, value in tensors.items() if key not in COUNTERS})
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise ValueError(f"{told} does not fit any model: {printable(key[:200])} is not a plain tensor with values")
    needed = sum(value.numel() * value.element_size() for value in tensors.values())
    if needed > 4 * size + (16 << 20):  # tied weights count twice; a number that is repeated for ever counts as often
        raise ValueError(f"{told} does not fit any model: its {size:,} bytes mean tensors of {needed:,}")
    return tensors, facts


def _facts(found: Any, told: str) -> dict[str, Any]:
    """Return what birder's trainer writes beside the weights, in the words of timm's configs."""
    facts: dict[str, Any] = {}
    if not isinstance(found, Mapping) or "birder_version" not in found:
        return facts
    indices, stats = found.get("class_to_idx"), found.get("rgb_stats")
    if isinstance(indices, Mapping) and indices:
        if sorted(map(repr, indices.values())) != sorted(map(repr, range(len(indices)))):
            raise ValueError(f"{told}: class_to_idx does not number {len(indices)} classes from 0")
        names = sorted(indices, key=lambda name: int(indices[name]))
        check_labels(names)
        facts["label_names"] = names
    if isinstance(stats, Mapping):
        for key in ("mean", "std"):
            values: Any = stats.get(key)
            fits = isinstance(values, (list, tuple)) and len(values) in (1, 3)
            if not fits or not all(isinstance(value, float) and 0 <= value <= 1 for value in values):
                raise ValueError(
                    f"{told}: rgb_stats has {key}={printable(str(values)[:80])}, which are not shares of 1"
                )
            facts[key] = tuple(values)
    return facts


def counters(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros for those counters of BatchNorms that weights lack, as frozen ones do: nothing computes with them.

    Args:
        wanted: The network's state dict.
        found: The weights.
    """
    return {
        key: torch.zeros(value.shape, dtype=value.dtype)
        for key, value in wanted.items()
        if key.endswith("num_batches_tracked") and key not in found
    }


def odd_ones(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return, in a line, what of weights does not fit a network's state dict; nothing where all of it does."""
    odd = [f"{key} is missing" for key in wanted.keys() - weights]
    odd += [f"{key} is unknown" for key in weights.keys() - wanted]
    for key in wanted.keys() & weights:
        own, other = wanted[key], weights[key]
        if own.shape != other.shape:
            odd.append(f"{key} is {tuple(other.shape)}, not {tuple(own.shape)}")
        elif not _becomes(other, own.dtype):
            odd.append(f"{key} is {other.dtype}, which {own.dtype} does not keep")
    return _in_a_line(odd)


def _in_a_line(odd: list[str]) -> str:
    more = f"; and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    return printable("; ".join(one[:200] for one in sorted(odd)[:SHOWN]) + more)


def _becomes(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether the values stay what they are in another type; 8-bit floats and the like are none of weights."""
    if tensor.dtype == dtype:
        return True
    if dtype.is_floating_point and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return bool(torch.equal(tensor.to(dtype).to(tensor.dtype).nan_to_num(), tensor.nan_to_num()))
    whole = torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8
    return tensor.dtype in whole and dtype in whole and bool(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor))


def _bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefixes of wrappers that all of them have."""
    for _ in range(MAX_DEPTH):
        prefix = next((one for one in WRAPPERS if all(key.startswith(one) for key in tensors)), "")
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _safetensors(file: BinaryIO, told: str, size: int) -> dict[str, Tensor]:
    try:
        return load(file.read(size))
    except Exception as error:  # its own, and others for types that it knows and torch lacks
        raise ValueError(f"{told} is not a safetensors file: {printable(str(error)[:200])}") from None


def _pickle(file: BinaryIO, told: str, size: int) -> Any:
    try:
        _refuse_bombs(file, size)
        with _allowed():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, text, foreign pickles: torch has an error for each
        raise ValueError(f"{told} cannot be read as weights: {_reason(error)}") from None


@contextmanager
def _allowed() -> Iterator[None]:
    """Let pickles hold what trainers put beside weights; what a user has allowed stays what it is."""
    with _pickles:
        users = torch.serialization.get_safe_globals()
        before = list(users)  # torch 2.4 returns the list that it goes on to extend
        paths = {f"{getattr(one, '__module__', '')}.{getattr(one, '__qualname__', '')}" for one in before}
        own: list[Any] = [stand_in for path, stand_in in STAND_INS.items() if path not in paths]
        if hasattr(torch.serialization, "safe_globals"):
            with torch.serialization.safe_globals(own):
                yield
            return
        torch.serialization.add_safe_globals(
            [*own, codecs.encode]
        )  # of NumPy's bytes; later torch has it among its own
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _reason(error: Exception) -> str:
    """Return what torch found in a file, without its advice on how to run what the file holds."""
    text = str(error)
    if "weights_only" in text:
        found = re.search(r"(?:Unsupported|Trying to load)(?:(?! Please )[^\n])*", text)
        text = found[0] if found else "it holds more than tensors"
    return printable(f"{type(error).__name__}: {text.partition(chr(10))[0]}"[:200])


def _is_nest(found: Mapping[str, Any], key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _refuse_bombs(file: BinaryIO, size: int) -> None:
    """`torch.save` stores tensors as they are; an archive that unpacks to more than its size was made for harm."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than it has: not torch's work")
    file.seek(0)
