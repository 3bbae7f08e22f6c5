"""Classify images with a model that a training run left, or that timm can create with weights."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor

from ._data import reader
from ._names import our_models

__all__ = ["create", "head_of", "load", "predict", "translate", "weights_from"]


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
    folder = Path(model)
    if (folder / "config.json").is_file():
        return create(f"local-dir:{folder}", pretrained=True, **kwargs).eval()
    if folder.exists() or "/" in model.partition(":")[0]:
        raise FileNotFoundError(f"model={model!r} is no folder with a config.json and weights")
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


@torch.inference_mode()
def predict(model: Any, images: Sequence[str], *, top: int = 5, batch_size: int = 64) -> list[dict[str, Any]]:
    """Return the likeliest classes of each image.

    Args:
        model: What `load` returned.
        images: Image files.
        top: How many classes, at most.
        batch_size: Images at a time.

    Returns:
        For each image its `image` path and `classes`, a list of `label`, `index` and `probability`, likeliest first;
        for one that cannot be read `error` instead of `classes`.

    Raises:
        ValueError: For `top` or `batch_size` below 1.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top={top} and batch_size={batch_size} must be at least 1")
    read = reader(resolve_data_config({}, model=model))
    labels = model.pretrained_cfg.get("label_names") or range(model.num_classes)
    results: list[dict[str, Any]] = []
    for start in range(0, len(images), batch_size):
        batch = []
        for path in images[start : start + batch_size]:
            results.append({"image": str(path)})
            try:
                batch.append((results[-1], read(path)))
            except ValueError as error:
                results[-1]["error"] = str(error)
        if not batch:
            continue
        device = next(model.parameters()).device
        logits = model(torch.stack([pixels for _, pixels in batch]).to(device)).float()
        shares, indices = logits.softmax(1).topk(min(top, logits.shape[1]))
        for (result, _), row, column in zip(batch, shares.tolist(), indices.tolist(), strict=True):
            result["classes"] = [
                {"label": str(labels[i]), "index": i, "probability": p} for p, i in zip(row, column, strict=True)
            ]
    return results
