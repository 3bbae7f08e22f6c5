"""The command line as a shell sees it."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common import extras


def shell(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "timm_mobilevit_zoo", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
    )


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as `train` leaves it, with two labels."""
    import timm
    from timm.models import save_for_hf

    path = tmp_path_factory.mktemp("model")
    model = timm.create_model("cloformer_xxs", num_classes=2, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    save_for_hf(model, path, model_config={"label_names": ["cat", "dog"]}, safe_serialization=True)
    return path


@pytest.fixture
def picture(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_help_tells_every_option(capsys):
    code, out, _ = call(capsys, "train", "--help")
    assert code == 0
    assert "--channels-last" in out
    assert "{stop,skip,trust}" in out
    assert "(default: 0.001)" in out
    assert "None" not in out
    code, out, _ = call(capsys, "--help")
    assert all(command in out for command in ("train", "predict", "maps", "demo", "run"))


def test_version(capsys):
    assert call(capsys, "--version")[:2] == (0, f"{__version__}\n")


def test_predict_text(capsys, folder, picture):
    code, out, _ = call(capsys, "predict", folder, picture, "--top", 1)
    assert code == 0
    assert out.startswith(f"{picture}: ")
    assert out.split()[1] in ("cat", "dog")


def test_predict_json_in_a_shell(folder, picture, tmp_path):
    done = shell("predict", folder, picture, tmp_path / "none.png", "--json")
    assert done.returncode == 1, done.stderr  # one image could not be read
    good, bad = json.loads(done.stdout)
    assert {entry["label"] for entry in good["classes"]} == {"cat", "dog"}
    assert sum(entry["probability"] for entry in good["classes"]) == pytest.approx(1)
    assert "none.png cannot be read: FileNotFoundError" in bad["error"]


def test_errors_are_one_line(capsys, folder, picture, tmp_path):
    code, _, err = call(capsys, "predict", tmp_path, picture)
    assert code == 2
    assert err == f"timm-mobilevit-zoo: error: model={str(tmp_path)!r} is no folder with a config.json and weights\n"
    assert call(capsys, "predict", "no_such_model", picture)[0] == 2
    code, _, err = call(capsys, "predict", "cloformer_xxs", picture)
    assert code == 1
    assert err.startswith("timm-mobilevit-zoo: RuntimeError: No pretrained weights exist for cloformer_xxs.")
    assert call(capsys, "predict", folder, picture, "--top", 0)[0] == 2
    assert call(capsys, "train", tmp_path / "none", "-m", "cloformer_xxs", "-o", tmp_path / "out")[0] == 2
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "predict", str(tmp_path), str(picture)])


def test_a_missing_extra_names_the_pip_command():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'timm-mobilevit-zoo\[train\]'"):
        extras.require("no_such_module_at_all", "train")
