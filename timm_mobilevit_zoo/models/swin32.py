"""Swin for images of 32 x 32 pixels: attention inside small windows that shift from block to block.

Each window of 4 x 4 cells attends to itself; every other block shifts the windows by half their side, so that
neighbours meet. Between stages, patch merging halves the map and doubles the channels. The class is timm's
`SwinTransformer`. A published Swin starts at stride 4 and has four stages, which would leave 32 px with a map of one
cell; here patches of 2 pixels and three stages give maps of 16, 8 and 4 cells a side, which windows of 4 tile exactly.

Paper: Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (2021), https://arxiv.org/abs/2103.14030
Code: timm's swin_transformer.py (Apache-2.0)

There are no trained weights.

Shapes: inside, maps are channels last, (B, H / s, W / s, C), at strides s = 2, 4, 8; so is what `forward_features`
returns. A level of the backbone is (B, C, H / s, W / s).
"""

import inspect
from functools import partial
from typing import Any

from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from ._cfg import pinned_default_cfgs, register_model
from ._sized import build_sized, cifar_cfg

__all__: list[str] = []

_EMPTY = "timm's Swin folds windows by reshapes that are ambiguous without images"
limits = {"test_empty_batch": _EMPTY, "test_empty_batch_of_a_backbone": _EMPTY}
if "kwargs" in inspect.signature(SwinTransformer).parameters:  # timm 1.0.29; not 1.0.31
    limits["test_unknown_arguments_are_refused"] = "this timm's Swin swallows arguments that it does not know"

default_cfgs = pinned_default_cfgs(
    {
        "swin_nano_patch2_window4_32.untrained": cifar_cfg(
            pool_size=(4, 4),
            classifier="head.fc",
            paper_ids="arXiv:2103.14030",
            paper_name="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        )
    }
)

_create = partial(build_sized, SwinTransformer, checkpoint_filter_fn)


@register_model
def swin_nano_patch2_window4_32(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin with three stages of two blocks."""
    args: dict[str, Any] = dict(patch_size=2, window_size=4, embed_dim=48, depths=(2, 2, 2), num_heads=(2, 4, 8))
    args |= kwargs
    # The getter returns channels-first maps, which every client takes; the list would return timm's channels-last ones.
    features = {"out_indices": tuple(range(len(args["depths"]))), "flatten_sequential": True, "feature_cls": "getter"}
    return _create("swin_nano_patch2_window4_32", pretrained, feature_cfg=features, **args)
