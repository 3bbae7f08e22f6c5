"""The command `timm-mobilevit-zoo`, which starts without torch.

It stands beside the package because importing anything of the package registers its networks, and so imports timm and
torch: seconds, for a `--help`. What a command's words alone can be wrong about is told before that.
"""

from .main import main

__all__ = ["main"]
