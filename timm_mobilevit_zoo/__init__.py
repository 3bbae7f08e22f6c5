"""Light-weight vision transformers for timm: importing this package registers them."""

from importlib.metadata import version

from . import attention, models

__all__ = ["__version__", "attention", "models"]

__version__ = version("timm-mobilevit-zoo")
