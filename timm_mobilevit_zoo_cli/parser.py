"""The options: each command calls one function, whose signature and docstring are its options and its help."""

import argparse
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from .grammar import SIZED, Parser, number, size
from .licences import CARD_WORDS
from .signatures import Argument, Function, read

__all__ = [
    "LEFT_OUT",
    "MODELS",
    "PACKAGE",
    "PUSH",
    "SERVE",
    "SOURCES",
    "flag_of",
    "metavar_of",
    "parse",
    "parser",
    "root",
]

PACKAGE = "timm_mobilevit_zoo"
SHORT = {"model": "-m", "output": "-o", "epochs": "-e", "batch_size": "-b"}


class Source(NamedTuple):
    """A function of the package."""

    file: str
    name: str

    def read(self) -> Function:
        return read(root() / self.file, self.name)


PUSH, SERVE = Source("hub/transfer.py", "push"), Source("page/server.py", "serve")
MODELS = Source("../timm_mobilevit_zoo_cli/catalogue.py", "list_models")
SOURCES = {
    "train": Source("train/run.py", "train"),
    "predict": Source("train/predict.py", "predict"),
    "maps": Source("maps/drawing.py", "draw_file"),
    "check": Source("hub/folder.py", "check"),
    "convert": Source("hub/convert.py", "convert"),
    "push": PUSH,
    "pull": Source("hub/transfer.py", "pull"),
    "weights": Source("hub/weights.py", "weights"),
    "pin": Source("hub/weights.py", "pin"),
    "export": Source("export/write.py", "export"),
    "bench": Source("bench/run.py", "bench"),
    "page": Source("page/write.py", "page"),
    "demo": Source("train/demo.py", "demo"),
}
# Arguments of the functions that the command line gives in its own way, or not at all.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "predict": ("model", "images"),
    "check": ("architectures",),
    "push": ("dry_run", "token"),
    "pull": ("cache_dir", "token"),
    "weights": ("pattern",),
    "models": ("pattern",),
    "page": ("models",),
}
SHELLS = ("bash", "zsh")
IMAGES = (
    "Image files, folders of images, patterns such as 'photos/*.jpg', or - for a list on standard input, one path per "
    "line."
)
CHATTY = ("bench", "export", "page")  # what calls converters
# What a command does, where the first line about its function speaks to who calls it from Python.
SUMMARIES = {
    "check": "Check a folder of weights: files, config, sizes, header, values, probe.",
    "push": "Check a folder of weights and show what a push would do; with --yes, push it.",
    "pull": "Download weights, check them, and print the commit and digests to pin.",
    "pin": "Download files of weights, try them in their networks, and print the commits and digests to pin.",
    "predict": "Classify images: print the likeliest classes of each.",
    "weights": "List the published files of weights, one for each tag.",
    "models": "List the networks: parameters, multiply-adds, image size, weights and claimed accuracy.",
    "run": "Run a script, such as one of timm's, with the zoo's models registered.",
    "completion": "Print a script for completing these commands and options in a shell.",
}
RUN = """Usage: timm-mobilevit-zoo run SCRIPT [ARGS...]
       timm-mobilevit-zoo run -m MODULE [ARGS...]

Run a Python program, such as one of timm's scripts, with the zoo's models registered, so that it can create them by
name. What follows SCRIPT or MODULE is passed to the program; its exit status is the command's.

  SCRIPT       file of the program, such as train.py in a checkout of timm
  -m MODULE    module to run, as python -m does
  ARGS         the program's own arguments
  -h, --help   show this help message and exit

Example: timm-mobilevit-zoo run train.py photos --model cloformer_xxs --img-size 224
"""
# What stands for a value in usage and help: by command and argument, by argument, or by kind.
METAVARS: Mapping[str, Any] = {
    "auto_augment": "POLICY",
    "branch": "BRANCH",
    "checkpoint": "PATH",
    "clip_grad": "NORM",
    "data": "DIR",
    "description": "TEXT",
    "device": "DEVICE",
    "export.output": "PATH",
    "bench.output": "PATH",
    "folder": "DIR",
    "image": "IMAGE",
    "images": "DIR",
    "img_size": "N | H W",
    "bench.img_size": "N|HxW",
    "calibration": "DIR",
    "int8": "DIR",
    "license": "ID",
    "license_link": "URL",
    "maps.output": "PATH",
    "message": "TEXT",
    "model": "NAME",
    "names": "NAME",
    "output": "DIR",
    "plot": "PATH",
    "predict.images": "IMAGE",
    "ratio": ("MIN", "MAX"),
    "repo_id": "OWNER/NAME",
    "revision": "REVISION",
    "runtime": "PATH",
    "scale": ("MIN", "MAX"),
    "seconds": "SECONDS",
    "size": "N | H W",
    "temperature": "X",
    "tolerance": "X",
    "models": "MODEL",
    **dict.fromkeys(("export.model", "maps.model", "predict.model", "pull.model"), "MODEL"),
}
# Options that are called otherwise than the arguments.
FLAGS = {"size": "--img-size", "as_json": "--json"}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Return the `command`, whether `traceback` is asked for, and every argument of the command's function.

    Raises:
        SystemExit: With status 2 for wrong words, which are told on stderr; with 0 after help or the version.
    """
    first = next((word for word in argv if word != "--traceback"), "")
    given = vars(parser((first,) if first in SOURCES else None).parse_args(argv))
    return _defaults(given["command"]) | given


def _defaults(command: str) -> dict[str, Any]:
    """Return the arguments that a command's function gets where none are typed."""
    found = SOURCES[command].read().defaults if command in SOURCES else {}
    left_out = LEFT_OUT.get(command, ())
    own: dict[str, Any] = {"push": ""} if command == "convert" else {"models": ()} if command == "page" else {}
    of_serve = SERVE.read().defaults if command == "page" else {}
    of_push = {"private": PUSH.read().defaults["private"]} if command == "convert" else {}
    return {name: value for name, value in found.items() if name not in left_out} | of_serve | of_push | own


