"""From the words of a command to its exit status."""

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import commands, launch
from .checks import check
from .parser import PACKAGE, parse
from .text import printable

__all__ = ["main", "parse_early"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 failed or some images unreadable, 2 wrong input, 130 interrupted.

    Args:
        argv: Arguments after the program's name; the process's own where not given.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if script := _script(argv):
        return launch.run(script[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # no work is lost for a letter that a terminal does not know
    args = parse(argv)
    trace = args.pop("traceback")
    try:
        command = args.pop("command")
        check(command, args)
        sys.exit(commands.COMMANDS[command](**args))
    except BrokenPipeError:  # whoever read our output has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if trace:
            raise
        if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
            _stop(error)
        _complain(f"timm-mobilevit-zoo: {type(error).__name__}: {error}\n(--traceback shows where)\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("timm-mobilevit-zoo: interrupted\n")
        sys.exit(130)


def parse_early() -> None:
    """Where python was started as `-m timm_mobilevit_zoo`, end what needs no torch: help, wrong words, missing files.

    Python imports a package before it runs its `__main__`, and this one's import is what takes long: so its `__init__`
    calls this first. For every other import it does nothing.
    """
    words, given = sys.orig_argv, getattr(sys, "argv", [])  # which an interpreter inside another program may lack
    is_command = given[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1 :][:1] == [PACKAGE]
    if not is_command:
        return
    if script := _script(given[1:]):
        launch.program(script[1:])
    else:
        args = parse(given[1:])
        try:
            check(args.pop("command"), args)
        except (ValueError, OSError) as error:
            if not args["traceback"]:
                _stop(error)


def _script(argv: Sequence[str]) -> Sequence[str]:
    """Return `run` and what belongs to the script behind it; nothing for another command."""
    if argv[:2] == ["--traceback", "run"]:  # a script's errors show where they come from anyway
        argv = argv[1:]
    return argv if argv[:1] == ["run"] and argv[1:2] not in (["-h"], ["--help"]) else ()


def _stop(error: Exception) -> NoReturn:
    _complain(f"timm-mobilevit-zoo: error: {error}\n")
    sys.exit(2)


def _complain(text: str) -> None:
    """Write what a stranger may have written a part of: names of files, of classes, of tensors."""
    sys.stderr.write(printable(text, keep="\n"))
