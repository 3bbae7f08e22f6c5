"""A hybrid for images of 32 x 32 pixels: a convolutional stem whose map's cells are a transformer's tokens.

Convolutions see edges and textures, which a transformer would have to learn from few images; the transformer then
relates all places of the map. The stem is timm's `resnet10t` up to the end of its first stage, at stride 4, so the
transformer gets the same 8 x 8 tokens as from patches of 4 pixels. timm's `HybridEmbed` joins it to timm's
`VisionTransformer`, which has the width and depth of `vit_nano_patch4_32`, with timm's norms and GELU.

Paper: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (2020), sec. 3.1, "Hybrid
    Architecture", https://arxiv.org/abs/2010.11929
Code: timm's vision_transformer_hybrid.py (Apache-2.0)

There are no trained weights, and none of the stem's are downloaded.

Shapes: N = (H / 4) * (W / 4) cells, C channels; tokens (B, 1 + N, C); a level of the backbone (B, C, H / 4, W / 4).
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from ._cfg import pinned_default_cfgs, register_model
from ._sized import VIT_LIMITS, build_sized, cifar_cfg

__all__: list[str] = []

limits = VIT_LIMITS

default_cfgs = pinned_default_cfgs(
    {
        "vit_nano_hybrid_32.untrained": cifar_cfg(
            first_conv="patch_embed.backbone.conv1.0",
            paper_ids="arXiv:2010.11929",
            paper_name="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        )
    }
)


def _embed(in_chans: int, device: Any = None, dtype: Any = None, **kwargs: Any) -> HybridEmbed:
    stem: Any = timm.create_model(
        "resnet10t", features_only=True, out_indices=(1,), in_chans=in_chans, device=device, dtype=dtype
    )
    # A plain sequence: gradient checkpointing would recompute timm's wrapper, and its batch norms count a batch twice.
    backbone = nn.Sequential(OrderedDict(stem.items()))
    return HybridEmbed(backbone, in_chans=in_chans, device=device, dtype=dtype, **kwargs)


_create = partial(build_sized, VisionTransformer, checkpoint_filter_fn)


@register_model
def vit_nano_hybrid_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Stem and first stage of ResNet-10-T, then four transformer blocks."""
    args: dict[str, Any] = dict(patch_size=1, embed_dim=48, depth=4, num_heads=4, embed_layer=_embed)
    return _create("vit_nano_hybrid_32", pretrained, **args | kwargs)
