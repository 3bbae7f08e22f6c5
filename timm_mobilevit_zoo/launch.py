"""Run a program, such as one of timm's own scripts, with the zoo's models registered.

timm knows a model once the module that defines it is imported, and its scripts import timm alone. To import this module
is to import the zoo, so a program started from here can name the zoo's models.
"""

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["run"]

_USAGE = "use: timm-mobilevit-zoo run SCRIPT [ARGS...], or: timm-mobilevit-zoo run -m MODULE [ARGS...]"


def run(args: Sequence[str]) -> None:
    """Run `SCRIPT [ARGS...]` or `-m MODULE [ARGS...]` in this process, as its main program.

    Exit status, exceptions and signals are the program's own. One line on stderr names the timm in use.

    Args:
        args: the program and its arguments, as they follow `timm-mobilevit-zoo run`.

    Raises:
        SystemExit: with status 2 if there is no such program; otherwise as the program raises it.
    """
    _leave_timm_checkout()
    timm = importlib.import_module("timm")
    sys.stderr.write(f"timm-mobilevit-zoo: timm {timm.__version__} from {timm.__file__}\n")

    # A folder goes last: siblings of the program can be imported, but a timm checkout there shadows nothing.
    if args and args[0] == "-m":
        if len(args) < 2:
            _stop("-m needs the name of a module")
        sys.path.append(os.getcwd())
        if importlib.util.find_spec(args[1].partition(".")[0]) is None:
            _stop(f"no module named {args[1]!r}")
        sys.argv = ["-m", *args[2:]]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        if not args or not os.path.isfile(args[0]):
            _stop(f"no script file {args[0]!r}" if args else "no script given")
        # Absolute, as python makes __file__, so that spawned workers find the script after a change of folder.
        script = os.path.abspath(args[0])
        sys.path.append(os.path.dirname(script))
        sys.argv = [script, *args[1:]]
        runpy.run_path(script, run_name="__main__")


def _leave_timm_checkout() -> None:
    """Take the working folder off the front of `sys.path` if a `timm/` there hides the installed timm."""
    folder = os.getcwd()
    if os.path.abspath(sys.path[0]) != folder or not os.path.isfile(os.path.join(folder, "timm", "__init__.py")):
        return
    del sys.path[0]
    # `python -m` imports the zoo, and so the checkout's timm, before this line can run: start both afresh.
    zoo = __name__.partition(".")[0]
    for name in list(sys.modules):
        if name.partition(".")[0] in ("timm", zoo):
            del sys.modules[name]
    importlib.import_module(zoo)


def _stop(problem: str) -> NoReturn:
    sys.stderr.write(f"timm-mobilevit-zoo run: {problem}; {_USAGE}\n")
    raise SystemExit(2)
