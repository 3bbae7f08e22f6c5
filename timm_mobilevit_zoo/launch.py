"""The launcher of scripts, at the path that it has always had; it stands in `timm_mobilevit_zoo_cli`."""

from timm_mobilevit_zoo_cli.launch import run

__all__ = ["run"]
