"""Authors' checkpoints as folders of weights, at the path that this has always had; it stands in `hub`."""

from .hub.convert import convert, read_checkpoint

__all__ = ["convert", "read_checkpoint"]
