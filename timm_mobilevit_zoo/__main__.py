"""`python -m timm_mobilevit_zoo` is the command `timm-mobilevit-zoo`."""

from timm_mobilevit_zoo_cli import main

main()
