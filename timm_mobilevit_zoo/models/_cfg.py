"""What the pretrained configs of this package share: their fields, and where published weights are."""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

from .names import register_model
from .pins import pins

__all__ = ["imagenet_cfg", "pinned_default_cfgs", "register_model"]


def pinned_default_cfgs(cfgs: Mapping[str, dict[str, Any]]) -> Any:
    """Return timm's `generate_default_cfgs`, with the Hub repository of those whose weights are published.

    Args:
        cfgs: Fields of `timm.models.PretrainedCfg` by `name.tag`.
    """
    pinned: dict[str, Any] = {}
    for name, cfg in cfgs.items():
        architecture, _, tag = name.removesuffix("*").partition(".")  # timm's mark of the default
        found = pins(architecture, tag)
        pinned[name] = cfg | {"hf_hub_id": found.hf_hub_id} if found else cfg
    return generate_default_cfgs(pinned)


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
