"""The demo on handwritten digits, at the path that it has always had; it stands in `train`."""

from .train.demo import DIGITS, demo, write_digits

__all__ = ["DIGITS", "demo", "write_digits"]
