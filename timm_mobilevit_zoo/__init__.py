"""Lightweight vision networks for timm: importing this package registers them."""

from timm_mobilevit_zoo_cli.catalogue import list_models
from timm_mobilevit_zoo_cli.main import parse_early

__version__ = "0.1.0"

parse_early()  # of `python -m timm_mobilevit_zoo` alone: what follows takes seconds

from . import attention, hub, models  # noqa: E402
from .fusion import fuse  # noqa: E402

__all__ = ["__version__", "attention", "fuse", "hub", "list_models", "models"]
