"""Core ML files, computed as their operations are defined: what is wrong in them shows, and what leaves is counted."""

import numpy as np
import pytest
import torch
from torch import nn

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export import coreml, mil, neural
from timm_mobilevit_zoo.models.probe import seed_weights


class Small(nn.Module):
    """Images to logits by two layers that are large enough for 8 bits, square so that any axis fits."""

    in_chans = 3
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, 2, 1)
        self.first, self.second = nn.Conv2d(48, 48, 1), nn.Conv2d(48, 48, 1)
        self.head = nn.Linear(48, 4)
        self.pretrained_cfg = {"architecture": "small", "input_size": (3, 16, 16)}

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x).relu()).tanh()).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    network = seed_weights(Small()).eval()
    with torch.no_grad():  # channels of very different weights: a scale on the wrong axis then matters
        for layer, by in ((network.first, 1.5), (network.second, -1.5)):
            layer.weight *= torch.logspace(-by, by, 48)[:, None, None, None]
    return network


def to_coreml(network, folder, **options):
    return export.to_coreml(network, str(folder / "file.mlpackage"), **options)


def test_each_precision_is_computed_and_told(network, tmp_path):
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        (tmp_path / precision).mkdir()
        found[precision] = to_coreml(network, tmp_path / precision, precision=precision)
    assert {one["checked_by"] for one in found.values()} == {"what its operations are defined to be, computed by torch"}
    assert found["fp32"]["checks"]["random"]["error"] < 1e-4
    assert 1e-5 < found["fp16"]["checks"]["random"]["error"] < 0.03
    assert 1e-4 < found["int8"]["checks"]["random"]["rms"] < 0.1
    assert found["int8"]["int8"] == {"weights_only": True, "weights": 2}
    told = {precision: one["mlprogram"] for precision, one in found.items()}
    assert [told[one]["weights_in_8_bits"] for one in told] == [0, 0, 2]
    assert [told[one]["casts"] for one in told] == [0, 2, 2]
    assert told["int8"]["types"] == told["fp16"]["types"]
    assert told["fp16"]["types"].keys() == {"float16"}
    assert told["fp32"]["leaves_neural_engine"]["float32"]["operations"]["conv"] == 3
    assert told["fp16"]["leaves_neural_engine"] == told["int8"]["leaves_neural_engine"] == {}
    assert found["int8"]["fp16"]["layers"], "what 8 bits leave is in 16, and could overflow"


def _axis(weights):
    weights[0].attributes["axis"].immediateValue.tensor.ints.values[0] = 1


def _scale(weights):
    first, second = (one.attributes["scale"] for one in weights)
    kept = type(first)()
    kept.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(kept)


@pytest.mark.parametrize("harm", [_axis, _scale])
def test_a_wrong_scale_or_axis_is_seen(monkeypatch, network, tmp_path, harm):
    right = coreml._in_8_bits

    def harmed(converted):
        import coremltools

        made = right(converted)
        spec = made.get_spec()
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        harm([one for one in block.operations if one.type == "constexpr_affine_dequantize"])
        return coremltools.models.MLModel(spec, weights_dir=made.weights_dir, skip_model_load=True)

    monkeypatch.setattr(coreml, "_in_8_bits", harmed)
    with pytest.raises(ValueError, match="coreml computes small wrongly in 8 bits"):
        to_coreml(network, tmp_path, precision="int8")
    assert not list(tmp_path.iterdir())


def test_weights_in_8_bits_are_steps_of_their_channels():
    steps = np.array([[1, -2], [3, 127]], np.int8)
    for axis, right in ((0, [[0.5, -1.0], [6.0, 254.0]]), (1, [[0.5, -4.0], [1.5, 254.0]])):
        found = mil._dequantised(steps, np.float16([0.5, 2.0]), np.int8([0, 0]), axis)
        assert torch.equal(found, torch.tensor(right))
    with pytest.raises(ValueError, match="3 scales along axis 0 do not fit"):
        mil._dequantised(steps, np.float16([1, 2, 3]), np.int8(0), 0)


class Wide(nn.Module):
    """A kernel of 15 columns and a pool of 32 cells a side: two rules hold."""

    in_chans = 3
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 15, padding=14, dilation=2)
        self.pool = nn.AvgPool2d(32)
        self.pretrained_cfg = {"architecture": "wide", "input_size": (3, 32, 32)}

    def forward(self, x):
        return self.pool(self.conv(x)).flatten(1)


def test_what_leaves_the_neural_engine_is_counted(tmp_path):
    found = to_coreml(seed_weights(Wide()).eval(), tmp_path)
    left = found["mlprogram"]["leaves_neural_engine"]
    kinds = {name: one["operations"] for name, one in left.items()}
    assert kinds == {"dilation": {"conv": 1}, "kernel": {"conv": 1}, "window": {"avg_pool": 1}}
    rules = {rule.name: (rule.why, rule.source) for rule in neural.RULES}
    assert all((one["why"], one["source"]) == rules[name] for name, one in left.items())


def test_what_is_not_defined_here_is_not_compared(monkeypatch, network, tmp_path):
    monkeypatch.delitem(mil.OPERATIONS, "tanh")
    found = to_coreml(network, tmp_path)
    assert found["checks"] is None
    assert found["mlprogram"]["not_compared"] == "tanh is not defined here"
