"""The tool that measures precisions, its tables and its picture; and that no tool has lost what it imports."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from timm_mobilevit_zoo.export import formats

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted((ROOT / "docs" / "tools").glob("*.py"))
sys.path.append(str(ROOT / "docs" / "tools"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


precision = load(ROOT / "docs" / "tools" / "precision.py")


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_every_tool_has_what_it_imports(path):
    load(path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Let the tool write into a folder of the test's."""
    monkeypatch.setattr(precision, "FOLDER", tmp_path)
    monkeypatch.setattr(precision, "PICTURE", tmp_path / "precisions.png")
    return tmp_path


def test_a_format_is_measured_and_drawn(own, run, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "SIDE", 32)
    name = "mobilevit_xxs"
    images, runs = tmp_path / "images", tmp_path / "runs"
    images.mkdir()
    runs.mkdir()
    (images / "train").symlink_to(digits / "train")
    (images / "test").symlink_to(digits / "val")
    (runs / f"{name}-0").symlink_to(run[0])
    precision.speed("onnx", images, [name], rounds=5, seconds=0.0)
    precision.accuracy("onnx", images, runs, [name])
    found = precision.stored("onnx")
    whole, half, small = found["speed"]["rows"]
    assert [row["precision"] for row in (whole, half, small)] == ["fp32", "fp16", "int8"]
    assert all(row["error"] is None and len(row["round_ms"]) == 5 for row in (whole, half, small))
    assert small["mib"] < half["mib"] < whole["mib"]
    assert whole["off"] < 1e-4 < half["off"] < 0.03
    assert 1e-3 < small["rms"] < 0.2
    assert "times as fast as fp32" not in whole
    assert half["times as fast as fp32"]["median"] > 0
    tops = found["accuracy"]["rows"]
    assert len({row["eager_top1"] for row in tops}) == 1
    assert all(row["images"] == 12 and abs(row["file_top1"] - row["eager_top1"]) <= 10 for row in tops)

    lines = precision.table("onnx").splitlines()
    assert "one thread, 32 px" in lines[0]
    assert [line.split(" | ")[1] for line in lines[4:]] == ["fp32", "fp16", "int8"]
    ratio = small["times as fast as fp32"]["median"]
    share = f"{small['mib'] / whole['mib']:.0%}"
    assert f"| `{name}` | {ratio:.2f}, {share} of the size |" in precision.summary()

    assert precision.is_stale()
    precision.draw()
    assert not precision.is_stale()
    path = own / "precision_onnx.json"
    path.write_text(path.read_text() + "\n")
    assert precision.is_stale(), "it was drawn from another file"


def test_what_failed_and_what_is_not_run_has_a_row(own):
    about = {"cpu": "a CPU", "cores": 2, "threads": 1, "date": "2026-01-02", "others": 0.0, "size": 224, "versions": {}}
    rows = [
        {"model": "casvit_xs", "precision": "fp32", "error": None, "mib": 12.2},
        {"model": "casvit_xs", "precision": "int8", "error": "ValueError: off | by far"},
    ]
    (own / "precision_coreml.json").write_text(json.dumps({"speed": about | {"rows": rows}}))
    assert "| `casvit_xs` | fp32 | 12.2 |  |  |  |  |  |" in precision.table("coreml")
    assert "| `casvit_xs` | int8 | ValueError: off \\| by far |  |  |  |  |  |" in precision.table("coreml")
    assert "| `casvit_xs` | no |" in precision.summary()


def test_precisions_stored_are_those_that_export_has():
    for name, format in formats.FORMATS.items():
        for part in precision.stored(name).values():
            assert {row["precision"] for row in part["rows"]} <= set(format.precisions)
