"""Inference copies of networks: norms, scales and branches folded, weights packed. `fuse` is the function."""

from .fold import fuse

__all__ = ["fuse"]
