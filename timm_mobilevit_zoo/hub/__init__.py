"""Weights as folders, and their way to the Hugging Face Hub and back: written, checked, published, pinned.

A folder holds `model.safetensors`, `config.json` and a model card, `README.md`. It is what
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and what a repository on the Hub holds. The Hub carries
data only; a network is always built from this package.
"""

from . import weights as weights
from .checks import Refused
from .folder import check, export
from .remote import HubError
from .transfer import load, pull, push

__all__ = ["HubError", "Refused", "check", "export", "load", "pull", "push"]
