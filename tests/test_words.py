"""The command speaks as it is typed: no message names Python's arguments, and a slip gets what was meant."""

import ast
import json
import re
from importlib import metadata
from pathlib import Path

import pytest

import timm_mobilevit_zoo
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo_cli import commands, installed
from timm_mobilevit_zoo_cli.checks import check
from timm_mobilevit_zoo_cli.near import did_you_mean, nearest
from timm_mobilevit_zoo_cli.parser import PUSH, SERVE, SOURCES, parse, parser
from timm_mobilevit_zoo_cli.typed import typed

ARGUMENTS = {one.name for source in (*SOURCES.values(), PUSH, SERVE) for one in source.read().arguments}
ARGUMENTS -= {"channels_last"}  # which is also what --memory-format takes
PYTHON = re.compile(
    rf"(?<![\w-])(?:{'|'.join(sorted(ARGUMENTS))})=|=(?:True|False|None)\b|\b\w+\(\)|\btimm\.\w+|\bmodels?:|"
    rf"(?<![\w./-])(?:{'|'.join(sorted(name for name in ARGUMENTS if '_' in name))})(?!\w)"
)


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code, *capsys.readouterr()


# What each command needs, all of it right: files that the fixture makes.
RIGHT = {
    "train": ["data", "-m", "cloformer_xxs", "-o", "run"],
    "predict": ["weights", "a.png"],
    "maps": ["cloformer_xxs", "a.png", "-o", "new.png"],
    "check": ["weights"],
    "convert": ["file.pth", "-m", "cloformer_xxs", "-o", "new", "--license", "mit"],
    "push": ["weights", "me/net"],
    "pull": ["me/net"],
    "weights": [],
    "pin": ["recnext_t"],
    "export": ["cloformer_xxs", "--no-pretrained", "--format", "onnx", "-o", "new.onnx"],
    "bench": ["cloformer_xxs"],
    "page": ["cloformer_xxs", "-o", "new", "--runtime", "file.pth", "--no-pretrained"],
    "demo": ["-o", "new"],
}
# Values that are wrong for options of a kind, or for any; whatever is right for one changes nothing that is checked.
WRONG = ("-1", "1e99", "nowhere/at/all", "full", "mie", 'it\'s "it"')
# Options that are right each, and wrong beside what is given.
BESIDE = {
    "train": [
        ["--alpha", 0.1],
        ["--temperature", 2, "--teacher", "weights", "--distill", "feature"],
        ["--ema-decay", 0.5],
        ["--no-augment", "--hflip", 0.1],
        ["--auto-augment", "rand-m9", "--color-jitter", 0.1],
        ["--warmup-epochs", 0, "--warmup-lr", 0.1],
        ["--sched", "none", "--min-lr", 0.1],
        ["--sched", "plateau"],
        ["--num-classes", 3],
        ["--train-split", "a"],
        ["--dataset-download"],
        ["--dataset", "torch/cifar10", "--on-broken", "skip"],
        ["--pretrained", "--checkpoint", "file.pth"],
        ["--epochs", 3, "--warmup-epochs", 5],
        ["--mixup", 0.2, "--batch-size", 3],
        ["--in-chans", 2],
        ["--scale", 0.9, 0.1],
        ["--teacher", "full"],
        ["--opt", "adamm"],
        ["--sched", "cosin"],
        ["--model", "cloformer_xss"],
        ["--teacher", "cloformer_xss"],
        ["--teacher", "cloformer_xxs"],
        ["--pretrained"],
        ["-o", "full"],
        ["-o", "full", "--resume"],
        ["--dataset", "cifar10"],
    ],
    "predict": [["--trust"], ["--top", 0], ["--batch-size", 0]],
    "maps": [
        ["--checkpoint", "file.pth", "--pretrained"],
        ["-o", "a.png"],
        ["-o", "new.txt"],
        ["--img-size", 8, 0],
        ["--pretrained"],
        ["--checkpoint", "file.pth"],
    ],
    "convert": [
        ["--license", "other"],
        ["--license", "other", "--license-name", "My Own", "--license-link", "here"],
        ["-o", "."],
        ["-o", "full"],
        ["--model", "resnet18"],
        ["--model", "cloformer_xss"],
        ["--yes"],
        ["--no-private"],
        ["--push", "nobody"],
    ],
    "push": [["--branch", ""]],
    "pull": [["-o", "full"]],
    "export": [
        ["--dynamic", "size", "--format", "litert", "-o", "new.tflite"],
        ["--format", "ncnn", "-o", "new.param", "--int8", "data"],
        ["--format", "executorch", "-o", "new.pte", "--precision", "fp16"],
        ["-o", "new.onnx", "--precision", "int8"],
        ["-o", "new.onnx", "--precision", "bf16"],
        ["-o", "new.onnx", "--precision", "fp16", "--calibration", "data"],
        ["-o", "new.onnx", "--precision", "fp16", "--int8", "data"],
        ["-o", "new.onnx", "--calibration", "data", "--int8", "data"],
        ["-o", "new.tflite"],
        ["-o", "full.onnx"],
        ["--pretrained"],
        ["--images", "full"],
        ["--img-size", 8, 0],
    ],
    "bench": [
        ["--rounds", 4],
        ["--device", "cpu", "--dtype", "fp16"],
        ["--device", "cpu", "--cuda-graphs"],
        ["--device", "cpu", "--dtype", "int8"],
        ["--device", "cpu", "--dtype", "bf16", "--backend", "openvino"],
        ["--device", "cpu", "--mode", "train", "--backend", "fuse"],
        ["--layers", "--no-limits"],
        ["--layers", "--mode", "train"],
        ["--device", "cpu", "--layers", "--backend", "compile"],
        ["--device", "nowhere"],
        ["--device", "cpu", "--plot", "new.png", "--mode", "train"],
        ["--plot", "new.txt"],
        ["-o", "full.onnx"],
        ["--against", "cloformer_xss"],
        ["--against", "nowhere:net"],
    ],
    "page": [
        ["-o", "full"],
        ["--pretrained"],
        ["--fetch-runtime"],
        ["--port", 80],
        ["--images", "full"],
        ["--runtime", "full"],
        ["--precision", "bf16"],
        ["--precision", "fp32", "int8"],
        ["--precision", "int8", "--calibration", "full"],
        ["--calibration", "data"],
    ],
    "demo": [["-o", "full"], ["-m", "cloformer_xss"]],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what `RIGHT` names and `WRONG` and `BESIDE` hit upon."""
    from PIL import Image

    for name in ("data/a", "data/b", "weights", "full"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("full/of", "full.onnx", "file.pth", "weights/config.json", "weights/model.safetensors"):
        (tmp_path / name).write_text("{}")
    for name in ("a.png", "data/a/1.png", "data/a/2.png", "data/b/1.png", "data/b/2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of(command):
    """The options of a command that take a value, as they are typed."""
    (subparsers,) = (action for action in parser((command,))._actions if action.dest == "command")
    actions = subparsers.choices[command]._actions
    return [action.option_strings[-1] for action in actions if action.option_strings and action.nargs != 0]


@pytest.mark.parametrize("command", SOURCES)
def test_no_message_about_a_value_speaks_python(capsys, monkeypatch, place, command):
    monkeypatch.setitem(commands.COMMANDS, command, lambda **args: 0)  # what words alone can be wrong about
    told = 0
    for option in options_of(command):
        for value in WRONG:
            code, out, err = call(capsys, command, *RIGHT[command], f"{option}={value}")
            assert (code, out, err.count("\n")) in ((0, "", 0), (2, "", 1)), err
            assert not PYTHON.search(err), err
            told += code == 2
    assert told or command in ("check", "push", "weights", "pin")


@pytest.mark.parametrize("command", BESIDE)
def test_no_message_about_options_side_by_side_speaks_python(capsys, place, command):
    words = RIGHT[command]
    for given in BESIDE[command]:
        flags = {str(word) for word in given if str(word).startswith("-")}
        kept = [word for i, word in enumerate(words) if not flags & {word, *words[i - 1 : i]}]
        opposite = {"--pretrained": "--no-pretrained", "--fetch-runtime": "-"}
        kept = [word for word in kept if word not in {opposite.get(flag) for flag in flags}]
        code, out, err = call(capsys, command, *kept, *given)
        assert (code, out) in ((2, ""), (1, "")), (given, out)
        assert not PYTHON.search(err), err


def text_of(node):
    """What is fixed of a message; its values are left out."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return ""


# Those that no command's arguments lead to: of functions for Python, and of entries in files.
APART = ("fusion/", "hub/card.py", "models/", "export/checked.py")


def test_every_message_marks_the_arguments_that_it_names():
    root = Path(timm_mobilevit_zoo.__file__).parent
    files = [path for path in root.rglob("*.py") if not path.relative_to(root).as_posix().startswith(APART)]
    unlike_words = {name for name in ARGUMENTS if "_" in name} | {"lr", "ema"}
    found = 0
    for path in (*files, *Path(commands.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = re.sub(r"`[^`]*`|card\['\w+'\]", "", text_of(node.exc.args[0]))
                bare = [word for word in re.findall(r"(?<![\w.])([a-z]\w*)(?![\w=])", text) if word in unlike_words]
                assert not bare, f"{path.name}:{node.lineno}: write `{bare[0]}` or {bare[0]}=value: {text}"
                found += 1
    assert found > 80


@pytest.mark.parametrize(
    ("command", "message", "told"),
    [
        ("train", "on_broken='skip' is for a folder", "--on-broken skip is for a folder"),
        ("train", "lower `lr`, or set `clip_grad`", "lower --lr, or set --clip-grad"),
        ("train", "needs `ema=True`, not resume=False", "needs --ema, not --no-resume"),
        ("train", "scale=(0.9, 0.1) must be", "--scale 0.9 0.1 must be"),
        ("train", "data='my photos' is not a folder", "'my photos' is not a folder"),
        ("train", "checkpoint='my file' is not", "--checkpoint 'my file' is not"),
        ("train", "checkpoint='a\\nb' is not", "--checkpoint 'a\\nb' is not"),
        ("train", "'/x/lr=0.1/a.png' and /x/lr=0.1/a.png are broken", None),
        ("train", "the class 'model=3' of timm's is the model's", None),
        ("export", "size=3 x 4 is not a size that it takes", "--img-size 3 x 4 is not a size that it takes"),
        ("export", "network=cloformer_xxs has weights", "cloformer_xxs has weights"),
        ("page", "folder='.' is not a page", "--output . is not a page"),
        ("page", "`models` is empty", "MODEL is empty"),
        ("convert", "card['license']='x' is", "--license x is"),
        ("predict", "model='m' is refused; `trust=True` loads it", "'m' is refused; --trust loads it"),
        ("predict", "none of m; `pretrained=False` gives random ones", "none of m"),
        ("maps", "none of m; `pretrained=False` gives random ones", "none of m; --no-pretrained gives random ones"),
        ("check", "num_classes=3 stands in config.json", None),
        ("models", "pattern='x*' matches no name", "'x*' matches no name"),
    ],
)
def test_arguments_become_options(command, message, told):
    assert typed(message, command) == (message if told is None else told)


def test_from_python_a_message_names_the_argument(place):
    given = SOURCES["train"].read().defaults | {"data": "data", "model": "m", "ema_decay": 0.5}
    with pytest.raises(ValueError, match=r"^ema_decay=0\.5 needs `ema=True`$"):
        check("train", given)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian", "data"], "there is no command 'trian'; did you mean train?"),
        ([], "a command is needed; timm-mobilevit-zoo --help lists them"),
        (["--verson"], "timm-mobilevit-zoo has no option --verson; did you mean --version?"),
        (["train", "data", "--modle", "x"], "train has no option --modle; did you mean --model?"),
        (
            ["train", "data", "-m", "x", "--batch_size=3"],
            "train has no option --batch_size; did you mean --batch-size?",
        ),
        (["train", "data", "-q"], "train has no option -q; see timm-mobilevit-zoo train --help"),
        (["train", "data"], "train needs -m/--model; see timm-mobilevit-zoo train --help"),
        (["maps", "m"], "maps needs IMAGE and -o/--output; see timm-mobilevit-zoo maps --help"),
        (["check", "a", "b"], "unexpected: b; see timm-mobilevit-zoo check --help"),
        (
            ["train", ".", "-m", "x", "--on-broken", "skp"],
            "--on-broken 'skp' must be stop, skip or trust; did you mean",
        ),
        (["train", ".", "-m", "x", "--epochs", "ten"], "--epochs 'ten' must be a whole number"),
        (["train", ".", "-m", "x", "--lr", "fast"], "--lr 'fast' must be a number"),
        (["train", ".", "-m", "x", "--epochs"], "--epochs: expected one argument"),
        (["train", ".", "-m", "x", "--img-size", "big"], "--img-size 'big' must be one side N of a square, or height"),
        (["train", ".", "-m", "x", "--val", "0.1"], "ambiguous option: --val could match --val-split, --val-fraction"),
        (
            ["train", ".", "-m", "x", "--auto-augment", "foo"],
            "--auto-augment foo is not one of timm's policies; give one such as",
        ),
        (["models", "cloformer_xss"], "'cloformer_xss' matches no name; did you mean cloformer_xs, cloformer_xxs or "),
        (["weights", "recnxt_m0"], "'recnxt_m0' matches no tag with weights; did you mean recnext_m0"),
        (["pin", "recnext_mo"], "'recnext_mo' has no file of weights; did you mean recnext_m"),
        (["completion", "fish"], "SHELL 'fish' must be bash or zsh"),
    ],
)
def test_wrong_words_get_one_line_with_what_was_meant(capsys, words, told):
    code, out, err = call(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"timm-mobilevit-zoo: error: {told}")


def test_the_nearest_words_come_first():
    names = ["cloformer_s", "cloformer_xs", "cloformer_xxs", "recnext_m0", "recnext_m1", "mobilevitv3_xxs", "MIT"]
    assert nearest("Cloformer_xxS", names)[0] == "cloformer_xxs"
    assert nearest("recnext", names) == ["recnext_m0", "recnext_m1"]
    assert nearest("mti", names) == ["MIT"]
    assert did_you_mean("bicycle", names) == ""
    assert did_you_mean("recnext", names) == "; did you mean recnext_m0 or recnext_m1?"


@pytest.mark.parametrize(
    ("noted", "told"),
    [
        (None, "pip install 'timm-mobilevit-zoo[onnx]'"),
        (
            {"url": "https://host/zoo.whl", "archive_info": {}},
            "pip install 'timm-mobilevit-zoo[onnx] @ https://host/zoo.whl'",
        ),
        (
            {"url": "https://host/zoo", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'timm-mobilevit-zoo[onnx] @ git+https://host/zoo@abc'",
        ),
        ({"url": "{here}/my%20zoo", "dir_info": {}}, "pip install '{path}/my zoo[onnx]'"),
        ({"url": "{here}/gone", "dir_info": {}}, "pip install 'timm-mobilevit-zoo[onnx]'"),
    ],
)
def test_a_missing_extra_is_installed_as_the_package_was(monkeypatch, tmp_path, noted, told):
    class Distribution:
        def read_text(self, name):
            return noted and json.dumps(noted).replace("{here}", tmp_path.as_uri())

    (tmp_path / "my zoo").mkdir()
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(installed, "__file__", str(tmp_path / "site" / "timm_mobilevit_zoo_cli" / "installed.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert installed.pip_line("onnx") == told.replace("{path}", str(tmp_path.resolve()))


def test_in_a_checkout_the_extra_is_installed_from_it(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(installed, "__file__", str(tmp_path / "timm_mobilevit_zoo_cli" / "installed.py"))
    assert installed.pip_line("onnx") == f"pip install -e '{tmp_path.resolve()}[onnx]'"
    monkeypatch.chdir(tmp_path)
    assert installed.pip_line("onnx") == "pip install -e '.[onnx]'"


def test_a_size_is_a_side_or_height_and_width():
    def size(command, *words):
        return parse([command, *words])["size" if command == "export" else "img_size"]

    given = {
        "train": ["data", "-m", "m"],
        "maps": ["m", "a.png", "-o", "b.png"],
        "export": ["m", "--format", "onnx", "-o", "b.onnx"],
        "convert": ["c.pth", "-m", "m", "-o", "out", "--license", "mit"],
    }
    for command, words in given.items():
        assert size(command, *words) is None
        assert size(command, "--img-size", "64", *words) == 64
        assert size(command, "--img-size", "64", "96", *words) == (64, 96)
        assert size(command, *words, "--img-size=64x96") == (64, 96)
        assert parse([command, "--img-size", "64", "96", *words])["command"] == command
    assert size("bench", "m", "--img-size", "64", "96x64") == [64, (96, 64)]  # each is measured


@pytest.mark.parametrize("command", [*SOURCES, "models", "run", "completion"])
def test_help_speaks_as_it_is_typed(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert not re.search(
        rf"(?<![\w-])(?:{'|'.join(ARGUMENTS)})=|=(?:True|False|None)\b|default: (?:None|False|True|\()", out
    )
    assert not re.search(r"--\w[\w-]* X\b", out) or command in ("train", "export")
    assert len(out.partition("\n\n")[0].splitlines()) < 4  # its usage


def test_help_of_run_says_what_it_runs(capsys):
    code, out, _ = call(capsys, "run", "--help")
    assert code == 0
    for words in ("run SCRIPT [ARGS...]", "run -m MODULE [ARGS...]", "timm's scripts", "exit status"):
        assert words in out


def test_a_page_that_is_written_says_how_to_look_at_it(capsys, monkeypatch, place):
    monkeypatch.setattr("timm_mobilevit_zoo.page.page", lambda models, **args: {"models": []})
    code, out, _ = call(capsys, "page", "m", "-o", "my page")
    assert (code, out) == (0, "to look at it: timm-mobilevit-zoo page --serve -o 'my page'\n")
    assert parse(["page", "--serve", "-o", "my page"])["models"] == ()
