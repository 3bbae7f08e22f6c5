"""Light-weight vision transformers for timm: importing this package registers them."""

from . import attention, models
from ._fuse import fuse

__all__ = ["__version__", "attention", "fuse", "models"]

__version__ = "0.1.0"
