"""Networks created and given weights: a registered name, a folder that training left, a file of weights."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from timm_mobilevit_zoo_cli.checks import is_folder
from timm_mobilevit_zoo_cli.text import printable

from .checkpoints import MAX_CHANNELS, MAX_CLASSES, counters, read_told
from .names import our_models, unknown

__all__ = [
    "build",
    "classes_of",
    "create",
    "head_of",
    "label_list",
    "labels_of",
    "load",
    "load_checkpoint",
    "open_model",
    "read_by",
    "translate",
    "weights_from",
    "words_of",
]

ReadT = TypeVar("ReadT", bound=Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Tensor]]])

_readers: list[Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Tensor]]]] = []


def create(name: str, *, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> Any:
    """Create a model as timm does, for an image size also where its class takes that as an argument.

    Args:
        name: What `timm.create_model` takes.
        img_size: Side of the square input, or its height and width, in pixels; the model's own where not given.
        **kwargs: More arguments of `timm.create_model`.

    Raises:
        ValueError: For an image that is smaller than one patch.
    """
    if img_size is None:
        return timm.create_model(name, **kwargs)
    with torch.device("meta"):  # only to see what the class asks
        model: Any = timm.create_model(name)
        if model.pretrained_cfg.get("fixed_input_size"):
            kwargs["img_size"] = img_size
            model = timm.create_model(name, img_size=img_size)
    embed: Any = getattr(model, "patch_embed", None)
    if min(getattr(embed, "grid_size", None) or (1,)) < 1:
        raise ValueError(f"img_size={img_size} is smaller than a patch of {name}, {embed.patch_size[0]} pixels")
    return timm.create_model(name, **kwargs)


def read_by(read: ReadT) -> ReadT:
    """Decorate what reads a folder of weights and checks it: `read(folder)`, its config and its tensors."""
    _readers[:] = [read]
    return read


def load(model: str, *, pretrained: bool = True, trust: bool = False, **kwargs: Any) -> Any:
    """Return a trained model in eval mode.

    A folder is checked before it is used, as `hub.check` checks one, but for files beside its two and for networks of
    timm's: those may stand in its config, too.

    Args:
        model: Folder that `train` left (`config.json`, `model.safetensors`), or a name that timm creates with weights.
        pretrained: Give a name its weights; a folder always gives its own.
        trust: Have timm load a folder as it stands, whatever is in it.
        **kwargs: More arguments of `create`.

    Raises:
        FileNotFoundError: For what looks like a folder but holds no `config.json`.
        ValueError: For a name that is not registered, and for what the check of a folder refuses.
    """
    return open_model(model, pretrained=pretrained, trust=trust, **kwargs).eval()


def open_model(model: str, *, pretrained: bool = True, trust: bool = False, **kwargs: Any) -> Any:
    """Return a model as `load` does, in the mode in which timm creates one."""
    model = str(model)  # or a path
    folder = model.removeprefix("local-dir:")
    if is_folder(folder) and not trust:
        try:
            config, tensors = _readers[0](Path(folder))
        except ValueError as error:
            trusted = "if you trust the folder, `trust=True` loads it as it stands"
            raise ValueError(f"model={model!r} is refused: {error}; {trusted}") from None
        return build(config, tensors, **kwargs)
    if is_folder(folder):
        try:
            return create(f"local-dir:{Path(folder)}", pretrained=True, **kwargs)
        except KeyError as error:  # timm looks for what its own folders have
            raise ValueError(f"model={model!r} cannot be loaded as it stands: its config.json lacks {error}") from None
    if ":" not in model and not timm.is_model(model):
        raise ValueError(f"model={model!r} is neither a folder nor {unknown(model)}")
    return create(model, pretrained=pretrained, **kwargs)


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], **kwargs: Any) -> Any:
    """Return the model that timm makes of a folder with this config and these weights; no such folder is read.

    Args:
        config: What its `config.json` holds, with the network's name as it is registered here.
        tensors: What its `model.safetensors` holds.
        **kwargs: More arguments of `create`.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    overlay |= {"source": None, "file": None, "state_dict": dict(tensors)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return forget(create(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs))


def forget(model: Any) -> Any:
    """Take out of a model's configs the weights that it was made from, and return it."""
    for module in model.modules():  # a backbone's wrapper has a config of its own
        cfg = getattr(module, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)
    return model


def label_list(names: Any, num_classes: int) -> list[str]:
    """Return the names of classes in the classes' order, from any form in which timm's configs have them.

    Args:
        names: A sequence or an array of names; or a mapping from index to name, or from name to index, which may have
            gaps: a class without a name is called by its index.
        num_classes: How many there are.

    Raises:
        ValueError: For another form, another number of names, or indices that there are not.
    """
    if isinstance(names, Mapping):
        return _by_index(names, num_classes)
    names = names.tolist() if hasattr(names, "tolist") else names
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"label_names must be a list or a mapping, not a {type(names).__name__}")
    if len(names) != num_classes:
        raise ValueError(f"label_names has {len(names)} entries, num_classes is {num_classes}")
    return [str(name) if isinstance(name, str) else name for name in names]


def _by_index(names: Mapping[Any, Any], num_classes: int) -> list[str]:
    whole = [isinstance(value, Integral) and not isinstance(value, bool) for value in names.values()]
    pairs = [(value, key) for key, value in names.items()] if whole and all(whole) else list(names.items())
    indexed = {}
    for index, name in pairs:
        digits = isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10  # as JSON has it
        if not (digits or isinstance(index, Integral)) or not 0 <= int(index) < num_classes:
            raise ValueError(f"label_names has the index {str(index)[:80]!r}, num_classes is {num_classes}")
        indexed[int(index)] = name
    if len(indexed) != len(pairs):
        raise ValueError("label_names has an index twice")
    return [indexed.get(index, str(index)) for index in range(num_classes)]


