"""Classify images with a model that a training run left, or that timm can create with weights."""

from collections.abc import Sequence
from typing import Any

import torch

from timm_mobilevit_zoo.common.images import data_config, reader
from timm_mobilevit_zoo.common.progress import is_shown, progress
from timm_mobilevit_zoo.models.copies import twin
from timm_mobilevit_zoo.models.loading import words_of
from timm_mobilevit_zoo_cli.checks import check

__all__ = ["predict"]


@torch.inference_mode()
def predict(model: Any, images: Sequence[str], *, top: int = 5, batch_size: int = 64) -> list[dict[str, Any]]:
    """Return the likeliest classes of each image.

    Args:
        model: What `load` returned. It is run in evaluation mode; its own mode does not change.
        images: Image files.
        top: Number of classes to return for each image, at most.
        batch_size: Images at a time.

    Returns:
        For each image its `image` path and `classes`, a list of `label`, `index` and `probability`, likeliest first;
        for one that cannot be read, or for which the network's output is not finite, `error` instead of `classes`.

    Raises:
        ValueError: For `top` or `batch_size` below 1.
    """
    check("predict", dict(locals()))
    network = twin(model)
    read = reader(data_config(model))
    labels = words_of(model) or range(model.num_classes)
    results: list[dict[str, Any]] = []
    starts = range(0, len(images), batch_size)
    for start in progress(starts, "classifying images", f"batches of {batch_size}", hide=not is_shown()):
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
        logits = network(torch.stack([pixels for _, pixels in batch]).to(device)).float()
        shares, indices = logits.softmax(1).topk(min(top, logits.shape[1]))
        finite = torch.isfinite(logits).all(1).tolist()
        for (result, _), row, column, right in zip(batch, shares.tolist(), indices.tolist(), finite, strict=True):
            if not right:
                result["error"] = f"{result['image']}: the network's output is not finite, so it tells no class"
                continue
            result["classes"] = [
                {"label": str(labels[i]), "index": i, "probability": p} for p, i in zip(row, column, strict=True)
            ]
    return results
