"""Networks created and given weights: a registered name, a folder that training left, a file of weights."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from timm_mobilevit_zoo_cli.checks import is_folder

from .names import our_models

__all__ = ["create", "head_of", "load", "translate", "weights_from"]


def create(name: str, *, img_size: int | None = None, **kwargs: Any) -> Any:
    """Create a model as timm does, for an image size also where its class takes that as an argument.

    Args:
        name: What `timm.create_model` takes.
        img_size: Side of the square input, in pixels; the model's own where not given.
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


def load(model: str, *, pretrained: bool = True, **kwargs: Any) -> Any:
    """Return a trained model in eval mode.

    Args:
        model: Folder that `train` left (`config.json`, `model.safetensors`), or a name that timm creates with weights.
        pretrained: Give a name its weights; a folder always gives its own.
        **kwargs: More arguments of `create`.

    Raises:
        FileNotFoundError: For what looks like a folder but holds no `config.json`.
        ValueError: For a name that is not registered.
    """
    if is_folder(model):
        return create(f"local-dir:{Path(model)}", pretrained=True, **kwargs).eval()
    if ":" not in model and not timm.is_model(model):
        raise ValueError(f"model={model!r} is neither a folder nor registered; see timm.list_models()")
    return create(model, pretrained=pretrained, **kwargs).eval()


def weights_from(file: str, model: str) -> dict[str, Any]:
    """Return what `pretrained_cfg_overlay` needs for a weights file, with the number of classes that its head has.

    Without that number timm takes the file for one with as many classes as the model's config says.

    Args:
        file: Weights file, the authors' or ours.
        model: Registered name.

    Raises:
        ValueError: For a file that holds no weights.
    """
    overlay: dict[str, Any] = {"file": file}
    if ":" in model:
        return overlay
    try:
        weights = timm.models.load_state_dict(file)
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"checkpoint={file!r} is no file of weights: {str(error).partition(chr(10))[0]}") from error
    if model in our_models():  # the file may name its head as a tutorial does
        weights = translate(weights, model)
    head = head_of(weights, model)
    return overlay if head is None else overlay | {"num_classes": len(head)}


def translate(weights: dict[str, Tensor], model: str, img_size: int | None = None) -> dict[str, Tensor]:
    """Return weights in the layout of one of this package's models, whatever layout they have."""
    family = sys.modules[timm.model_entrypoint(model).__module__]
    with torch.device("meta"):
        network = create(model, img_size=img_size)
    translated: dict[str, Tensor] = family.checkpoint_filter_fn(weights, network)
    return translated


def head_of(weights: Mapping[str, Tensor], model: str) -> Tensor | None:
    """Return the classifier's weights, `(num_classes, C)`, from a state dict in the model's layout, None without."""
    cfg: Any = timm.get_pretrained_cfg(model)
    name = cfg.classifier if isinstance(cfg.classifier, str) else cfg.classifier[0]  # several are equally wide
    return weights.get(f"{name}.weight")
