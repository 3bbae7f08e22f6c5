"""One format of `export` for every family: `make format-test FORMAT=litert` runs this with its extra alone.

The formats need versions of torch that differ, and converting takes minutes: the other tests have ONNX and OpenVINO of
every family, and ExecuTorch of two.
"""

import os

import pytest
from zoo import FIRST, FIXED, create, write_blots

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export import formats
from timm_mobilevit_zoo.models.probe import seed_weights

FORMAT = os.environ["ZOO_FORMAT"]
ABOUT = formats.FORMATS[FORMAT]
NOT_WRITTEN = {
    ("ncnn", name): "Tencent/ncnn, issue 3542: its windows have rank 6" for name in FIRST if name.startswith("swin")
}


def _expected(name):
    reason = NOT_WRITTEN.get((FORMAT, name))
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=ValueError, reason=reason) if reason else ())


@pytest.mark.parametrize("name", [*map(_expected, FIRST)])
def test_every_family(name, tmp_path):
    path = tmp_path / f"file{ABOUT.suffix}"
    size = {} if name in FIXED else {"size": (64, 96)}
    found = getattr(export, f"to_{FORMAT}")(seed_weights(create(name)), str(path), precision="fp32", **size)
    written = {path, path.with_name(f"{path.name}.json"), *map(path.with_suffix, ABOUT.beside)}
    assert set(tmp_path.iterdir()) == written
    assert found["input"]["shape"][2:] == [64, 96] or name in FIXED
    assert ABOUT.run is None or found["checks"]["random"]["error"] < 1e-4


@pytest.mark.skipif(FORMAT != "mnn", reason="make test has the other formats that leave sizes open")
@pytest.mark.parametrize("name", ["casvit_xs", "cloformer_xxs"])
def test_any_batch_and_size(name, tmp_path):
    path, dynamic = tmp_path / f"file{ABOUT.suffix}", ("batch", "size")
    found = getattr(export, f"to_{FORMAT}")(seed_weights(create(name)), str(path), size=(64, 96), dynamic=dynamic)
    assert found["input"]["shape"] == [None, 3, None, None]
    assert found["checks"]["random"]["images"] == 18, "three of each of six sizes"
    assert found["checks"]["random"]["error"] < 1e-3


@pytest.mark.skipif(not ABOUT.fp16, reason="the format has no files in 16 bits")
def test_16_and_8_bits(tmp_path):
    network, write = seed_weights(create("cloformer_xxs")), getattr(export, f"to_{FORMAT}")
    found = {
        precision: write(network, str(tmp_path / f"{precision}{ABOUT.suffix}"), size=(64, 96), precision=precision)
        for precision in ("fp32", "fp16")
    }
    whole, half = (sum(file["bytes"] for file in one["files"].values()) for one in found.values())
    assert whole > 1.7 * half
    assert ABOUT.run is None or 1e-4 < found["fp16"]["checks"]["random"]["error"] < 0.03
    if ABOUT.int8:
        (tmp_path / "photos").mkdir()
        write_blots(tmp_path / "photos", 4)
        path = tmp_path / f"int8{ABOUT.suffix}"
        given = {"calibration": str(tmp_path / "photos")} if ABOUT.calibrated else {}
        made = write(network, str(path), size=(64, 96), precision="int8", **given)
        assert 1e-4 < made["checks"]["calibration" if given else "random"]["rms"] < 0.2, "float would be nearer"
        if given:
            assert len(made["int8"]["layers"]) > 60
            assert all(0 <= layer["error"] < 0.5 for layer in made["int8"]["layers"])
        assert sum(file["bytes"] for file in made["files"].values()) < 0.4 * whole
    if FORMAT == "coreml":
        assert made["mlprogram"]["types"] == found["fp16"]["mlprogram"]["types"], "weights alone differ"
        assert made["int8"] == {"weights_only": True, "weights": made["mlprogram"]["weights_in_8_bits"]}
        assert made["mlprogram"]["weights_in_8_bits"] > 60
        assert not found["fp16"]["mlprogram"]["leaves_neural_engine"]
        assert found["fp32"]["mlprogram"]["leaves_neural_engine"].keys() == {"float32"}
        assert found["fp16"]["mlprogram"]["casts"] == 2
        assert found["fp16"]["mlprogram"]["types"].keys() <= {"float16", "int32", "bool", "string"}
        assert found["fp32"]["mlprogram"]["casts"] == 0
