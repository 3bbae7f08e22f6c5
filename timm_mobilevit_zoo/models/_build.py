"""Registered variants built as timm builds its own, from checkpoints that fit as a whole or not at all."""

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from timm_mobilevit_zoo_cli.text import printable

from ._args import check_levels, drop_size_args
from .checkpoints import counters
from .pretrained import build_pinned

__all__ = ["build_staged", "renamed", "strict_filter", "with_zero_biases"]

ModelT = TypeVar("ModelT", bound=nn.Module)
FilterFn = Callable[[dict[str, Any], ModelT], dict[str, Tensor]]


def renamed(state_dict: dict[str, Any], renames: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a state dict under other names, its values as they are.

    Args:
        state_dict: With its authors' names.
        renames: Patterns, and what `re.sub` puts in their place; each name goes through all of them, in their order.
    """
    out = {}
    for key, value in state_dict.items():
        for pattern, ours in renames:
            key = re.sub(pattern, ours, key)
        out[key] = value
    return out


def strict_filter(filter_fn: FilterFn[ModelT], pretrained_strict: bool = True) -> FilterFn[ModelT]:
    """Make a checkpoint filter refuse what does not fit: timm only logs it once the class count differs."""
    if not pretrained_strict:
        return filter_fn

    def checked(state_dict: dict[str, Any], model: ModelT) -> dict[str, Tensor]:
        out = filter_fn(state_dict, model)
        out |= counters(model.state_dict(), out)
        cfg: Any = model.pretrained_cfg
        classifiers = cfg.get("classifier") or "head"  # one name or, as DeiT has, several
        names = [classifiers] if isinstance(classifiers, str) else classifiers
        heads = tuple(f"{name}{end}" for name in names for end in (".", "_norm."))  # there is no norm without classes
        wrong = {
            "missing": sorted(k for k in model.state_dict().keys() - out.keys() if not k.startswith(heads)),
            "unexpected": sorted(k for k in out.keys() - model.state_dict().keys() if not k.startswith(heads)),
        }
        if any(wrong.values()):
            shown = "; ".join(f"{len(k)} {name}: {', '.join(k[:5])[:400]}" for name, k in wrong.items() if k)
            raise ValueError(printable(f"the checkpoint does not fit {type(model).__name__}: {shown}"))
        return out

    return checked


def with_zero_biases(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights with zeros for each bias that is missing beside its weight: of code that leaves those out.

    Args:
        weights: State dict in the model's layout.
        model: The network, which has the biases.
    """
    zeros = {}
    for name in model.state_dict().keys() - weights.keys():
        beside = weights.get(f"{name.removesuffix('bias')}weight")
        if name.endswith(".bias") and beside is not None:
            zeros[name] = beside.new_zeros(len(beside))
    return weights | zeros


def build_staged(
    model_cls: type[ModelT],
    filter_fn: FilterFn[ModelT],
    variant: str,
    pretrained: bool = False,
    *,
    stem_level: bool = True,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> ModelT:
    """Build a registered variant as timm does: weights, `num_classes`, `in_chans`, `features_only`.

    Args:
        model_cls: The family's class.
        filter_fn: The family's `checkpoint_filter_fn(state_dict, model)`.
        variant: Registered name.
        pretrained: Load the weights that the variant's config names.
        stem_level: Whether the stem is the pyramid's first level. `features_only` returns all levels by default:
            clients take these for all that there are, and ask for them by position.
        device: Where to build. It reaches every layer as the default device, so that no family hands it down.
        dtype: Floating-point type of parameters and buffers.
        **kwargs: Arguments of `timm.models.build_model_with_cfg` and of `model_cls`. Those by which timm's
            transformers are told an image size (`img_size`, `dynamic_img_size` and the like) change nothing.

    Raises:
        ValueError: For `out_indices` of levels that there are not, or an `img_size` that is none.
    """
    drop_size_args(kwargs)
    num_levels = 5 if stem_level else 4
    if kwargs.get("features_only"):
        check_levels(variant, num_levels, kwargs)
    with torch.device(device) if device is not None else nullcontext():
        model: ModelT = build_pinned(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=strict_filter(filter_fn, kwargs.get("pretrained_strict", True)),
            # Nothing is flattened: no level is a bare sequence. But timm's hook wrapper, if it may rewrite, leaves out
            # what comes after the last level, as its others do.
            feature_cfg={"out_indices": tuple(range(num_levels)), "flatten_sequential": True},
            **kwargs,
        )
    return model.to(dtype=dtype) if dtype is not None else model
