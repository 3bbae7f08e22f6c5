"""The command line's `main`, at the path that it has always had; it stands in `timm_mobilevit_zoo_cli`."""

from timm_mobilevit_zoo_cli import main

__all__ = ["main"]
