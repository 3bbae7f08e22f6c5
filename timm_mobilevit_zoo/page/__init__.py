"""A static page that runs models in a browser, with all that it needs: the models and ONNX Runtime Web."""

from timm_mobilevit_zoo_cli.checks import check_port

from .server import serve
from .write import page

__all__ = ["check_port", "page", "serve"]
