"""The recipe on Fashion-MNIST, with a few made images in the data set's format."""

import gzip
import importlib.util
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_mobilevit_zoo_cli.parser import parse

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("fashion_mnist", ROOT / "docs" / "tools" / "fashion_mnist.py")
fashion_mnist = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fashion_mnist)


def write_idx(path, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def source(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, count in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def test_images_become_folders_of_classes(source, tmp_path, capsys):
    fashion_mnist.main(["images", str(tmp_path / "out"), "--source", str(source)])
    assert capsys.readouterr().out.endswith("20 train, 10 test images\n")
    pixels = fashion_mnist.read_idx(source / "train-images-idx3-ubyte.gz")
    assert pixels.shape == (20, 28, 28)
    found = sorted((tmp_path / "out" / "train").rglob("*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in found] == [*fashion_mnist.CLASSES] * 2
    for path, right in zip(found, pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), right)
    assert len(list((tmp_path / "out" / "test").rglob("*.png"))) == 10


def test_what_is_no_such_data_is_refused(source, tmp_path):
    with pytest.raises(FileExistsError, match="must be new or empty"):
        fashion_mnist.write_images(source, source)
    labels = source / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    for content in (b"", whole[:20], gzip.compress(b"\0\0\x08"), gzip.compress(b"\0\0\x0d\1" + b"\0" * 8)):
        labels.write_bytes(content)
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is not a gzipped IDX file of bytes"):
            fashion_mnist.read_idx(labels)
    write_idx(labels, np.arange(9))
    with pytest.raises(ValueError, match="the t10k images and labels do not belong together"):
        fashion_mnist.write_images(tmp_path / "out", source)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.write_images(tmp_path / "other", source)
    assert not (tmp_path / "other").exists()


def test_the_page_has_the_command_that_was_measured():
    words = fashion_mnist.command(Path("fashion"), Path("run"), "cloformer_xxs", 0, fashion_mnist.EPOCHS)
    text = fashion_mnist.PAGE.read_text(encoding="utf-8")
    typed = text.partition("timm-mobilevit-zoo train")[2].partition("```")[0].replace("\\\n", " ").split()
    measured, shown = parse(words[3:]), parse(["train", *typed])
    ways = {"workers", "on_broken"}  # how images are read, not what is learnt
    assert {key: value for key, value in measured.items() if key not in ways} == {
        key: value for key, value in shown.items() if key not in ways
    }


def test_a_run_is_tested(run, digits, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.copytree(digits / "val", tmp_path / "data" / "test")
    fashion_mnist.test(tmp_path / "data", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "test.json").read_text())
    assert told["test_top1"] == pytest.approx(run[1]["val_top1"], abs=0.01)
    assert told["params"] > 1e6


def test_the_table_is_of_the_committed_results():
    content = json.loads(fashion_mnist.RESULTS.read_text(encoding="utf-8"))
    assert fashion_mnist.page(content) == fashion_mnist.PAGE.read_text(encoding="utf-8")
    assert {row["model"] for row in content["rows"]} >= {"cloformer_xxs", "mobilevit_xxs"}
    rows = [
        {"model": "mobilevit_xxs", "seed": seed, "params": 1e6, "test_top1": 80 + seed, "epoch_minutes": 2 + seed}
        for seed in (0, 3)
    ]
    assert fashion_mnist.table({"rows": rows}).splitlines()[2:] == [
        "| `mobilevit_xxs`, timm's | 1.00 M | 80.00 | 83.00 | **81.50** | 2.0 |"
    ]
