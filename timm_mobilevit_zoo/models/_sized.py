"""What new sizes of timm's own classes share: a config for CIFAR's images, and the build with strict loading."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._args import check_levels
from ._build import strict_filter
from .pretrained import build_pinned

__all__ = ["VIT_LIMITS", "build_sized", "cifar_cfg"]

# What timm's ViTs cannot do of what the tests ask of every model: the tests' names, each with the reason.
VIT_LIMITS = {
    "test_empty_batch_of_a_backbone": "timm's ViT makes maps of tokens by a reshape that is ambiguous without images",
    "test_torchscript_of_a_backbone": "timm's ViT returns levels as a list or in a dict; TorchScript takes one type",
}


def cifar_cfg(**fields: Any) -> dict[str, Any]:
    """Return a `timm` pretrained config for 10 classes at 32 px, normalised to [-1, 1] as ViT tutorials do.

    Args:
        **fields: Entries of `timm.models.PretrainedCfg` to add or replace.
    """
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/huggingface/pytorch-image-models",
        **fields,
    }


def build_sized(
    model_cls: Callable[..., Any],
    filter_fn: Callable[[dict[str, Any], Any], dict[str, Tensor]],
    variant: str,
    pretrained: bool = False,
    **kwargs: Any,
) -> Any:
    """Build a variant on a class of timm's, as timm does, but refuse a checkpoint that does not fit.

    Args:
        model_cls: timm's class.
        filter_fn: Translates a checkpoint, `filter_fn(state_dict, model)`.
        variant: Registered name.
        pretrained: Load the weights that the variant's config names.
        **kwargs: Arguments of `timm.models.build_model_with_cfg` and of `model_cls`, `device` and `dtype` among them.
            Without a `feature_cfg` the backbone is that of timm's ViTs: maps from its last three blocks.

    Raises:
        ValueError: For an `output_stride`, `out_indices` of levels that there are not, or a `feature_cls` that would
            return tokens for maps.
    """
    if (stride := kwargs.pop("output_stride", None)) is not None:
        raise ValueError(
            f"output_stride={stride}: {variant}, on timm's {model_cls.__name__}, cannot be dilated; omit it"
        )
    if kwargs.get("features_only"):
        check_levels(variant, len(kwargs["depths"]) if "depths" in kwargs else kwargs["depth"], kwargs)
        feature_cls = kwargs.get("feature_cls", "getter")
        if "feature_cfg" not in kwargs and isinstance(feature_cls, str) and feature_cls != "getter":
            raise ValueError(
                f"feature_cls={feature_cls}: between its blocks {variant} has tokens, not maps; omit it, or use getter"
            )
    kwargs.setdefault("feature_cfg", {"out_indices": 3, "feature_cls": "getter"})
    fits = strict_filter(filter_fn, kwargs.get("pretrained_strict", True))
    return build_pinned(model_cls, variant, pretrained, pretrained_filter_fn=fits, **kwargs)
