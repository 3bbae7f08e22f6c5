"""`python -m timm_mobilevit_zoo` is the command `timm-mobilevit-zoo`."""

from .cli import main

main()
