"""Networks loaded and images classified, at the path that this has always had; see `models.loading` and `train`."""

from .models.loading import create, head_of, load, translate, weights_from
from .train.predict import predict

__all__ = ["create", "head_of", "load", "predict", "translate", "weights_from"]