def parser(only: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        only: Commands whose options are needed; those of all where not given.
    """
    top = Parser(prog="timm-mobilevit-zoo", description="Lightweight vision networks for timm.")
    top.add_argument("--version", action="version", version=_version())
    top.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, source in SOURCES.items():
        if only is None or name in only:
            _add_command(commands, name, source.read())
        else:
            commands.add_parser(name)
    _add_own_commands(commands)
    return top


def _add_own_commands(commands: Any) -> None:
    """Add the commands that no function of the package is behind."""
    summary = SUMMARIES["models"]
    models = commands.add_parser("models", help=summary, description=summary)
    _own_of_models(models)
    run = commands.add_parser("run", help=SUMMARIES["run"])
    run.format_help = lambda: RUN
    run.add_argument("script", help="the script or module")
    run.add_argument("args", nargs="...", help="its own arguments")
    summary = SUMMARIES["completion"]
    completion = commands.add_parser("completion", help=summary, description=summary)
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help="the shell that will run the script")


def root() -> Path:
    """Return the package's folder, found without importing it."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (root() / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


def flag_of(name: str) -> str:
    """Return the option, as it is typed, of a function's argument."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def metavar_of(command: str, name: str, kind: Any = str) -> Any:
    """Return what stands for the value of a command's argument in its help."""
    by_kind = {int: "N", float: "RATE"}.get(kind, "NAME")
    return METAVARS.get(f"{command}.{name}", METAVARS.get(name, by_kind))


def _add_command(commands: Any, name: str, function: Function) -> None:
    summary = SUMMARIES.get(name, function.summary)
    one = commands.add_parser(name, help=summary, description=summary)
    own = _OWN.get(name)
    if own is not None:
        own(one)
    _add_options(one, name, function, LEFT_OUT.get(name, ()))
    if name == "convert":
        one.add_argument(
            "--push", metavar="OWNER/NAME", default=argparse.SUPPRESS, help="Push the folder to this repository."
        )
    if name in ("convert", "push"):
        one.add_argument("--yes", action="store_true", help="Push; without it, only show what would be pushed.")
    if name == "convert":
        left = ("folder", "repo_id", "dry_run", "branch", "message", "token", *CARD_WORDS)
        _add_options(one, name, PUSH.read(), left)
    if name in CHATTY:
        one.add_argument("--verbose", action="store_true", help="Also show the output of converters.")
    if name == "page":
        one.add_argument("--serve", action="store_true", help="Serve the page on this machine, until Ctrl-C.")
        _add_options(one, name, SERVE.read(), ("folder",))
    one.usage = _usage(one)


def _usage(one: Any) -> str:
    """Return what a command cannot do without; of the rest there is a list below."""
    words = [one.prog]
    for action in one._actions:
        if action.option_strings and action.required:
            words += [action.option_strings[0], str(action.metavar or action.dest.upper())]
    words.append("[OPTIONS]")
    for action in one._actions:
        if not action.option_strings:
            name = str(action.metavar)
            words.append({"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} [{name} ...]"}.get(action.nargs, name))
    return " ".join(words).replace("%", "%%")


def _own_of_predict(one: Any) -> None:
    one.add_argument(
        "model",
        metavar="MODEL",
        help="Folder that train left, or a name that timm has weights for, such as hf-hub:OWNER/NAME.",
    )
    one.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    one.add_argument("--trust", action="store_true", help="Load a folder without checking its contents.")
    one.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")


def _own_of_page(one: Any) -> None:
    one.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="Folders that train left, or names that timm creates with weights; none to serve an existing page.",
    )


