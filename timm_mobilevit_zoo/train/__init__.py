"""Train or fine-tune a model on images: timm's data pipeline, losses, optimisers and tasks, Accelerate's devices.

A run is one folder: `model.safetensors` and `config.json` of the best epoch (what `timm.create_model('local-dir:...')`
loads), `summary.csv`, `curve.png` and `run.json`, and `checkpoints/last.ckpt` to resume from.
"""

from .run import train

__all__ = ["train"]
