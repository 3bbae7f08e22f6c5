"""From the words of a command to its exit status."""

import io
import os
import sys
from collections.abc import Sequence

from . import commands, launch
from .checks import check
from .grammar import PROG, stop
from .parser import PACKAGE, parse
from .text import printable
from .typed import typed

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
    trace, command = args.pop("traceback"), args.pop("command")
    try:
        check(command, args)
        sys.exit(commands.COMMANDS[command](**args))
    except BrokenPipeError:  # whoever read our output has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if trace:
            raise
        if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
            stop(typed(str(error), command))
        told = typed(str(error), command)
        if type(error).__module__.startswith(PACKAGE):  # it says all there is to know
            told = f"{PROG}: error: {told}\n"
        else:
            told = f"{PROG}: {type(error).__name__}: {told}\n(--traceback shows where)\n"
        sys.stderr.write(printable(told, keep="\n"))
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
        command = args.pop("command")
        if command in commands.QUICK:
            main(given[1:])
        try:
            check(command, args)
        except (ValueError, OSError) as error:
            if not args["traceback"]:
                stop(typed(str(error), command))


def _script(argv: Sequence[str]) -> Sequence[str]:
    """Return `run` and what belongs to the script behind it; nothing for another command."""
    if argv[:2] == ["--traceback", "run"]:  # a script's errors show where they come from anyway
        argv = argv[1:]
    return argv if argv[:1] == ["run"] and argv[1:2] not in (["-h"], ["--help"]) else ()
