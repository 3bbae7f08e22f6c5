"""Run timm's train.py with each recipe of docs/recipes, for a few steps on 16 small pictures.

    python tests/run_recipes.py TRAIN_PY [GLOB ...] [--record]

timm's packages lack train.py: TRAIN_PY is that of a checkout of its repository. What a run replaces of its recipe is
`REPLACED`; all else must arrive in the run's args.yaml as the recipe has it. `--record` runs nothing and writes
tests/train_args.json, train.py's arguments with types and defaults, which tests/test_recipes.py compares with.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "docs" / "recipes"
ARGS = Path(__file__).with_name("train_args.json")
# The data and the computer are not the recipe's; 16 pictures have no batches of 128, nor enough for repeats.
REPLACED = {
    "dataset": "",
    "num_classes": 2,
    "batch_size": 4,
    "epochs": 1,
    "warmup_epochs": 0,
    "cooldown_epochs": 0,
    "aug_repeats": 0.0,
    "workers": 0,
    "device": "cpu",
    "amp_dtype": "bfloat16",
    "no_prefetcher": True,
    "log_interval": 1,
}
BUILT_IN = {int: "int", float: "float", str: "str", None: "str"}


def pictures(folder: Path) -> None:
    """Write 8 pictures of each of two classes, dark and light noise, for training and as many for validation."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label, low in (("dark", 0), ("light", 128)):
            (folder / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(low, low + 128, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


def arguments(train_py: Path) -> dict[str, dict]:
    """Return each argument of train.py by the name that a configuration file has for it: its type and default."""
    spec = importlib.util.spec_from_file_location("train", train_py)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for action in module.parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._StoreTrueAction):
            kind = "bool"
        elif type(action).__name__ == "ParseKwargs":
            kind = "dict"
        else:
            kind = BUILT_IN[action.type] + (" list" if action.nargs in ("+", 3) else "")
        found[action.dest] = {"type": kind, "default": action.default}
        if action.choices:
            found[action.dest]["choices"] = list(action.choices)
    return found


def record(train_py: Path) -> None:
    """Write `ARGS`, one argument a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(about)}" for name, about in sorted(arguments(train_py).items())]
    ARGS.write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", encoding="utf-8")


def run(train_py: Path, recipe: Path, folder: Path, timeout: float) -> list[str]:
    """Train as `recipe` says and return the loss of each step. A run that fails or strays is an AssertionError."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    replaced = dict(REPLACED)
    if "train_batch_sizes" in settings:
        replaced["train_batch_sizes"] = [4] * len(settings["train_batch_sizes"])
    command = [sys.executable, "-m", "timm_mobilevit_zoo", "run", str(train_py), "--config", str(recipe)]
    for name, value in replaced.items():
        command.append("--" + name.replace("_", "-"))
        command += [] if value is True else map(str, value if isinstance(value, list) else [value])
    command += ["--data-dir", str(folder), "--output", str(folder / "runs"), "--experiment", recipe.stem]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    arrived = yaml.safe_load((folder / "runs" / recipe.stem / "args.yaml").read_text(encoding="utf-8"))
    strayed = {name for name, value in (settings | replaced).items() if arrived[name] != value}
    assert not strayed, f"{recipe.name}: train.py has other values of {strayed}"
    steps = re.findall(r"^Train: .*?Loss: +(\S+) .*?LR: \S+", done.stderr, re.MULTILINE)
    assert steps, done.stderr[-4000:]
    assert all(np.isfinite(float(loss)) for loss in steps), steps
    return steps


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Run timm's train.py with each recipe, for a few steps.")
    parser.add_argument("train_py", type=Path, metavar="TRAIN_PY", help="train.py of a checkout of timm")
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="recipes, without .yaml (default: all)")
    parser.add_argument("--record", action="store_true", help="write tests/train_args.json and run nothing")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds for one recipe (default: 300)")
    args = parser.parse_args()
    train_py = args.train_py.resolve()
    if not train_py.is_file():
        sys.exit(f"no file {train_py}")
    if args.record:
        record(train_py)
        return 0
    recipes = [
        p for p in sorted(RECIPES.glob("*.yaml")) if not args.globs or any(fnmatch(p.stem, g) for g in args.globs)
    ]
    if not recipes:
        sys.exit(f"no recipe matches {args.globs}")
    failed = 0
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as scratch:
            pictures(Path(scratch))
            try:
                losses = run(train_py, recipe, Path(scratch), args.timeout)
                print(f"{recipe.stem}: accepted, losses {', '.join(losses)}")
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{recipe.stem}: failed\n{error}")
    print(f"{len(recipes) - failed} of {len(recipes)} recipes accepted")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
