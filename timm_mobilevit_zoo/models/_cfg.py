"""What the pretrained configs of this package share: their fields, and where published weights are."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

from .names import register_model
from .pins import pins
from .places import known_revision

__all__ = ["birder_cfg", "imagenet_cfg", "pinned_default_cfgs", "register_model"]


def pinned_default_cfgs(cfgs: Mapping[str, dict[str, Any]]) -> Any:
    """Return timm's `generate_default_cfgs`, with the Hub repository of those whose weights are published.

    Args:
        cfgs: Fields of `timm.models.PretrainedCfg` by `name.tag`.
    """
    pinned: dict[str, Any] = {}
    for name, cfg in cfgs.items():
        architecture, _, tag = name.removesuffix("*").partition(".")  # timm's mark of the default
        found = pins(architecture, tag)
        commit = known_revision(architecture, tag, cfg.get("hf_hub_id"))
        repository = found.hf_hub_id if found else f"{cfg['hf_hub_id']}@{commit}" if commit else None
        pinned[name] = cfg | {"hf_hub_id": repository} if repository else cfg
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


def birder_cfg(network: str, cfg: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return the config of a bird classifier of the library birder: 371 species of the set il-common, at 256 px.

    The names of the species, mean and std come with the file; until then mean and std are birder's own. The library is
    under Apache-2.0, the files under no licence that is stated.

    Args:
        network: birder's name of the network.
        cfg: The family's function of such fields.
    """
    return cfg(
        url=f"https://f000.backblazeb2.com/file/birder/models/{network}_il-common.pt",
        num_classes=371,
        input_size=(3, 256, 256),
        pool_size=(8, 8),
        crop_pct=1.0,
        mean=(0.5191, 0.5306, 0.4877),
        std=(0.2316, 0.2304, 0.2588),
        license=None,
        origin_url="https://github.com/birder-project/birder",
        notes=("no licence is stated for this file",),
    )
