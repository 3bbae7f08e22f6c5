"""Light-weight vision transformers for timm: importing this package registers them."""

from . import attention, models

__all__ = ["__version__", "attention", "models"]

__version__ = "0.1.0"
