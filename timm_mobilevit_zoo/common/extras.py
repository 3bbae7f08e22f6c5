"""Import what an extra brings, or say which one is missing."""

import importlib
from typing import Any

from timm_mobilevit_zoo_cli.installed import pip_line

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Return an optional module.

    Args:
        module: Its import name.
        extra: The extra of this package that installs it.

    Raises:
        ModuleNotFoundError: Names the pip command that mends it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(f"{error.name} is not installed: {pip_line(extra)}", name=error.name) from None
