"""Plug-and-play attention modules: `(B, C, H, W)` to the same shape, for any H and W.

Each is `Attn(dim, <keywords with defaults>, device=None, dtype=None)`, so it also serves as timm's `attn_layer`.
"""

from .models.cloformer import CloAttention
from .models.efficientmod import EfficientModulation
from .models.mobilevit_wide import MobileViTAttention

__all__ = ["CloAttention", "EfficientModulation", "MobileViTAttention"]
