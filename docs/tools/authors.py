"""The authors' CloFormer, to measure beside ours: `timm-mobilevit-zoo bench cloformer_xxs --against authors:xxs`.

Their code is not part of this package. Get https://github.com/qhfan/CloFormer, commit 9181f69, and name the folder in
the environment as CLOFORMER. It takes its Swish from a package that nothing else needs: x * sigmoid(x) stands in.
"""

import os
import sys
import types
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import timm_mobilevit_zoo  # noqa: F401, registers the models
from timm_mobilevit_zoo.models.cloformer import checkpoint_filter_fn
from timm_mobilevit_zoo.models.probe import seed_weights


class Swish(nn.Module):
    """What the authors import, as its formula says. Shape kept."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def xxs() -> nn.Module:
    """Return the authors' CloFormer-XXS, its weights seeded by name.

    Raises:
        KeyError: Without CLOFORMER in the environment.
        AssertionError: Where its logits are not those of ours with the same weights.
    """
    return _theirs("cloformer_xxs")


def s() -> nn.Module:
    """Return the authors' CloFormer-S; see `xxs`."""
    return _theirs("cloformer_s")


def _theirs(name: str) -> nn.Module:
    code = Path(os.environ["CLOFORMER"], "classification")
    swish = types.ModuleType("efficientnet_pytorch.model")
    swish.MemoryEfficientSwish = Swish  # type: ignore[attr-defined]
    sys.modules["efficientnet_pytorch"] = types.ModuleType("efficientnet_pytorch")
    sys.modules["efficientnet_pytorch.model"] = swish
    package = types.ModuleType("models")  # theirs imports a training script's configuration
    package.__path__ = [str(code / "models")]
    sys.modules["models"] = package
    from models import model_factory

    theirs = seed_weights(getattr(model_factory, name)()).eval()
    ours = timm.create_model(name).eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours))
    with torch.inference_mode():
        x = torch.rand(2, 3, 224, 224)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    return theirs
