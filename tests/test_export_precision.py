"""16 bits in every format that has them: half the size, near what float computes, and none that overflows."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from timm.layers import grn
from torch import nn
from zoo import FIXED, KINDS, close, create, every_kind, image, write_blots

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export import half, neural
from timm_mobilevit_zoo.export.formats import FORMATS
from timm_mobilevit_zoo.export.plain import plain
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.models.traits import formed
from timm_mobilevit_zoo.models.unireplknet import GlobalResponseNorm

NAME = "cloformer_xxs"
SIZE = (64, 64)


def seeded(name, **kwargs):
    return seed_weights(create(name, **kwargs)).eval()


@every_kind
def test_onnx_in_16_bits(name, tmp_path):
    network, size = seeded(name), {} if name in FIXED else {"size": SIZE}
    whole = export.to_onnx(network, str(tmp_path / "whole.onnx"), **size)
    found = export.to_onnx(network, str(tmp_path / "file.onnx"), precision="fp16", **size)
    assert (whole["precision"], found["precision"], found["tolerance"]) == ("fp32", "fp16", 0.03)
    assert whole["files"]["whole.onnx"]["bytes"] > 1.6 * found["files"]["file.onnx"]["bytes"]
    assert 1e-4 < found["checks"]["random"]["error"] < 0.03, "float would be nearer"
    assert 1e-4 < found["fp16"]["error"] < 0.03
    model = onnx.load(tmp_path / "file.onnx")
    types = {value.data_type for value in model.graph.initializer if np.prod(value.dims) > 1000}
    assert types == {onnx.TensorProto.FLOAT16}
    ends = [*model.graph.input, *model.graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    assert {node.op_type for node in model.graph.node} >= found["float32"].keys()
    shares = [layer["share"] for layer in found["fp16"]["layers"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[0] < 1


def test_openvino_in_16_bits(tmp_path):
    network = seeded(NAME)
    whole = export.to_openvino(network, str(tmp_path / "whole.xml"), size=SIZE)
    found = export.to_openvino(network, str(tmp_path / "file.xml"), size=SIZE, precision="fp16", dynamic=["batch"])
    assert whole["files"]["whole.bin"]["bytes"] > 1.9 * found["files"]["file.bin"]["bytes"]
    assert 1e-4 < found["checks"]["random"]["error"] < 0.03


def test_openvino_in_8_bits(tmp_path):
    (tmp_path / "photos").mkdir()
    write_blots(tmp_path / "photos", 4)
    network = seeded(NAME)
    path = tmp_path / "file.xml"
    found = export.to_openvino(
        network, str(path), size=SIZE, precision="int8", calibration=str(tmp_path / "photos"), dynamic=["batch"]
    )
    assert 1e-4 < found["checks"]["calibration"]["rms"] < 0.2
    assert found["int8"]["images"] == 4
    assert len(found["int8"]["layers"]) > 60
    assert found["files"]["file.bin"]["bytes"] < 0.35 * found["int8"]["float_weights_bytes"]
    assert {"SoftMax", "Softmax"} & found["int8"]["float"].keys()
    left = found["int8"]["float"]
    assert left["MatMul"] == 24, "the two products of attention, in 12 blocks, and nothing of weights"


class Norms(nn.Module):
    """Images to logits behind norms of both kinds."""

    in_chans = 3
    num_classes = 4

    def __init__(self, scale):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.group = nn.GroupNorm(1, 8)
        self.scale = scale
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.pretrained_cfg = {"architecture": "norms", "input_size": (3, 16, 16)}

    def forward(self, x):
        x = self.group(self.conv(x) * self.scale)
        return self.head(self.layer(x.mean((2, 3)) * self.scale))


def networks(scale):
    torch.manual_seed(0)
    network = Norms(scale).eval()
    return network, Norms(scale).eval().requires_grad_(False), [image(16, 16) for _ in range(2)]


@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_norms_of_large_values_are_computed_of_smaller_ones(scale):
    network, other, images = networks(scale)
    other.load_state_dict(network.state_dict())
    told = half.calmed(other, images)
    assert bool(told) == (scale > 1)
    for x in images:
        close(other(x), network(x), 1e-5)
    facts = half.halved(other, images)
    assert facts["error"] < 0.02
    if told:
        assert {one["name"] for one in told} >= {"group"}
        assert all(np.log2(one["factor"]) == round(np.log2(one["factor"])) < 0 for one in told)


def test_what_overflows_is_refused_by_name(tmp_path):
    network = seeded(NAME)
    with torch.no_grad():
        network.get_submodule("stage2.blocks.0.mlp").fc1.weight *= 1e5
    with pytest.raises(
        ValueError, match=r"in 16 bits cloformer_xxs overflows in `stage2\.blocks\.0\.mlp\.[\w.]+`.*precision=fp32"
    ):
        export.to_onnx(network, str(tmp_path / "file.onnx"), precision="fp16", size=SIZE)
    assert not list(tmp_path.iterdir())
    export.to_onnx(network, str(tmp_path / "file.onnx"), size=SIZE)


def test_sums_are_looked_at_row_by_row():
    class Pool(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    pool = Pool().eval()
    pool.pretrained_cfg = {"architecture": "pool"}
    half.halved(pool, [torch.full((1, 4, 100, 100), 600.0) + image(100, 100, 1, 4)])
    with pytest.raises(ValueError, match="pool overflows in the network itself"):
        half.halved(pool, [torch.full((1, 4, 100, 100), 700.0) + image(100, 100, 1, 4)])


@pytest.mark.parametrize("norm", [GlobalResponseNorm, grn.GlobalResponseNorm])
def test_squares_of_a_response_norm_are_looked_at(norm):
    class Responses(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.norm = scale, seed_weights(norm(4))
            self.pretrained_cfg = {"architecture": "responses"}

        def forward(self, x):
            return self.norm(x * self.scale).mean((1, 2))

    images = [torch.rand(1, 6, 6, 4) + 1.0]
    half.halved(Responses(30.0).eval(), images)
    with pytest.raises(ValueError, match="responses overflows in `norm`: its values reach"):
        half.halved(Responses(150.0).eval(), images)  # a length of 1,350 would not, nor would any value


@torch.no_grad()
def test_a_response_norm_for_phones_takes_no_sum_of_squares():
    network = nn.Sequential(seed_weights(GlobalResponseNorm(4))).eval()
    network.pretrained_cfg = {"architecture": "responses"}
    form, x = formed(network, "portable"), 100.0 * (torch.rand(1, 9, 9, 4) + 1.0)
    rounding = half._Rounding()
    with rounding.of(form):
        form(x)
    sum_of_squares = float(x.square().sum((1, 2)).max())
    assert max(rounding.largest.values()) * half.LARGEST < sum_of_squares / 2


@pytest.mark.parametrize("name", KINDS[:2])
def test_means_in_steps_are_means(name):
    network, x = seeded(name), image(64, 64, 1) if name == NAME else None
    x = torch.randn(1, *network.pretrained_cfg["input_size"]) if x is None else x
    close(plain(network, x, in_steps=True)(x), network(x), 1e-4)


def test_images_of_one_class_are_warned_of(run, digits, tmp_path, capsys):
    given = dict(format="onnx", output=str(tmp_path / "file.onnx"), tolerance=10.0)
    export.export(str(run[0]), calibration=str(digits / "train" / "1"), precision="int8", **given)
    assert "warning: all 16 images that 8 bits are laid out for are of the class 1:" in capsys.readouterr().err
    export.export(str(run[0]), calibration=str(digits / "train"), precision="int8", overwrite=True, **given)
    assert "warning" not in capsys.readouterr().err


PTE = {"format": "executorch", "output": "file.pte"}
WRONG = {
    "precision=int8 needs `calibration`, a folder": {"precision": "int8"},
    "precision='bf16' must be one of fp32, fp16, int8": {"precision": "bf16"},
    "calibration='.' needs precision=int8": {"precision": "fp16", "calibration": "."},
    "int8='.' is short for precision=int8; leave it out beside precision=fp16": {"precision": "fp16", "int8": "."},
    "int8='.' is short for precision=int8 and calibration='.'; give one folder": {"calibration": ".", "int8": "."},
    "calibration='.' must be a folder with images in it": {"precision": "int8", "calibration": "."},
    "backend='vulkan' is for format=executorch alone": {"backend": "vulkan"},
    "backend='cuda' must be one of xnnpack, coreml, vulkan": PTE | {"backend": "cuda"},
    "precision=fp16 does not go with backend=vulkan, whose files are in fp32": PTE
    | {"backend": "vulkan", "precision": "fp16"},
    "backend=coreml has no int8 here": PTE | {"backend": "coreml", "calibration": "."},
    "precision=fp16 is not one of fp32, int8, which format=executorch has: XNNPACK stores": {
        "format": "executorch",
        "output": "file.pte",
        "precision": "fp16",
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named_before_any_work(monkeypatch, tmp_path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm_mobilevit_zoo.export.write.write_checked", lambda *args: pytest.fail("it began"))
    given = {"model": NAME, "format": "onnx", "output": "file.onnx", "pretrained": False} | WRONG[message]
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        export.export(**given)


def test_the_page_has_every_format_and_precision():
    text = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\S+).*? \| (\S+).*? \| (\S+).*? \| (\w+) \|$", text, re.MULTILINE)
    found = {name: ([word.strip("[,:").startswith("yes") for word in words], last) for name, *words, last in rows}
    right = {
        name: ([precision in about.precisions for precision in ("fp32", "fp16", "int8")], about.precision)
        for name, about in FORMATS.items()
    }
    assert found == right
    for about in FORMATS.values():
        assert all(reason in text for reason in about.lacks.values())
    named = re.findall(r"^\| `(\w+)` \| .*\]\((http\S+)\) \|$", text, re.MULTILINE)
    assert named == [(rule.name, rule.source) for rule in neural.RULES]


def test_every_format_says_what_it_lacks():
    for name, about in FORMATS.items():
        assert about.precision in about.precisions, name
        assert not set(about.precisions) & about.lacks.keys(), name
    assert FORMATS["coreml"].precision == "fp16"
