"""argparse with errors of one line, which name what was typed, what would be right, and what it may have been."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from .near import did_you_mean
from .text import printable

__all__ = ["PROG", "SIZED", "Parser", "number", "size", "stop"]

PROG = "timm-mobilevit-zoo"
SIZED = "--img-size"
QUOTES = ("'", '"')


def stop(problem: str) -> NoReturn:
    """End the command for wrong words: status 2 and one line on stderr."""
    sys.stderr.write(printable(f"{PROG}: error: {problem}\n", keep="\n"))
    sys.exit(2)


def number(kind: type) -> Callable[[str], Any]:
    """Return what reads an option's value as a whole number (`int`) or as any (`float`)."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} must be {what}") from None

    return read


def size(text: str) -> int | tuple[int, int]:
    """Read an image's size, `N` of a square or `HxW`, as `Parser` joins two words behind an option."""
    sides = re.fullmatch(r"(-?\d+)(?:x(-?\d+))?", text)
    if not sides:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be one side N of a square, or height and width H W, in pixels, as 224 or 192 256"
        )
    return int(sides[1]) if sides[2] is None else (int(sides[1]), int(sides[2]))


class _Formatter(argparse.HelpFormatter):
    """Help whose lines are not broken at hyphens, which names and options are full of."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """One command's options, or the commands themselves."""

    def __init__(self, **options: Any) -> None:
        own: dict[str, Any] = {"exit_on_error": False, "formatter_class": _Formatter}
        super().__init__(**own | options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but look for mistyped options first: without one, others seem to be missing."""
        words = self._sized([str(word) for word in args or ()])
        for word in self._options_in(words):
            name = word.partition("=")[0]
            if not self._knows(name):
                stop(f"{self._command}has no option {name}{self._instead(name)}")
        try:
            return super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "").rpartition("/")[2]
            if not name:
                self.error(error.message)
            # Of a value that is wrong the message begins with it, of one that is missing argparse says what.
            stop(f"{name}{' ' if error.message[:1] in QUOTES else ': '}{error.message}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, which would raise what is too much, or tell it with its usage."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            stop(f"unexpected: {' '.join(rest)}; see {PROG} {getattr(found, 'command', '')} --help")
        return found

    def error(self, message: str) -> NoReturn:
        """End the command: what argparse has to say, without its usage."""
        given = re.fullmatch("the following arguments are required: (.*)", message)
        if given and given[1] == "COMMAND":
            stop(f"a command is needed; {PROG} --help lists them")
        if given:
            *first, last = given[1].split(", ")
            message = f"{self._command}needs {', '.join(first)}{' and ' if first else ''}{last}"
            stop(f"{message}; see {self.prog} --help")
        stop(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            stop(f"there is no command {value!r}{did_you_mean(value, choices) or f'; {PROG} --help lists them'}")
        *first, last = map(str, choices)
        raise argparse.ArgumentError(
            action, f"{value!r} must be {', '.join(first)} or {last}{did_you_mean(str(value), map(str, choices))}"
        )

    @property
    def _command(self) -> str:
        """The command's name and a space; for the commands themselves that of the program."""
        return f"{self.prog.removeprefix(PROG).strip() or PROG} "

    def _options_in(self, words: Sequence[str]) -> Iterator[str]:
        """Yield those words that are options: for the commands themselves, those in front of a command."""
        commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        for word in words:
            if word == "--" or (commands and not word.startswith("-")):
                return
            if word[:1] == "-" and len(word) > 1 and " " not in word and not self._negative_number_matcher.match(word):
                yield word

    def _knows(self, name: str) -> bool:
        if name.startswith("--"):
            return any(one.startswith(name) for one in self._option_string_actions)
        return name[:2] in self._option_string_actions

    def _instead(self, name: str) -> str:
        bare = name.lstrip("-").replace("_", "-")
        known = [one for one in self._option_string_actions if one.startswith("--")]
        meant = did_you_mean(bare, [one[2:] for one in known])
        for one in known:
            meant = re.sub(rf"(?<![\w-]){re.escape(one[2:])}(?![\w-])", one, meant)
        return meant or f"; see {self.prog} --help"

    def _sized(self, words: list[str]) -> list[str]:
        """Return the words with an image's height and width joined: argparse would take what follows them, too."""
        action: Any = self._option_string_actions.get(SIZED)
        if action is None or action.nargs is not None:
            return words
        joined: list[str] = []
        for word in words:
            is_side = re.fullmatch(r"-?\d+", word) is not None
            if is_side and len(joined) > 1 and joined[-2] in action.option_strings and "x" not in joined[-1]:
                joined[-1] += f"x{word}"
            else:
                joined.append(word)
        return joined
