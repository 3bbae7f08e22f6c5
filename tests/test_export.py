"""Files for other runtimes: they compute the same, a manifest tells what they are, and no wrong one is kept."""

import hashlib
import json
import sys

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from zoo import FIXED, create, every_family, every_kind, every_staged_family, every_staged_kind, own_image

from timm_mobilevit_zoo import cli, export
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.export import formats, plain, rewrite
from timm_mobilevit_zoo.models import traits
from timm_mobilevit_zoo.models.probe import seed_weights

SIZE = (64, 96)


def seeded(name, **kwargs):
    """With norms that do something, which a new network has not."""
    return seed_weights(create(name, **kwargs))


def own_size(name):
    return {} if name in FIXED else {"size": SIZE}


@every_family
def test_onnx(name, tmp_path):
    network = seeded(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = export.to_onnx(network, str(tmp_path / "file.onnx"), **own_size(name))
    near = pytest.approx(0, abs=1e-4)
    assert found["checks"]["random"] == {"images": 4, "error": near, "rms": near, "top1": 1.0}
    assert found["checks"]["random"]["error"] > found["checks"]["random"]["rms"] > 0
    ranks = {
        len(value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "file.onnx")).graph.value_info
    }
    assert max(ranks) <= 5 or name.startswith("swin"), (
        "runtimes of phones end there; timm's Swin cuts its windows with 6"
    )
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@every_staged_family
def test_onnx_of_any_batch_and_size(name, tmp_path):
    found = export.to_onnx(seeded(name), str(tmp_path / "file.onnx"), size=SIZE, dynamic=("batch", "size"))
    assert found["input"]["shape"] == [None, 3, None, None]
    assert found["checks"]["random"]["images"] == 18, "three of each of six sizes"
    assert found["checks"]["random"]["error"] < 1e-4


@every_kind
def test_openvino(name, tmp_path):
    found = export.to_openvino(seeded(name), str(tmp_path / "file.xml"), **own_size(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.bin", "file.xml", "file.xml.json"]
    assert found["checks"]["random"]["error"] < 1e-4


def test_openvino_of_a_small_image_through_timms_attention(tmp_path):
    found = export.to_openvino(seeded("mobilevitv3_xxs"), str(tmp_path / "file.xml"), size=32)
    assert found["input"]["shape"] == [1, 3, 32, 32]
    assert found["checks"]["random"]["error"] < 1e-4


@every_staged_kind
def test_openvino_of_any_batch_and_size(name, tmp_path):
    found = export.to_openvino(seeded(name), str(tmp_path / "file.xml"), size=SIZE, dynamic=("batch", "size"))
    assert found["checks"]["random"]["images"] == 18
    assert found["checks"]["random"]["error"] < 1e-4


@every_family
@torch.no_grad()
def test_the_portable_form_is_equal(name):
    network, x = seeded(name), own_image(name, batch=1)
    form = rewrite.portable(network)
    norms = [module for module in form.modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))]
    assert not [norm for norm in norms if type(norm) in traits._forms["portable"]]
    torch.testing.assert_close(form(x), network(x), rtol=1e-4, atol=1e-5 * float(network(x).abs().max()))


@every_kind
@torch.no_grad()
def test_ncnn_gets_no_slice_by_a_step(name):
    network, x = seeded(name), own_image(name, batch=1)
    with quiet(), rewrite.PooledSlices():
        traced = torch.jit.trace(rewrite.split(network), x, check_trace=False)
    torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-5 * float(network(x).abs().max()))
    graph = traced.inlined_graph
    assert all(list(node.inputs())[4].toIValue() == 1 for node in graph.findAllNodes("aten::slice"))


@pytest.mark.parametrize(("side", "start", "pads"), [(6, 0, 0), (6, 1, 0), (6, 5, 0), (7, 0, 1), (7, 1, 0)])
def test_a_slice_by_a_step_is_padded_only_where_it_must(monkeypatch, side, start, pads):
    padded = []
    pad = plain.F.pad
    monkeypatch.setattr(plain.F, "pad", lambda *args: padded.append(args) or pad(*args))
    x = torch.randn(1, 2, side, 3)
    assert torch.equal(plain._slice(x, 2, start, None, 2), x[:, :, start::2])
    assert len(padded) == pads


