"""What more than one family uses unchanged: maps cut into patches, as MobileViT's transformers see them.

Shapes: B batch, D channels, H x W map, p patch side, P = p * p places in a patch, N patches.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["fold", "unfold"]


@torch.fx.wrap  # a leaf for fx tracers, which know it by its name in this file: it branches on sizes
def _resize(x: Tensor, height: int, width: int) -> Tensor:
    # Bilinear resizing to the same size changes nothing; graphs that are to serve any size always have it.
    same = not torch.jit.is_tracing() and not torch.compiler.is_compiling() and x.shape[2:] == (height, width)
    if same:
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def unfold(x: Tensor, p: int) -> Tensor:
    """Gather the cells that lie at the same place of their patch, `(B, D, H, W) -> (B, P, D, N)`.

    A map that the patch does not divide is resized to the next multiple first.
    """
    rows, columns = (x.shape[2] + p - 1) // p, (x.shape[3] + p - 1) // p
    x = _resize(x, rows * p, columns * p)
    # One small map for each place. Slices, since graphs for any size cannot split a side in two.
    return torch.stack([x[:, :, i // p :: p, i % p :: p] for i in range(p * p)], dim=1).flatten(3)


def fold(x: Tensor, p: int, height: int, width: int) -> Tensor:
    """Put the cells back, `(B, P, D, N) -> (B, D, height, width)`."""
    B, _, D, N = x.shape
    rows, columns = (height + p - 1) // p, (width + p - 1) // p
    x = x.reshape(B, p, p, D, N).permute(0, 3, 1, 4, 2)  # (B, D, p, N, p)
    x = x.reshape(B, D, p, rows, columns * p).transpose(2, 3).reshape(B, D, rows * p, columns * p)
    return _resize(x, height, width)
