"""Turn a checkpoint, an author's or a trainer's, into a checked folder of weights."""

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from timm_mobilevit_zoo.models.loading import create, head_of, translate
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo_cli.checks import check
from timm_mobilevit_zoo_cli.licences import CARD_WORDS
from timm_mobilevit_zoo_cli.text import printable

from .folder import export

__all__ = ["convert", "read_checkpoint"]

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
NESTS = ("state_dict", "model", "module", "net", "params", "state")
MAX_DEPTH = 10  # of nests in each other
WRAPPERS = r"^(?:module\.|_orig_mod\.)+"  # of DataParallel and torch.compile


def read_checkpoint(file: str | Path, *, ema: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, in whatever layout it has.

    Pickles are read without running what they hold (`weights_only=True`), but for the command line that trainers
    put beside the weights, an `argparse.Namespace`.

    Args:
        file: `.safetensors`, or what `torch.save` wrote: a state dict, bare or below `state_dict`, `model` or the like.
        ema: Take the averaged weights.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For a file that holds no weights, or none that are averaged.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={str(path)!r} is no file")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint={str(path)!r} is no file of safetensors: {str(error)[:200]}") from None
    else:
        _refuse_bombs(path)
        try:
            with _namespaces_allowed():
                found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # truncated, text, foreign pickles: torch has an error for each
            raise ValueError(f"checkpoint={str(path)!r} cannot be read as weights: {_reason(error)}") from None
    if ema:
        found = next((found[key] for key in AVERAGES if isinstance(found, Mapping) and key in found), None)
        if found is None:
            raise ValueError(f"checkpoint={str(path)!r} holds no averaged weights ({', '.join(AVERAGES)})")
    for _ in range(MAX_DEPTH):  # a pickle can hold itself
        inner = next((key for key in NESTS if isinstance(found, Mapping) and _is_nest(found, key)), None)
        found = found[inner] if inner else found
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if _is_dict(found) else {}
    if not tensors:
        raise ValueError(f"checkpoint={str(path)!r} holds no tensors by name")
    return {re.sub(WRAPPERS, "", key): value for key, value in tensors.items()}


@contextmanager
def _namespaces_allowed() -> Iterator[None]:
    allowed = list(torch.serialization.get_safe_globals())  # torch 2.4 returns the list that it goes on to extend
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def convert(
    checkpoint: str,
    *,
    model: str,
    output: str,
    license: str,
    license_name: str = "",
    license_link: str = "",
    dataset: str = "",
    source: str = "",
    description: str = "",
    ema: bool = False,
    img_size: int | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint, the authors' or one of timm's training, into a folder that timm loads.

    Args:
        checkpoint: File with weights: safetensors, or what torch.save wrote.
        model: Registered name of this package.
        output: Folder to write, new or empty.
        license: Licence of the weights, as the Hub names it: mit, apache-2.0, cc-by-nc-4.0 and so on, or other.
        license_name: Its name, for the licence other, as my-license-1.0.
        license_link: Its address, for the licence other.
        dataset: Data that the weights were trained on; its name on the Hub if it is there.
        source: Where the weights come from.
        description: Words for the model card.
        ema: Take the averaged weights.
        img_size: Side of the square input, in pixels, of a model that is made for one; the model's own where not given.

    Returns:
        What `hub.check` returns of the folder.

    Raises:
        FileNotFoundError: For a checkpoint that is not there.
        ValueError: For a checkpoint that cannot be read or does not fit, by the names of what does not; and as
            `hub.export`. Nothing is left in the output then.
    """
    given = dict(locals())
    check("convert", given)
    if model not in our_models():
        raise ValueError(f"model={model!r} is none of this package's: {', '.join(our_models())}")
    card = {key: given[key] for key in CARD_WORDS if given[key]}
    tensors = read_checkpoint(checkpoint, ema=ema)
    try:
        weights = translate(tensors, model, img_size)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:  # of tensors of odd shapes
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"checkpoint={checkpoint!r} does not fit {model}: {reason}") from None
    cfg: Any = timm.get_pretrained_cfg(model)
    head, first = head_of(weights, model), weights.get(f"{cfg.first_conv}.weight")
    network = create(
        model,
        img_size=img_size,
        num_classes=0 if head is None or head.ndim != 2 else len(head),
        in_chans=3 if first is None or first.ndim != 4 else first.shape[1],
    )
    _fit(weights, network.state_dict(), checkpoint, model)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # sparse or quantised tensors, or such as have no values
        reason = str(error).partition("\n")[2].strip()[:300]
        raise ValueError(f"checkpoint={checkpoint!r} does not fit {model}: {reason}") from None
    network.pretrained_cfg["num_classes"] = network.num_classes
    return export(network, output, card=card)


def _reason(error: Exception) -> str:
    """Return what torch found in a file, without its advice on how to run what the file holds."""
    text = str(error)
    if "weights_only" in text:
        found = re.search(r"(?:Unsupported|Trying to load)(?:(?! Please )[^\n])*", text)
        text = found[0] if found else "it holds more than tensors"
    text = f"{type(error).__name__}: {text.partition(chr(10))[0]}"[:200]
    return printable(text)


def _is_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(key, str) for key in found)


def _is_nest(found: Mapping[str, Any], key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _refuse_bombs(path: Path) -> None:
    """`torch.save` stores tensors as they are; an archive that unpacks to more than its size was made for harm."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise ValueError(f"checkpoint={str(path)!r} unpacks to {size:,} bytes, more than it has: not torch's work")


def _fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: str, model: str) -> None:
    odd = [f"{key} is missing" for key in wanted.keys() - weights.keys()]
    odd += [f"{key} is unknown" for key in weights.keys() - wanted.keys()]
    odd += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted.keys() & weights.keys()
        if weights[key].shape != wanted[key].shape
    ]
    if odd:
        raise ValueError(f"checkpoint={checkpoint!r} does not fit {model}: {'; '.join(sorted(odd))}")
