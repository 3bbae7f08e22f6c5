"""Fields that every pretrained config of this package shares; a model file adds what is its own."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["imagenet_cfg"]


def imagenet_cfg(**fields: Any) -> dict[str, Any]:
    """Return a `timm` pretrained config for ImageNet-1k at 224 px.

    Args:
        **fields: Entries of `timm.models.PretrainedCfg` to add or replace.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **fields,
    }
