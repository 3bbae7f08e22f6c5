"""Files that compute in 8 bits: near what float computes, as accurate on real digits, and none is kept that is not."""

import json

import numpy as np
import onnx
import pytest
from zoo import FIXED, KINDS, create, every_kind, write_blots

from timm_mobilevit_zoo import cli, export
from timm_mobilevit_zoo.demo import DIGITS, write_digits
from timm_mobilevit_zoo.export import formats, int8, task
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.train import train

NAME = "cloformer_xxs"
SMALL = KINDS[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_blots(folder, 4)
    return str(folder)


def seeded(name, **kwargs):
    return seed_weights(create(name, **kwargs))


@every_kind
def test_onnx(name, photos, tmp_path):
    options = {} if name in FIXED else {"size": (64, 64), "dynamic": ("batch", "size")}
    found = export.to_onnx(seeded(name), str(tmp_path / "file.onnx"), int8=photos, **options)
    assert found["checks"].keys() == {"calibration"}
    others = 0 if name in FIXED else 18
    assert found["checks"]["calibration"]["images"] == 4 + others, "and three of each of six sizes"
    assert 1e-4 < found["checks"]["calibration"]["rms"] < 0.1, "float would be nearer"
    graph = onnx.load(tmp_path / "file.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    weights = {value.name: value.data_type for value in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    layers += [node for node in graph.node if node.name in {layer["name"] for layer in found["int8"]["layers"]}]
    for node in layers:
        image, weight = (made[name] for name in node.input[:2])
        assert image.op_type == weight.op_type == "DequantizeLinear"
        assert weights[weight.input[0]] == onnx.TensorProto.INT8
    for node in graph.node:
        if node.op_type in ("Softmax", "Tanh", "LayerNormalization", "InstanceNormalization"):
            assert found["int8"]["float"][node.op_type]
            after = {user.op_type for user in graph.node if node.output[0] in user.input}
            assert made[node.input[0]].op_type != "DequantizeLinear" or "QuantizeLinear" not in after, (
                "between two in 8 bits the runtime computes it so, too"
            )


def test_accuracy_is_told(run, digits, tmp_path, capsys):
    given = ["export", str(run[0]), "--format=onnx", f"--output={tmp_path / 'digits.onnx'}"]
    with pytest.raises(SystemExit) as done:
        cli.main([*given, f"--int8={digits / 'train'}", f"--images={digits / 'val'}"])
    out = capsys.readouterr().out
    assert done.value.code == 0
    found = json.loads((tmp_path / "digits.onnx.json").read_text())
    assert found["checks"]["calibration"]["images"] == found["int8"]["images"] == 48
    assert found["checks"]["real"]["images"] == 12
    accuracy = found["checks"]["real"]["accuracy"]
    assert 100 * accuracy["eager"] == pytest.approx(run[1]["val_top1"])
    assert abs(accuracy["file"] - accuracy["eager"]) < 2.5 / 12
    errors = [layer["error"] for layer in found["int8"]["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert found["files"]["digits.onnx"]["bytes"] < 0.35 * found["int8"]["float_weights_bytes"]
    assert f"accuracy on these: {100 * accuracy['eager']:.2f}% before, {100 * accuracy['file']:.2f}% in the file" in out
    assert f"{found['int8']['layers'][0]['name']}: off by {100 * errors[0]:.1f}%" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's data and its model, of less training."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "digits")
    options = {"model": NAME, "img_size": 32, "epochs": 2, "warmup_epochs": 1, "workers": 0, "seed": 1}
    train(str(folder / "digits"), output=str(folder / "run"), **options | DIGITS)
    return folder


@pytest.mark.slow
def test_accuracy_on_digits(trained, tmp_path, capsys):
    given = ["export", str(trained / "run"), "--format=onnx", f"--output={tmp_path / 'digits.onnx'}"]
    given += [f"--int8={trained / 'digits' / 'train'}", f"--images={trained / 'digits' / 'val'}"]
    with pytest.raises(SystemExit) as done:
        cli.main(given)
    out = capsys.readouterr().out
    assert done.value.code == 0
    found = json.loads((tmp_path / "digits.onnx.json").read_text())
    assert found["checks"]["calibration"]["images"] == found["int8"]["images"] == 128
    assert found["checks"]["real"]["images"] == 364
    accuracy = found["checks"]["real"]["accuracy"]
    assert accuracy["eager"] > 0.85
    assert accuracy["file"] > accuracy["eager"] - 0.01
    assert found["checks"]["real"]["top1"] > 0.97
    assert found["checks"]["real"]["rms"] < 0.1
    errors = [layer["error"] for layer in found["int8"]["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] <= errors[0] < 0.2
    assert found["files"]["digits.onnx"]["bytes"] < 0.35 * found["int8"]["float_weights_bytes"]
    assert f"accuracy on these: {100 * accuracy['eager']:.2f}% before, {100 * accuracy['file']:.2f}% in the file" in out
    assert f"{found['int8']['layers'][0]['name']}: off by {100 * errors[0]:.1f}%" in out


def test_images_are_taken_from_all_of_a_folder(tmp_path):
    for i in range(300):
        (tmp_path / "abc"[i // 100]).mkdir(exist_ok=True)
        (tmp_path / "abc"[i // 100] / f"{i}.png").touch()
    taken = [path.parent.name for path in task.some_of("int8", str(tmp_path), 90)]
    assert [taken.count(name) for name in "abc"] == [30, 30, 30]
    assert len(set(task.some_of("int8", str(tmp_path), 1000))) == 300


def test_errors_are_parts_of_floats_root_mean_square():
    right = {"a": np.array([3.0, -4.0]), "b": np.zeros(2)}
    found = [(right, {"a": np.array([3.0, -3.5]), "b": np.ones(2)})] * 2
    assert int8.errors_of(found) == {"a": pytest.approx(0.1), "b": 1.0}


def test_a_wrong_file_is_not_kept(monkeypatch, photos, tmp_path):
    right = formats.FORMATS["onnx"]

    def run(path):
        true = right.run(path)
        return lambda images: true(images) * 3

    monkeypatch.setitem(formats.FORMATS, "onnx", right._replace(run=run))
    network = seeded(SMALL)
    with pytest.raises(ValueError, match=f"onnx computes {SMALL} wrongly in 8 bits: on calibration images logits are"):
        export.to_onnx(network, str(tmp_path / "file.onnx"), int8=photos)
    assert not list(tmp_path.iterdir())
    found = export.to_onnx(network, str(tmp_path / "file.onnx"), int8=photos, tolerance=100.0)
    assert found["tolerance"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": "nowhere"}, "int8='nowhere' must be a folder with images in it"),
        (
            {"format": "coreml", "output": "file.mlpackage", "int8": "."},
            "int8='.' has no effect for format=coreml: weights alone are in 8 bits",
        ),
        (
            {"format": "ncnn", "output": "file.param", "int8": "."},
            "int8='.' is not one of fp32, fp16, which format=ncnn has: its tools for that, ncnn2table and ncnn2int8, "
            "come with neither its wheel nor pnnx's; onnx, openvino, executorch, coreml, litert, mnn can",
        ),
    ],
)
def test_bad_arguments_are_named_before_any_work(monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm_mobilevit_zoo.export.write.write_checked", lambda *args: pytest.fail("it began"))
    given = {"model": NAME, "format": "onnx", "output": "file.onnx", "pretrained": False} | options
    with pytest.raises(ValueError, match="^" + message):
        export.export(**given)
