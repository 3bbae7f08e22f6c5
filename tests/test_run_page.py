"""The Python of docs/run.md runs as it stands, on files that `export` wrote, and says what `predict` says."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from zoo import KINDS, create

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export.formats import FORMATS
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.predict import predict

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "run.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"^```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
RUNTIMES = {
    "ONNX Runtime": ("digits.onnx", export.to_onnx, "onnxruntime"),
    "OpenVINO": ("digits.xml", export.to_openvino, "openvino"),
    "ExecuTorch": ("digits.pte", export.to_executorch, "executorch"),
    "LiteRT": ("digits.tflite", export.to_litert, "litert_torch"),
    "ncnn": ("digits.param", export.to_ncnn, "pnnx"),
    "MNN": ("digits.mnn", export.to_mnn, "MNN"),
}
HERE = [title for title, (_, _, module) in RUNTIMES.items() if importlib.util.find_spec(module)]


@pytest.fixture(scope="module")
def network():
    network = seed_weights(create(KINDS[1], num_classes=3))
    network.pretrained_cfg["label_names"] = ["a", "b", "c"]
    return network


@pytest.mark.parametrize("title", HERE)
def test_the_pages_code_says_what_predict_says(title, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, write, _ = RUNTIMES[title]
    write(network, file)
    shared, (own,) = SECTIONS["Prepare a photo"][0], SECTIONS[title][:1]
    for shape, off in (((32, 32, 3), 0.1), ((57, 81, 3), 1)):  # as the network takes it, and resized by another rule
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save("photo.png")
        capsys.readouterr()
        with torch.inference_mode():
            exec(compile(shared + own, f"docs/run.md, {title}", "exec"), {})
        label, percent = re.fullmatch(r"(\w): (\d+\.\d)%", capsys.readouterr().out.splitlines()[-1]).groups()
        best = predict(network, ["photo.png"])[0]["classes"][0]
        assert label == best["label"]
        assert float(percent) == pytest.approx(100 * best["probability"], abs=off)


def test_each_format_has_its_lines():
    old = {"ExecuTorch"} if Version(torch.__version__) < Version("2.7") else set()  # which wants a newer torch
    assert {"ONNX Runtime", "OpenVINO", "ExecuTorch"} <= {*HERE} | old  # of the extra `test`
    assert len(RUNTIMES) + len({"Core ML"} & SECTIONS.keys()) == len(FORMATS)
    for blocks in re.findall(
        r"^```(?:py|js|kotlin|swift)\n(.*?)^```$", PAGE.split("## ONNX")[1], re.DOTALL | re.MULTILINE
    ):
        assert len(blocks.splitlines()) <= 10
