"""DeiT for images of 32 x 32 pixels: a Vision Transformer with a second token that learns from a teacher.

A distillation token joins the class token; each has its own classifier. In training the one learns the label and the
other what a teacher says (`model.set_distilled_training()`); afterwards their logits are averaged. The class is timm's
`VisionTransformerDistilled`; this file only gives it a size, that of `vit_nano_patch4_32`, so that the two compare.
Norms and GELU are timm's, as in its own DeiTs.

Paper: Training data-efficient image transformers & distillation through attention (2020),
    https://arxiv.org/abs/2012.12877
Code: timm's deit.py (Apache-2.0)

There are no trained weights.

Shapes: N = (H / 4) * (W / 4) patches, C channels; tokens (B, 2 + N, C); a level of the backbone (B, C, H / 4, W / 4).
"""

from functools import partial
from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import checkpoint_filter_fn

from ._cfg import pinned_default_cfgs, register_model
from ._sized import VIT_LIMITS, build_sized, cifar_cfg

__all__: list[str] = []

limits = VIT_LIMITS | {
    "test_reset_classifier_without_pooling": "its two classifiers read one token each: no pooling to remove"
}

default_cfgs = pinned_default_cfgs(
    {
        "deit_nano_distilled_patch4_32.untrained": cifar_cfg(
            classifier=("head", "head_dist"),
            paper_ids="arXiv:2012.12877",
            paper_name="Training data-efficient image transformers & distillation through attention",
        )
    }
)

_create = partial(build_sized, VisionTransformerDistilled, checkpoint_filter_fn)


@register_model
def deit_nano_distilled_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """DeiT with a distillation token, at the tutorial ViT's width and depth."""
    args: dict[str, Any] = dict(patch_size=4, embed_dim=48, depth=4, num_heads=4)
    return _create("deit_nano_distilled_patch4_32", pretrained, **args | kwargs)
