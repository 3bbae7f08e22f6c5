"""The house: rooms that use those below them, code that one can read, paths that users know, a quick start."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zoo import NAMES, family

import timm_mobilevit_zoo

PACKAGE = Path(timm_mobilevit_zoo.__file__).parent
ROOT = PACKAGE.parent
COMMAND = ROOT / "timm_mobilevit_zoo_cli"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted(COMMAND.rglob("*.py"))

# Which rooms a room uses. `cli` is the command, which stands beside the package; of it all use the checks of arguments.
USES = {
    "common": (),
    "models": ("common",),
    "hub": ("common", "models"),
    "fusion": ("common", "models"),
    "maps": ("common", "models"),
    "train": ("common", "models"),
    "export": ("common", "fusion", "models"),
    "bench": ("common", "export", "fusion", "models"),
    "page": ("common", "export", "maps", "models"),
    "cli": ("bench", "common", "export", "hub", "maps", "models", "page", "train"),
}
ROOT_FILES = {"__init__", "__main__", "attention", "cli", "convert", "demo", "launch", "predict"}
# What other rooms know of `models`: no family.
SHARED = {"checkpoints", "copies", "loading", "names", "pins", "places", "pretrained", "probe", "saving", "traits"}


def imported(path):
    """The modules of the package that a file imports, as tuples of their names' parts."""
    base = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [tuple(one.name.split(".")) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            names = [(*module, one.name) for one in node.names]
        else:
            continue
        yield from (name for name in names if name[0] in (PACKAGE.name, COMMAND.name))


def room(parts):
    """The room of a module of the package; the package's own name for what lies at its top."""
    if parts[0] == COMMAND.name:
        return "cli"
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_uses_those_below_it(path):
    own = room(path.relative_to(ROOT).with_suffix("").parts)
    for name in imported(path):
        other = room(name)
        if not own:
            assert path.stem in ROOT_FILES
        elif other == "cli" and own != "cli":
            assert name[1] in ("checks", "installed", "licences", "near", "text"), (
                f"{path} uses the command line: {name}"
            )
        elif other and other != own:
            assert other in USES[own], f"{path} imports {'.'.join(name)}"
            if other == "models":
                assert name[2] in SHARED, f"{path} knows the family {name[2]}"
        elif not other:
            assert name[1:] in ((), ("__version__",)), f"{path} imports what lies above it: {name}"


def test_the_rooms_have_floors():
    floors, left = [], dict(USES)
    while left:
        floor = [name for name, uses in left.items() if not set(uses) & left.keys()]
        assert floor, f"a circle: {left}"
        floors.append(floor)
        left = {name: uses for name, uses in left.items() if name not in floor}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == USES.keys() - {"cli"}
    assert len(floors) <= 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - doc < 80, node.name


PATHS = {
    "timm_mobilevit_zoo": "__version__ attention fuse list_models models",
    "timm_mobilevit_zoo.attention": "AdditiveTokenMixer ChunkConv CloAttention DilatedReparamBlock "
    "EfficientModulation LargeKernelAttention LocalGlobalLocalAttention MobileViTAttention MobileViTv3Block "
    "MultiOrderGatedAggregation RecAttention RecConv",
    "timm_mobilevit_zoo.bench": "bench compare draw quartiles ratio_text table",
    "timm_mobilevit_zoo.cli": "main",
    "timm_mobilevit_zoo.convert": "convert read_checkpoint",
    "timm_mobilevit_zoo.demo": "DIGITS demo write_digits",
    "timm_mobilevit_zoo.export": "export to_coreml to_executorch to_litert to_mnn to_ncnn to_onnx to_openvino",
    "timm_mobilevit_zoo.hub": "HubError Refused check export load pull push",
    "timm_mobilevit_zoo.launch": "run",
    "timm_mobilevit_zoo.maps": "attention_maps draw draw_file rollout",
    "timm_mobilevit_zoo.page": "check_port page serve",
    "timm_mobilevit_zoo.predict": "create head_of load predict translate weights_from",
    "timm_mobilevit_zoo.train": "train",
    **dict.fromkeys(sorted(set(map(family, NAMES))), "default_cfgs"),
}


@pytest.mark.parametrize("module", PATHS)
def test_what_users_import_keeps_its_path(module):
    found = importlib.import_module(module)
    names = PATHS[module].split()
    assert not [name for name in names if not hasattr(found, name)]
    assert set(names) <= {*found.__all__, "default_cfgs"}


# What a command knows without torch, in a process of its own: its words, its exit status, and a part of what it says.
QUICK = [
    (["--version"], 0, timm_mobilevit_zoo.__version__),
    (["--help"], 0, "Train a model on a folder of images"),
    (["train", "--help"], 0, "--channels-last"),
    (["train", "nowhere", "-m", "cloformer_xxs"], 2, "error: 'nowhere' is not a folder"),
    (["bench", "cloformer_xxs", "--backend", "fastest"], 2, "--backend 'fastest' must be eager, "),
    (["models", "cloformer"], 0, "cloformer_xxs"),
    (["run", "nowhere.py"], 2, "run: no script file 'nowhere.py'"),
]
# Each main program shows, at its end, whether torch and timm were imported.
STARTS = {
    "-m": "import runpy; sys.argv[0] = '-m'; sys.orig_argv[1:] = ['-m', 'timm_mobilevit_zoo', *sys.argv[1:]]\n"
    "runpy.run_module('timm_mobilevit_zoo', run_name='__main__', alter_sys=True)",
    "script": "from timm_mobilevit_zoo_cli import main\nmain()",
}
SHOWN = """import atexit, sys
atexit.register(lambda: print('imported:', sorted({'torch', 'timm', 'numpy'} & sys.modules.keys())))
"""


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("optimize", ["", "2"], ids=["", "-OO"])
def test_words_are_judged_without_torch(start, optimize, tmp_path):
    for words, status, said in QUICK:
        done = subprocess.run(
            [sys.executable, "-c", SHOWN + STARTS[start], *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": optimize},
        )
        assert (done.returncode, done.stdout.splitlines()[-1]) == (status, "imported: []"), done.stderr
        assert said in done.stdout + done.stderr


def test_the_import_takes_nothing_slow():
    slow = ["accelerate", "cv2", "datasets", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "sklearn"]
    code = "import json, sys, timm\nbefore = set(sys.modules)\nimport timm_mobilevit_zoo\n"
    code += "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(json.loads(done.stdout)) & {*slow, "transformers", "torchmetrics", "executorch", "scipy"}