def _own_of_weights(one: Any) -> None:
    one.add_argument(
        "pattern", nargs="?", metavar="PATTERN", default="*", help="Names, such as recnext_* or *.in1k_384."
    )
    one.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")


def _own_of_models(one: Any) -> None:
    one.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        default="*",
        help="Names, such as recnext_* or *.in1k_384; part of a name matches all names that contain it.",
    )
    one.add_argument("--all", action="store_true", help="Also list timm's own networks of up to 14 million parameters.")
    one.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")


_OWN: Mapping[str, Any] = {"predict": _own_of_predict, "page": _own_of_page, "weights": _own_of_weights}


def _add_options(one: Any, command: str, function: Function, leave_out: Sequence[str] = ()) -> None:
    for argument in function.arguments:
        if argument.name not in leave_out:
            _add_option(one, command, argument)


def _add_option(one: Any, command: str, argument: Argument) -> None:
    name, kind, default = argument.name, argument.kind, argument.default
    text = argument.text.replace("%", "%%")
    if get_origin(kind) in (Union, UnionType):  # Python 3.10 turns `int | None = None` into the former
        kind = next(one for one in get_args(kind) if one is not NoneType)
    several: dict[str, Any] = {}
    if get_origin(kind) is Sequence:
        kind, several = get_args(kind)[0], {"nargs": "+"}
    metavar = metavar_of(command, name, kind)
    if argument.required and not argument.keyword_only:
        one.add_argument(name, metavar=metavar, help=text, **several)
        return
    several_of = get_origin(kind) is Literal and several  # whose list usage and help would repeat
    if several_of:
        text += f" Any of {', '.join(get_args(kind))}."
    if not argument.required and not any(default is one for one in (None, False)) and default not in ("", ()):
        shown = flag_of(name) if default is True else _shown(default)
        text += f" (default: {shown})"
    flags = [*filter(None, [SHORT.get(name)]), flag_of(name)]
    # Defaults are the function's own, which `parse` adds.
    options: dict[str, Any] = {"dest": name, "help": text, "default": argparse.SUPPRESS, **several}
    if kind is bool:
        one.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
        return
    options["required"] = argument.required
    if get_origin(kind) is Literal:
        options |= {"choices": get_args(kind)}
        if several_of:
            options |= {"metavar": name.upper().replace("_", "-")}
    elif flag_of(name) == SIZED:
        options |= {"type": size, "metavar": metavar}
    elif get_origin(kind) is tuple:
        options |= {"type": number(get_args(kind)[0]), "nargs": len(get_args(kind)), "metavar": metavar}
    else:
        options |= {"type": kind if kind is str else number(kind), "metavar": metavar}
    one.add_argument(*flags, **options)


def _shown(value: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
