"""Networks for large images, for `timm-mobilevit-zoo bench growth:NAME`: CloFormer-XXS made cheaper, and a part of it.

None has other weights than `cloformer_xxs`, but `first_local`; what each costs in accuracy has not been measured.
"""

from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import timm_mobilevit_zoo  # noqa: F401, registers the models
from timm_mobilevit_zoo.models._pooled import PooledAttention


def wide_windows() -> nn.Module:
    """CloFormer-XXS with windows four times as wide: 64 keys in each stage at 1024 px, where 224 px have 49."""
    return timm.create_model("cloformer_xxs", window_sizes=(32, 16, 8, 4))


def first_wide() -> nn.Module:
    """CloFormer-XXS with windows four times as wide in the first stage alone."""
    return timm.create_model("cloformer_xxs", window_sizes=(32, 4, 2, 1))


def first_local() -> nn.Module:
    """CloFormer-XXS whose first stage has no pooled branch: all of its heads are AttnConv's."""
    return timm.create_model("cloformer_xxs", group_splits=((4, 0), (2, 2), (4, 4), (4, 12)))


class Halved(nn.Module):
    """A network on an image that was halved first, by averaging. `(B, 3, H, W) -> (B, classes)`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.avg_pool2d(x, 2))


def halved() -> nn.Module:
    """CloFormer-XXS on the halved image."""
    return Halved(timm.create_model("cloformer_xxs"))


class PooledBranch(nn.Module):
    """The pooled branch of CloFormer-XXS's first stage, behind the cheapest stem. `(B, 3, H, W) -> (B, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.branch = PooledAttention(32, 8, head_dim=8, window_size=8, attn_drop=0.0, device=None, dtype=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.stem(x)).mean((2, 3))


def pooled_branch() -> nn.Module:
    """Return the pooled branch of CloFormer-XXS's first stage alone."""
    return PooledBranch()
