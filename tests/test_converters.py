"""What long work tells, what converters say of it, which images it reads; and the images that `predict` is given."""

import io
import json
import os
import subprocess
import sys

import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common.quiet import converting, verbose
from timm_mobilevit_zoo.export import to_onnx
from timm_mobilevit_zoo.export.task import task_of
from timm_mobilevit_zoo_cli import commands

FAST = "vit_nano_patch4_32"


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    model = timm.create_model(FAST, num_classes=2)
    save_for_hf(model, path, model_config={"label_names": ["cat", "dog"]}, safe_serialization=True)
    return path


@pytest.fixture
def photos(tmp_path):
    """Five pictures in two folders, and a broken one."""
    for name in ("cat/1.png", "cat/2.png", "dog/deep/1.png", "dog/2.jpg", "dog/[1].png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((32, 32)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "dog" / "broken.png").write_text("broken")
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("notes")
    return tmp_path / "photos"


# What converters say

CHATTER = """
import ctypes, os, subprocess, sys, warnings, logging
from timm_mobilevit_zoo.common.quiet import converting, verbose
from contextlib import nullcontext
with verbose() if sys.argv[1] == "verbose" else nullcontext(), converting():
    print("a function of python")
    sys.stderr.write("error stream\\n")
    warnings.warn("warning")
    logging.warning("log line")
    ctypes.CDLL(None).puts(b"a C library")
    subprocess.run([sys.executable, "-c", "print('another program')"])
print("ours")
"""


@pytest.mark.skipif(os.name != "posix", reason="names a C library's function")
@pytest.mark.parametrize("how", ["quiet", "verbose"])
def test_what_converters_print_is_for_who_asks(how):
    done = subprocess.run([sys.executable, "-c", CHATTER, how], capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    for words in ("a function of python", "error stream", "warning", "log line", "a C library", "another program"):
        assert (words in said) == (how == "verbose"), words
    assert said.count("ours") == 1


def test_streams_are_put_back_after_an_error(capfd):
    def fails():
        os.write(1, b"hidden")
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"), converting():
        fails()
    os.write(1, b"shown")
    with verbose(), converting():
        os.write(2, b"asked for")
    assert capfd.readouterr() == ("shown", "asked for")


def test_an_export_tells_its_steps_and_a_library_none(capsys, folder, photos, tmp_path):
    images = ["--images", photos, "--on-broken", "skip"]
    code, said, told = call(capsys, "export", folder, "--format", "onnx", "-o", tmp_path / "a.onnx", *images)
    assert code == 0
    steps = [
        "onnx: writing the network ...",
        "onnx: comparing the file with eager mode, on random and 5 real images ...",
    ]
    assert [line for line in told.splitlines() if line.endswith("...")] == steps
    assert "a.onnx: " in said
    to_onnx(timm.create_model(FAST).eval(), str(tmp_path / "b.onnx"))
    assert capsys.readouterr() == ("", "")


# Broken images


@pytest.mark.parametrize("name", ["images", "int8", "calibration"])
def test_broken_images_are_told_before_any_work_or_left_out(photos, tmp_path, name, capsys):
    def task(**options):
        given = {name: str(photos)} | ({"precision": "int8"} if name == "calibration" else {})
        return task_of("onnx", str(tmp_path / "a.onnx"), **given, **options)

    with pytest.raises(ValueError, match=rf"{name}: 1 image\(s\) are broken(.|\n)*broken\.png cannot be read"):
        task()
    found = getattr(task(on_broken="skip"), "images" if name == "images" else "calibration")
    assert [path.name for path in found] == ["1.png", "2.png", "2.jpg", "[1].png", "1.png"]
    assert "skipped: " in capsys.readouterr().err
    for path in found:
        path.write_text("broken")
    with pytest.raises(ValueError, match=f"{name} is left without an image that can be read"):
        task(on_broken="skip")
    with pytest.raises(ValueError, match="on_broken='skip' goes with `images`, `calibration` or `int8`"):
        task_of("onnx", str(tmp_path / "a.onnx"), on_broken="skip")


# What is to be predicted


def listed(*words, lines=()):
    return commands._listed([str(word) for word in words], lines)


def test_folders_patterns_and_lists_are_images(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert listed("cat", "dog") == [
        *("cat/1.png", "cat/2.png"),
        *("dog/2.jpg", "dog/[1].png", "dog/broken.png", "dog/deep/1.png"),
    ]
    assert listed("*/*.png") == ["cat/1.png", "cat/2.png", "dog/[1].png", "dog/broken.png"]
    assert listed("**/1.png") == ["cat/1.png", "dog/deep/1.png"]
    assert listed("ca*") == ["cat/1.png", "cat/2.png"], "a pattern may mean folders"
    assert listed("dog/[1].png") == ["dog/[1].png"], "a file may be called as a pattern"
    assert listed("none*.png", "none.png") == ["none*.png", "none.png"], "to be told that they are missing"
    lines = io.StringIO("cat/1.png\r\n\n-\ndog/deep\n")
    assert listed("-", "cat/2.png", lines=lines) == ["cat/1.png", "-", "dog/deep/1.png", "cat/2.png"]
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="images: 'empty' is a folder without images"):
        listed("empty")


def test_predict_takes_a_folder_and_a_list(capsys, folder, photos, monkeypatch):
    code, out, _ = call(capsys, "predict", folder, photos / "cat", photos / "dog", "--json")
    results = json.loads(out)
    assert (code, len(results)) == (1, 6), "one is broken"
    assert [result["image"] for result in results if "error" in result] == [str(photos / "dog" / "broken.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'cat' / '2.png'}\n"))
    code, out, _ = call(capsys, "predict", folder, "-", "--top", "1")
    assert (code, out.splitlines()[0].partition(": ")[0]) == (0, str(photos / "cat" / "2.png"))