def labels_of(model: Any) -> list[str] | None:
    """Return the names of a model's classes, None where its config has none; it raises as `label_list` does."""
    names = model.pretrained_cfg.get("label_names")
    return None if names is None else label_list(names, model.num_classes)


def words_of(model: Any) -> list[str] | None:
    """Return the names of a model's classes, ImageNet's own for weights of ImageNet-1k, None where there are none."""
    names = labels_of(model)
    if names is None and model.num_classes == 1000 and "in1k" in (model.pretrained_cfg.get("tag") or ""):
        info = ImageNetInfo("imagenet-1k")
        names = [info.index_to_description(index) for index in range(1000)]
    return names


def weights_from(file: str, model: str) -> dict[str, Any]:
    """Return what `pretrained_cfg_overlay` needs for a weights file, with the number of classes that its head has.

    Without that number timm takes the file for one with as many classes as the model's config says. The averaged
    weights are taken where there are any, as timm does.

    Args:
        file: Weights file, the authors' or ours.
        model: Registered name.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For a file that holds no weights, or a model that has its own.
    """
    if ":" in model:
        raise ValueError(f"checkpoint={str(file)!r} goes with a registered name; model={model!r} has its own weights")
    weights, facts = read_told(file, ema=None)
    if model.partition(".")[0] in our_models():  # the file may name its head as a tutorial does
        weights = translate(weights, model, file=file)
    overlay: dict[str, Any] = {"state_dict": weights, "custom_load": False} | facts
    head = head_of(weights, model)
    return overlay if head is None else overlay | {"num_classes": classes_of(weights, model, file)}


def load_checkpoint(file: str, model: str, *, num_classes: int | None = None, **kwargs: Any) -> Any:
    """Return a network with a file's weights, all of which have to fit it, but for a head of other classes.

    Args:
        file: Weights file, the authors' or ours.
        model: Registered name.
        num_classes: Classes of the network; the file's where not given. A head of as many is kept.
        **kwargs: More arguments of `create`.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For a file that holds no weights, or others than the network's: by the names of what does not fit.
    """
    overlay = weights_from(file, model)
    own = overlay.setdefault("num_classes", 0)
    wanted = own if num_classes is None else num_classes
    try:
        # timm compares what it loads only where the classes are the file's, so those come first.
        for classes in dict.fromkeys((own, wanted)):
            given = overlay | {"state_dict": dict(overlay["state_dict"])}
            network = create(model, pretrained=True, num_classes=classes, pretrained_cfg_overlay=given, **kwargs)
    except Exception as error:  # of tensors of odd shapes, each filter and each layer has its own
        raise ValueError(f"checkpoint={str(file)!r} does not fit {model}: {_short(error)}") from None
    return forget(network)


def _short(error: Exception) -> str:
    """Return in a line what torch or timm says of weights that do not fit."""
    text = " ".join(str(error).split())
    return printable(f"{text[:400]} ..." if len(text) > 400 else text or type(error).__name__)


def classes_of(weights: Mapping[str, Tensor], model: str, file: str) -> int:
    """Return the number of classes that weights in the model's layout have, 0 without a head.

    Raises:
        ValueError: For more than can be meant, or image channels of which there are too many.
    """
    head, cfg = head_of(weights, model), timm.get_pretrained_cfg(model)
    convs = getattr(cfg, "first_conv", None) or ()
    for name in (convs,) if isinstance(convs, str) else convs:
        first = weights.get(f"{name}.weight")
        if first is not None and first.ndim == 4 and first.shape[1] > MAX_CHANNELS:
            raise ValueError(f"checkpoint={str(file)!r}: {name} takes {first.shape[1]:,} channels, over {MAX_CHANNELS}")
    if head is None or head.ndim < 2:
        return 0
    if len(head) > MAX_CLASSES:
        raise ValueError(f"checkpoint={str(file)!r} has {len(head):,} classes; at most {MAX_CLASSES:,} are right")
    return len(head)


def translate(
    weights: dict[str, Tensor], model: str, img_size: int | tuple[int, int] | None = None, *, file: str = ""
) -> dict[str, Tensor]:
    """Return weights in the layout of one of this package's models, whatever layout they have.

    Args:
        weights: By name.
        model: Registered name.
        img_size: As for `create`.
        file: Where they come from, for messages.

    Raises:
        ValueError: For tensors of which that layout cannot be made.
    """
    family = sys.modules[timm.model_entrypoint(model).__module__]
    with torch.device("meta"):
        network = create(model, img_size=img_size)
    try:
        translated: dict[str, Tensor] = family.checkpoint_filter_fn(weights, network)
    except Exception as error:  # of tensors of odd shapes, each layout has its own
        reason = f"{type(error).__name__}: {_short(error)}"
        raise ValueError(f"checkpoint={str(file)!r} does not fit {model}: {reason}") from None
    return counters(network.state_dict(), translated) | translated


def head_of(weights: Mapping[str, Tensor], model: str) -> Tensor | None:
    """Return the classifier's weights, `(num_classes, C)`, from a state dict in the model's layout, None without."""
    cfg: Any = timm.get_pretrained_cfg(model)
    names = getattr(cfg, "classifier", None) or ("",)
    name = names if isinstance(names, str) else names[0]  # several are equally wide
    return weights.get(f"{name}.weight")
