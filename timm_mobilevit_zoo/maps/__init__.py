"""Attention maps by layer name, attention roll-out, and a picture of both."""

from .drawing import attention_maps, draw, draw_file, rollout

__all__ = ["attention_maps", "draw", "draw_file", "rollout"]
