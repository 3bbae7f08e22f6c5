"""The command line as a shell sees it."""

import importlib
import inspect
import json
import shutil
import sys
from typing import get_type_hints

import fresh
import pytest
import torch
from PIL import Image
from zoo import KINDS

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common import extras
from timm_mobilevit_zoo_cli import commands
from timm_mobilevit_zoo_cli.parser import PACKAGE, SOURCES, parse


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


def test_help_before_a_command_is_of_all(capsys):
    assert call(capsys, "--help", "train") == call(capsys, "--help")


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
    done = fresh.run(
        ["-m", "timm_mobilevit_zoo", "predict", folder, picture, tmp_path / "none.png", "--json"], cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr  # one image could not be read
    good, bad = json.loads(done.stdout)
    assert {entry["label"] for entry in good["classes"]} == {"cat", "dog"}
    assert sum(entry["probability"] for entry in good["classes"]) == pytest.approx(1)
    assert "none.png cannot be read: FileNotFoundError" in bad["error"]


ESCAPE = "\x1b]0;owned\x07"


def test_what_strangers_wrote_does_not_move_the_cursor(capsys, folder, picture, tmp_path):
    torch.save({ESCAPE: torch.ones(1)}, tmp_path / "theirs.pth")
    code, _, err = call(capsys, "convert", tmp_path / "theirs.pth", "-m", KINDS[1], "-o", "new", "--license", "mit")
    assert (code, "?]0;owned?" in err) == (2, True)
    assert "\x1b" not in err
    broken = tmp_path / "data" / "a" / f"{ESCAPE}.png"
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(picture, tmp_path / "data" / name)
        shutil.copy(picture, tmp_path / "data" / name / "again.png")
    broken.write_text("broken")
    given = ["train", tmp_path / "data", "-m", KINDS[1], "-o", tmp_path / "run", "-e", 1, "-b", 2, "--workers", 0]
    code, _, err = call(capsys, *given)
    assert (code, len(err.splitlines())) == (2, 2), "the line end of the message stays"
    code, _, told = call(capsys, *given, "--on-broken", "skip")
    assert code == 0
    assert "skipped: " in told
    assert "\x1b]" not in err + told


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_does_not_know_lose_no_work(folder, tmp_path, encoding):
    Image.new("RGB", (8, 8)).save(tmp_path / "\u732b.png")
    code = "import sys; sys.stdout.reconfigure(encoding=sys.argv.pop(1), errors='strict')\n"
    code += "from timm_mobilevit_zoo_cli import main\nmain()"
    done = fresh.run(["-c", code, encoding, "predict", folder, tmp_path / "\u732b.png"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "?.png: " in done.stdout


def test_images_that_are_all_missing_need_no_network(capsys, folder, picture, monkeypatch):
    code, among, _ = call(capsys, "predict", folder, "none.png", picture, "nor.png")
    assert code == 1
    monkeypatch.setattr("timm_mobilevit_zoo.models.loading.load", lambda model: pytest.fail("it began"))
    code, alone, _ = call(capsys, "predict", folder, "none.png", "nor.png")
    assert code == 1
    first, _, last = among.splitlines()
    told = [line.partition(": '")[0] for line in (first, last)]  # some versions of Pillow give the whole path
    assert [line.partition(": '")[0] for line in alone.splitlines()] == told


def test_errors_are_one_line(capsys, folder, picture, tmp_path):
    code, _, err = call(capsys, "predict", tmp_path, picture)
    assert code == 2
    assert err == f"timm-mobilevit-zoo: error: {str(tmp_path)!r} is not a folder with config.json and weights\n"
    assert call(capsys, "predict", "no_such_model", picture)[0] == 2
    code, _, err = call(capsys, "predict", "cloformer_xxs", picture)
    assert code == 1
    assert err.startswith("timm-mobilevit-zoo: error: nobody publishes such weights of cloformer_xxs.")
    assert call(capsys, "predict", folder, picture, "--top", 0)[0] == 2
    assert call(capsys, "train", tmp_path / "none", "-m", "cloformer_xxs", "-o", tmp_path / "out")[0] == 2
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "predict", str(tmp_path), str(picture)])


def test_a_missing_extra_names_the_pip_command():
    with pytest.raises(ModuleNotFoundError, match=r"all is not installed: pip install -e .*\[train\]'"):
        extras.require("no_such_module_at_all", "train")


@pytest.mark.parametrize("command", SOURCES)
def test_what_is_read_of_a_function_is_what_it_has(command):
    source = SOURCES[command]
    module = importlib.import_module(f"{PACKAGE}.{source.file.removesuffix('.py').replace('/', '.')}")
    function = getattr(module, source.name)
    found, signature = source.read(), inspect.signature(function)
    assert found.summary == inspect.getdoc(function).partition("\n")[0]
    assert [argument.name for argument in found.arguments] == list(signature.parameters)
    hints = get_type_hints(function)
    for argument, parameter in zip(found.arguments, signature.parameters.values(), strict=True):
        assert argument.required == (parameter.default is parameter.empty)
        assert argument.required or argument.default == parameter.default
        assert argument.keyword_only == (parameter.kind is parameter.KEYWORD_ONLY)
        assert argument.kind == hints[argument.name]
        assert argument.text, f"{argument.name} is not described"


def test_arguments_that_are_not_typed_have_the_functions_defaults():
    assert parse(["train", "data", "--model", "m", "--lr", "0.5"]) == {
        "command": "train",
        "traceback": False,
        "data": "data",
        "model": "m",
        **SOURCES["train"].read().defaults,
        "lr": 0.5,
    }
    assert parse(["page", "-o", "site", "--serve"])["models"] == ()
    converted = parse(["--traceback", "convert", "c.pth", "-m", "m", "-o", "out", "--license", "mit"])
    assert (converted["push"], converted["private"], converted["yes"], converted["traceback"]) == (
        "",
        True,
        False,
        True,
    )


def test_run_is_for_the_launcher():
    with pytest.raises(ValueError, match="run needs a script or -m MODULE"):
        main(["--trace", "run", "a.py"])  # short for --traceback, which is not taken off in front of `run`


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(capsys, shell):
    code, out, _ = call(capsys, "completion", shell)
    assert code == 0
    for word in ("train", "--channels-last", "completion", "onnx"):
        assert word in out


def test_completion_without_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = call(capsys, "completion", "bash")
    assert code == 2
    assert "shtab is not installed: pip install -e " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere", "-m", "m"], "'nowhere' is not a folder"),
        (["train", ".", "-m", "m", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["train", ".", "-m", "m", "--lr", "nan"], "--lr nan must be above 0"),
        (["train", ".", "-m", "m", "--workers", "10000"], "--workers 10000 must be at most 256"),
        (["train", ".", "-m", "m", "--scale", "0.1", "inf"], "--scale 0.1 inf must be above 0 and at most 1 each"),
        (["train", ".", "-m", "m", "--alpha", "0.9"], "--alpha 0.9 needs --teacher"),
        (["predict", "m", "a.png", "--top", "0"], "--top 0 must be at least 1"),
        (["predict", "m", "a.png", "-b", "-2"], "--batch-size -2 must be at least 1"),
        (["maps", "m", "none.png", "-o", "a.png", "--img-size", "-1"], "--img-size -1 must be a side, or"),
        (
            ["convert", "c", "-m", "m", "-o", "out", "--license", "mit", "--img-size", "0"],
            "--img-size 0 must be a side, or",
        ),
        (["export", "m", "--format", "onnx", "-o", "a", "--img-size", "0", "8"], "--img-size 0 8 must be a side"),
        (
            ["export", "m", "--format", "onnx", "-o", "a", "--tolerance", "inf"],
            "--tolerance inf must be above 0 and fin",
        ),
        (["bench", "m", "--threads", "1", "0"], "--threads 1 0 must be at least 1 each"),
        (["bench", "m", "--seconds", "inf"], "--seconds inf must be above 0 and finite"),
        (["page", "m", "-o", "site", "--serve", "--port", "-1"], "--port -1 must be from 0 to 65535"),
        (["demo", "--seed", "-1"], "--seed -1 must be at least 0"),
        (["train", ".", "-m", "m", "--checkpoint", "none.pth"], "--checkpoint none.pth is not a file"),
        (["predict", "./none", "a.png"], "'./none' is not a folder with config.json and weights"),
        (["maps", "cloformer_xxs", "none.png", "-o", "a.png"], "'none.png' is not a file"),
        (["check", "none"], "none is not a folder"),
        (["check", "."], "config.json is missing in ."),
        (["push", "none", "a/b"], "none is not a folder"),
        (["convert", "none.pth", "-m", "m", "-o", "out", "--license", "mit"], "'none.pth' is not a file"),
        (
            ["convert", "none.pth", "-m", "m", "-o", "out", "--license", "mine"],
            "--license mine is not one that the Hub knows",
        ),
        (["export", "m", "--format", "onnx", "-o", "none/a.onnx"], "--output none/a.onnx needs a folder that exists"),
        (["export", "m", "--format", "onnx", "-o", "a.onnx", "--int8", "none"], "--int8 none must be a folder with"),
        (["bench", "m", "--rounds", "4"], "--rounds 4 must be at least 5, or quartiles say nothing"),
        (["page", "runs/none", "-o", "site"], "'runs/none' is not a folder with config.json and weights"),
        (["page", "m", "-o", "none/site"], "--output none/site needs a folder that exists"),
        (["page", "-o", "site"], "MODEL is empty; give one or more"),
        (["page", "-o", ".", "--serve"], "--output . is not a page that `page` wrote"),
        (["page", "m", "-o", "site", "--port", "80"], "--port goes with --serve"),
        (["demo", "-o", "full"], "--output full is not empty; remove what is in it"),
    ],
)
def test_what_words_alone_are_wrong_about_needs_no_package(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "of").mkdir(parents=True)
    monkeypatch.setitem(commands.COMMANDS, words[0], lambda **args: pytest.fail("it began"))
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"timm-mobilevit-zoo: error: {message}")
    assert not list(tmp_path.glob("out"))
