"""Write a network as a file that a runtime takes, and see that the file computes the same.

No file is left that was not run: it is compared with eager mode first, on random images and on those of a folder. Core
ML is the exception: it runs on Apple's systems alone, and elsewhere torch computes what the operations in its file say.
"""

from .write import export, to_coreml, to_executorch, to_litert, to_mnn, to_ncnn, to_onnx, to_openvino

__all__ = ["export", "to_coreml", "to_executorch", "to_litert", "to_mnn", "to_ncnn", "to_onnx", "to_openvino"]
