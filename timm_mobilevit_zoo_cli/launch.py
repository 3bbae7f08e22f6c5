"""Run a program, such as one of timm's own scripts, with the zoo's models registered.

timm knows a model once the module that defines it is imported, and its scripts import timm alone. A program started
from here can name the zoo's models: the zoo is imported first, once it is known that there is such a program.
"""

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .parser import PACKAGE

__all__ = ["program", "run"]

_USAGE = "use: timm-mobilevit-zoo run SCRIPT [ARGS...], or: timm-mobilevit-zoo run -m MODULE [ARGS...]"


def run(args: Sequence[str]) -> None:
    """Run `SCRIPT [ARGS...]` or `-m MODULE [ARGS...]` in this process, as its main program.

    Exit status, exceptions and signals are the program's own. One line on stderr names the timm in use.

    Args:
        args: the program and its arguments, as they follow `timm-mobilevit-zoo run`.

    Raises:
        SystemExit: with status 2 if there is no such program; otherwise as the program raises it.
    """
    folder, argv = program(args)
    _import_zoo()
    timm = importlib.import_module("timm")
    sys.stderr.write(f"timm-mobilevit-zoo: timm {timm.__version__} from {timm.__file__}\n")

    # A folder goes last: siblings of the program can be imported, but a timm checkout there shadows nothing.
    sys.path.append(folder)
    sys.argv = argv
    if args[0] == "-m":
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


def program(args: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder whose modules a program may import, and its `sys.argv`; no timm is imported for it.

    Raises:
        SystemExit: with status 2 if there is no such program.
    """
    if args and args[0] == "-m":
        if len(args) < 2:
            _stop("-m needs the name of a module")
        if _spec_of(args[1].partition(".")[0], os.getcwd()) is None:
            _stop(f"no module named {args[1]!r}")
        return os.getcwd(), ["-m", *args[2:]]
    if not args or not os.path.isfile(args[0]):
        _stop(f"no script file {args[0]!r}" if args else "no script given")
    # Absolute, as python makes __file__, so that spawned workers find the script after a change of folder.
    script = os.path.abspath(args[0])
    return os.path.dirname(script), [script, *args[1:]]


def _spec_of(name: str, folder: str) -> Any:
    sys.path.append(folder)
    try:
        return importlib.util.find_spec(name)
    finally:
        sys.path.pop()


def _import_zoo() -> None:
    """Import the zoo, with the installed timm also where a `timm/` in the working folder would hide it."""
    folder = os.getcwd()
    if os.path.abspath(sys.path[0]) == folder and os.path.isfile(os.path.join(folder, "timm", "__init__.py")):
        del sys.path[0]
        # `python -m` imports the zoo, and so the checkout's timm, before this line can run: start both afresh.
        for name in list(sys.modules):
            if name.partition(".")[0] in ("timm", PACKAGE):
                del sys.modules[name]
    importlib.import_module(PACKAGE)


def _stop(problem: str) -> NoReturn:
    sys.stderr.write(f"timm-mobilevit-zoo run: {problem}; {_USAGE}\n")
    raise SystemExit(2)