# What XNNPACK takes, as torch.export calls it: with these arguments, and with what executorch writes them in.
PLAIN = {
    *("add", "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "bmm", "cat", "conv2d", "conv_transpose2d", "div"),
    *(
        "flatten",
        "gelu",
        "linear",
        "max_pool2d",
        "mean",
        "mul",
        "pad",
        "permute",
        "relu",
        "reshape",
        "rsqrt",
        "sigmoid",
    ),
    *("silu", "slice", "softmax", "sub", "tanh", "transpose", "unflatten", "upsample_bilinear2d"),
    *("clone", "view", "_unsafe_view"),  # how torch 2.4 reshapes
}


@every_kind
@torch.no_grad()
def test_the_plain_form_is_equal_and_plain(name):
    network, x = seeded(name), own_image(name, batch=1)
    form = plain.plain(network, x)
    torch.testing.assert_close(form(x), network(x), rtol=1e-4, atol=1e-5 * float(network(x).abs().max()))
    calls = [node for node in form.graph.nodes if node.op == "call_function"]
    assert {node.target._schema.name.removeprefix("aten::").rstrip("_") for node in calls} <= PLAIN
    assert all(node.args[4:] in ((), (1,)) for node in calls if "slice" in node.name), "steps are left to no one"
    assert max(node.meta["val"].dim() for node in calls) <= 6
    rows = [node.args[0] for node in calls if "softmax" in node.name]
    assert not [node for node in rows if "conv2d" in node.name], "XNNPACK would take it over channels"


@pytest.mark.parametrize("name", ["convnext_atto", "mobilevitv2_050"])
def test_a_network_of_timms(name, tmp_path):
    assert export.to_onnx(seeded(name), str(tmp_path / "file.onnx"), size=(64, 64))["checks"]["random"]["error"] < 1e-4


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders, as classes are."""
    generator = np.random.default_rng(0)
    for i in range(5):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(path)
    return str(tmp_path / "photos")


NAME = "cloformer_xxs"


def test_the_manifest(tmp_path, photos):
    network = seeded(NAME, num_classes=3)
    network.pretrained_cfg["label_names"] = ["a", "b", "c"]
    file = tmp_path / "file.onnx"
    found = export.to_onnx(network, str(file), size=SIZE, dynamic=("batch",), images=photos)
    assert json.loads((tmp_path / "file.onnx.json").read_text()) == found
    content = file.read_bytes()
    assert found["files"] == {"file.onnx": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert found["format"] == "onnx"
    assert found["architecture"] == NAME
    assert found["input"]["shape"] == [None, 3, *SIZE]
    assert found["input"]["mean"] == list(timm.get_pretrained_cfg(NAME).mean)
    assert found["input"]["colours"] == "RGB"
    assert found["input"]["divide_by"] == 255
    asked = {"values": "logits", "probabilities": "softmax over the last axis"}
    assert found["output"] == {"name": "logits", "shape": [None, 3]} | asked
    assert found["labels"] == ["a", "b", "c"]
    assert found["checks"]["real"]["images"] == 5
    assert {"torch", "timm", "onnx", "onnxruntime"} < found["versions"].keys()
    assert found["weights_sha256"] == export.to_onnx(network, str(tmp_path / "b.onnx"), size=SIZE)["weights_sha256"]
    network.head.bias.data += 1
    assert found["weights_sha256"] != export.to_onnx(network, str(tmp_path / "c.onnx"), size=SIZE)["weights_sha256"]


def wrong(monkeypatch, how):
    """Make what runs the file see something else in it."""
    right = formats.FORMATS["onnx"]

    def run(path):
        true = right.run(path)
        return lambda images: how(true(images))

    monkeypatch.setitem(formats.FORMATS, "onnx", right._replace(run=run))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda logits: logits * 1.01, "onnx computes cloformer_xxs wrongly: on random images logits are off by"),
        (lambda logits: logits * np.nan, "the written file returns logits that are not finite"),
        (lambda logits: logits * np.inf, "the written file returns logits that are not finite"),
        (lambda logits: logits[:, :2], r"the written file returns \(4, 2\), not \(4, 3\)"),
    ],
)
def test_a_wrong_file_is_not_kept(monkeypatch, tmp_path, how, message):
    (tmp_path / "file.onnx").write_text("what was there")
    wrong(monkeypatch, how)
    with pytest.raises(ValueError, match=message):
        export.to_onnx(seeded(NAME, num_classes=3), str(tmp_path / "file.onnx"), size=SIZE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file.onnx"]
    assert (tmp_path / "file.onnx").read_text() == "what was there"


BAD = {
    r"format='tflite' must be one of onnx, openvino, ": {"format": "tflite"},
    r"output='file.pt' must end in .onnx for format=onnx": {"output": "file.pt"},
    r"size=0 64 must be a side, or height and width, in pixels": {"size": (0, 64)},
    r"dynamic='width' must be one of batch, size for format=onnx": {"dynamic": ("width",)},
    r"dynamic='size' must be left out for format=executorch": {
        "format": "executorch",
        "output": "file.pte",
        "dynamic": ("size",),
    },
    r"tolerance=0 must be above 0": {"tolerance": 0},
    r"images='nowhere' must be a folder with images in it": {"images": "nowhere"},
    r"output='nowhere/file.onnx' needs a folder that exists": {"output": "nowhere/file.onnx"},
    r"model='cloformer_xxs' has no published weights; `pretrained=False` exports random ones": {"pretrained": True},
    r"model='resnet19' is neither a folder nor a model of timm's": {"model": "resnet19"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named_before_any_work(monkeypatch, tmp_path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm_mobilevit_zoo.export.write.write_checked", lambda *args: pytest.fail("it began"))
    options = {"model": NAME, "format": "onnx", "output": "file.onnx", "pretrained": False} | BAD[message]
    with pytest.raises((ValueError, FileNotFoundError), match="^" + message):
        export.export(**options)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (lambda: create(NAME).train(), {}, "network=cloformer_xxs is in training mode: call network.eval"),
        (
            lambda: nn.Linear(3, 3).eval(),
            {},
            "network=Linear is not a timm network; give it as create_model returned it",
        ),
        (
            lambda: create(NAME),
            {"size": (3, 64)},
            "size=3 x 64 is not a size that cloformer_xxs takes: x is 3 x 64 pixels",
        ),
        (
            lambda: create(NAME, num_classes=0, global_pool=""),
            {},
            r"cloformer_xxs returns \(1, 256, 7, 7\), not logits",
        ),
    ],
)
def test_networks_that_cannot_be_written(tmp_path, network, options, message):
    with pytest.raises(ValueError, match=message):
        export.to_onnx(network(), str(tmp_path / "file.onnx"), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_missing_runtime_names_the_pip_command(monkeypatch, tmp_path, format):
    about = formats.FORMATS[format]
    monkeypatch.setitem(sys.modules, about.modules[0], None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{about.modules[0]} is not installed: pip install .*\[{about.extra}\]'"
    ):
        export.export(NAME, format=format, output=str(tmp_path / f"file{about.suffix}"), pretrained=False)


def test_a_torch_too_new_names_the_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(formats.FORMATS, "onnx", formats.FORMATS["onnx"]._replace(torch_below="2.0"))
    with pytest.raises(ModuleNotFoundError, match=r"torch .* is too new for onnx: .* pip install .*\[onnx\]'"):
        export.export(NAME, format="onnx", output=str(tmp_path / "file.onnx"), pretrained=False)


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = [
        "export",
        NAME,
        "--no-pretrained",
        "--format",
        "onnx",
        "--img-size",
        "64",
        "96",
        "--dynamic",
        "batch",
        "size",
    ]
    with pytest.raises(SystemExit) as done:
        cli.main([*given, "-o", "file.onnx"])
    assert done.value.code == 0
    out, _ = capsys.readouterr()
    assert "file.onnx: " in out
    assert "18 random images: off by " in out
    assert json.loads((tmp_path / "file.onnx.json").read_text())["input"]["shape"] == [None, 3, None, None]
    with pytest.raises(SystemExit) as done:
        cli.main([*given, "-o", "file.onnx"])
    assert done.value.code == 2
    assert "--output file.onnx exists; choose another, or give --overwrite" in capsys.readouterr().err
