"""The formats that `export` writes, a line each."""

from . import coreml, delegates, executorch, litert, mnn, ncnn, onnx, openvino
from .format import Format

__all__ = ["FORMATS"]

FORMATS: dict[str, Format] = {
    "onnx": onnx.FORMAT,
    "openvino": openvino.FORMAT,
    "executorch": executorch.FORMAT._replace(backends=delegates.BACKENDS),
    "coreml": coreml.FORMAT,
    "litert": litert.FORMAT,
    "ncnn": ncnn.FORMAT,
    "mnn": mnn.FORMAT,
}
