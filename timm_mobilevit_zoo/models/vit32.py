"""The Vision Transformer for images of 32 x 32 pixels: the network of the ViT tutorials, under a timm name.

An image is cut into patches of 4 x 4 pixels; each becomes a token, a class token joins them, and after a few
transformer blocks the class token is classified. Nothing is implemented here: the class is timm's `VisionTransformer`,
so attention, feature extraction and changes of the image size are timm's. Two sizes:

    * `vit_nano_patch4_32` is the tutorial's network, for whoever comes from there with a checkpoint or a question. Its
      author reports 75.5 % on CIFAR-10;
    * `vit_tiny_patch4_32` is for training: `vit_tiny_patch16_224`, a size that ViT recipes are written for, with
      patches of 4 pixels.

Paper: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (2020),
    https://arxiv.org/abs/2010.11929
Code: https://github.com/tintn/vision-transformer-from-scratch, commit 52c59c6 (MIT), for `vit_nano_patch4_32`

Changes from the tutorial's code:
    * the model returns logits, where it returns a tuple of logits and attention maps;
    * initial weights are timm's: class token and patch projection are drawn differently;
    * its `attention_probs_dropout_prob` is `attn_drop_rate`; its `hidden_dropout_prob` is close to `proj_drop_rate` and
      `pos_drop_rate` together, but timm's MLP then drops after its activation too.

There are no trained weights. Loaded weights follow the image size: timm resamples the positions for `img_size=`.

Shapes: N = (H / 4) * (W / 4) patches, C channels; tokens (B, 1 + N, C); a level of the backbone (B, C, H / 4, W / 4).
"""

import re
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as timm_filter_fn
from torch import Tensor

from ._build import renamed
from ._cfg import pinned_default_cfgs, register_model
from ._sized import VIT_LIMITS, build_sized, cifar_cfg

__all__: list[str] = []

limits = VIT_LIMITS

# Weights: the tutorial's names on the left.
_RENAMES = (
    (r"^embedding\.cls_token$", "cls_token"),
    (r"^embedding\.position_embeddings$", "pos_embed"),
    (r"^embedding\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.blocks\.", "blocks."),
    (r"\.attention\.qkv_projection\.", ".attn.qkv."),
    (r"\.attention\.output_projection\.", ".attn.proj."),
    (r"\.attention\.heads\.", ".attn.heads."),
    (r"\.layernorm_([12])\.", r".norm\1."),
    (r"\.mlp\.dense_([12])\.", r".mlp.fc\1."),
    (r"^classifier\.", "head."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VisionTransformer) -> dict[str, Tensor]:
    """Translate the tutorial's checkpoint, bare or under `model` or `state_dict`; timm's go to timm's own filter."""
    for wrapper in ("model", "state_dict"):
        state_dict = state_dict.get(wrapper, state_dict)
    out = renamed(state_dict, ((r"^module\.", ""), *_RENAMES))
    # The tutorial's first attention has three linears a head; timm's qkv is all queries, then keys, then values.
    blocks: Any = model.blocks
    for name in model.state_dict():
        if match := re.fullmatch(r"(blocks\.(\d+)\.attn\.)qkv\.(weight|bias)", name):
            heads = range(blocks[int(match[2])].attn.num_heads)
            parts = [f"{match[1]}heads.{h}.{part}.{match[3]}" for part in ("query", "key", "value") for h in heads]
            if all(part in out for part in parts):
                out[name] = torch.cat([out.pop(part) for part in parts])
    return timm_filter_fn(out, model)


_CODE = "https://github.com/tintn/vision-transformer-from-scratch"
source_commits = {_CODE: "52c59c6e52f66f9265e799457c9dcedc020fd483"}  # what this file follows

_cfg = partial(
    cifar_cfg,
    paper_ids="arXiv:2010.11929",
    paper_name="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
)
default_cfgs = pinned_default_cfgs(
    {
        "vit_nano_patch4_32.untrained": _cfg(license="mit", origin_url=_CODE),
        "vit_tiny_patch4_32.untrained": _cfg(),
    }
)

_create = partial(build_sized, VisionTransformer, checkpoint_filter_fn)


@register_model
def vit_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The tutorial's ViT for CIFAR-10: four blocks, no norm behind them."""
    args: dict[str, Any] = dict(
        patch_size=4,
        embed_dim=48,
        depth=4,
        num_heads=4,
        final_norm=False,
        norm_layer=partial(LayerNorm, eps=1e-5),
        act_layer="gelu_tanh",
    )
    return _create("vit_nano_patch4_32", pretrained, **args | kwargs)


@register_model
def vit_tiny_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti with patches of 4 pixels."""
    args: dict[str, Any] = dict(patch_size=4, embed_dim=192, depth=12, num_heads=3)
    return _create("vit_tiny_patch4_32", pretrained, **args | kwargs)
