"""The options: each command calls one function, whose signature and docstring are its options and its help."""

import argparse
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from .licences import CARD_WORDS
from .signatures import Function, read

__all__ = ["PACKAGE", "parse", "parser"]

PACKAGE = "timm_mobilevit_zoo"
SHORT = {"model": "-m", "output": "-o", "epochs": "-e", "batch_size": "-b"}


class Source(NamedTuple):
    """A function of the package."""

    file: str
    name: str

    def read(self) -> Function:
        return read(_root() / self.file, self.name)


PUSH, SERVE = Source("hub/transfer.py", "push"), Source("page/server.py", "serve")
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
    "page": ("models",),
}
SHELLS = ("bash", "zsh")
IMAGES = "image files, folders of them, patterns as 'photos/*.jpg', or - for a list on standard input, a path a line"
CHATTY = ("bench", "export", "page")  # what calls converters


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
    return {name: value for name, value in found.items() if name not in left_out} | own


def parser(only: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        only: Commands whose options are needed; those of all where not given.
    """
    top = argparse.ArgumentParser(prog="timm-mobilevit-zoo", description="Light-weight vision transformers for timm.")
    top.add_argument("--version", action="version", version=_version())
    top.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, source in SOURCES.items():
        if only is None or name in only:
            _add_command(commands, name, source.read())
        else:
            commands.add_parser(name)
    summary = "Run a script, one of timm's for example, with the zoo's models registered."
    run = commands.add_parser("run", help=summary, description=summary)
    run.add_argument("script", metavar="SCRIPT | -m MODULE", help="the script or module")
    run.add_argument("args", nargs="...", help="its own arguments")
    summary = "Print what makes a shell complete these commands and options."
    completion = commands.add_parser("completion", help=summary, description=summary)
    completion.add_argument("shell", choices=SHELLS, help="the shell that is to source it")
    return top


def _root() -> Path:
    """Return the package's folder, found without importing it."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (_root() / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


def _add_command(commands: Any, name: str, function: Function) -> None:
    one = commands.add_parser(
        name,
        help=function.summary,
        description=function.summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    own = _OWN.get(name)
    if own is not None:
        own(one)
    _add_options(one, function, LEFT_OUT.get(name, ()))
    if name == "convert":
        one.add_argument(
            "--push", metavar="OWNER/NAME", default=argparse.SUPPRESS, help="push the folder there, as push does"
        )
    if name in ("convert", "push"):
        one.add_argument("--yes", action="store_true", help="push; without it, only show what would be pushed")
    if name == "convert":
        _add_options(one, PUSH.read(), ("folder", "repo_id", "dry_run", "branch", "message", "token", *CARD_WORDS))
    if name in CHATTY:
        one.add_argument("--verbose", action="store_true", help="show what converters print, too")
    if name == "page":
        one.add_argument("--serve", action="store_true", help="serve the page on this machine, until Ctrl-C")
        _add_options(one, SERVE.read(), ("folder",))


def _own_of_predict(one: Any) -> None:
    one.add_argument(
        "model", metavar="FOLDER", help="folder of weights, or a name that timm has weights for, as hf-hub:OWNER/NAME"
    )
    one.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    one.add_argument(
        "--trust", action="store_true", help="load a folder as it stands, without the check of what it holds"
    )
    one.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def _own_of_page(one: Any) -> None:
    one.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="folders that train left, or names that timm creates with weights; none to serve a page that is there",
    )


def _own_of_weights(one: Any) -> None:
    one.add_argument("pattern", nargs="?", metavar="PATTERN", default="*", help="names, as recnext_* or *.in1k_384")
    one.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


_OWN: Mapping[str, Any] = {"predict": _own_of_predict, "page": _own_of_page, "weights": _own_of_weights}


def _add_options(one: Any, function: Function, leave_out: Sequence[str] = ()) -> None:
    for argument in function.arguments:
        if argument.name not in leave_out:
            _add_option(one, argument)


def _add_option(one: Any, argument: Any) -> None:
    name, kind, text = argument.name, argument.kind, argument.text.replace("%", "%%")
    if get_origin(kind) in (Union, UnionType):  # Python 3.10 turns `int | None = None` into the former
        kind = next(one for one in get_args(kind) if one is not NoneType)
    several: dict[str, Any] = {}
    if get_origin(kind) is Sequence:
        kind, several = get_args(kind)[0], {"nargs": "+"}
        if not argument.required and argument.default:
            text += f" (default: {' '.join(map(str, argument.default))})"
    if argument.required and not argument.keyword_only:
        one.add_argument(name, metavar=name.upper().removesuffix("S" if several else ""), help=text, **several)
        return
    flags = [*filter(None, [SHORT.get(name)]), "--" + name.replace("_", "-")]
    options: dict[str, Any] = {"dest": name, "help": text, **several}
    if kind is bool:
        options |= {"action": argparse.BooleanOptionalAction, "default": argument.default}
    else:
        options |= {"required": argument.required, "default": argument.default}
        if get_origin(kind) is Literal:
            options |= {"choices": get_args(kind)}
        elif get_origin(kind) is tuple:
            options |= {"type": get_args(kind)[0], "nargs": len(get_args(kind)), "metavar": "X"}
        else:
            options |= {"type": kind, "metavar": "X" if kind is float else "N" if kind is int else "NAME"}
        if argument.required or several or argument.default in (None, ""):
            options["default"] = argparse.SUPPRESS  # none worth printing; `parse` adds the function's own
    one.add_argument(*flags, **options)
