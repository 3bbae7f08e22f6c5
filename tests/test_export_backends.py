"""ExecuTorch files for processors that are not here: lowered, counted and told of, not run."""

import pytest
import torch
from torch import nn

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export import delegates
from timm_mobilevit_zoo.models.probe import seed_weights


class Small(nn.Module):
    """Images to logits."""

    in_chans = 3
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)
        self.pretrained_cfg = {"architecture": "small", "input_size": (3, 16, 16)}

    def forward(self, x):
        return self.head(nn.functional.gelu(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(("backend", "precision"), [("coreml", "fp16"), ("vulkan", "fp32")])
def test_a_backend_takes_the_whole_network(tmp_path, backend, precision):
    network = seed_weights(Small()).eval()
    found = export.to_executorch(network, str(tmp_path / "file.pte"), backend=backend)
    assert (found["backend"], found["precision"]) == (backend, precision)
    assert found[backend] == {"regions": 1, "left": {}}
    assert found["checks"] is None
    assert found["checked_by"] is None
    assert ("fp16" in found) == (precision == "fp16"), "what is in 16 bits could overflow"
    assert {path.name for path in tmp_path.iterdir()} == {"file.pte", "file.pte.json"}


def test_a_backend_that_takes_nothing_is_refused(monkeypatch, tmp_path):
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    none = lambda: VulkanPartitioner(operator_allowlist=[])  # noqa: E731
    monkeypatch.setitem(delegates._PARTITIONERS, "vulkan", none)
    with torch.no_grad(), pytest.raises(ValueError, match="vulkan takes nothing of this network"):
        export.to_executorch(seed_weights(Small()).eval(), str(tmp_path / "file.pte"), backend="vulkan")
    assert not list(tmp_path.iterdir())


def test_xnnpack_is_a_backend_too(tmp_path):
    found = export.to_executorch(seed_weights(Small()).eval(), str(tmp_path / "file.pte"), backend="xnnpack")
    assert found["checks"]["random"]["error"] < 1e-4
    assert found["xnnpack"]["regions"] == 1
