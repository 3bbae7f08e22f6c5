"""Plug-and-play attention modules: `(B, C, H, W)` to the same shape, for any H and W.

Each is `Attn(dim, <keywords with defaults>, device=None, dtype=None)`, so it also serves as timm's `attn_layer`.
"""

from .models.casvit import AdditiveTokenMixer
from .models.cloformer import CloAttention
from .models.edgevit import LocalGlobalLocalAttention
from .models.efficientmod import EfficientModulation
from .models.mobilevit_wide import MobileViTAttention
from .models.mobilevitv3 import MobileViTv3Block
from .models.moganet import MultiOrderGatedAggregation
from .models.recnext import RecAttention, RecConv
from .models.repnext import ChunkConv
from .models.unireplknet import DilatedReparamBlock
from .models.van import LargeKernelAttention

__all__ = [
    "AdditiveTokenMixer",
    "ChunkConv",
    "CloAttention",
    "DilatedReparamBlock",
    "EfficientModulation",
    "LargeKernelAttention",
    "LocalGlobalLocalAttention",
    "MobileViTAttention",
    "MobileViTv3Block",
    "MultiOrderGatedAggregation",
    "RecAttention",
    "RecConv",
]
