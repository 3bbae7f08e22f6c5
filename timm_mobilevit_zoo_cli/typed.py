"""Messages and help as the command says them: options as they are typed, where the package names Python's arguments.

The package's messages name an argument as `name=value`, or as `name` between backticks where no value is told. This is
the one place where the command's words are put for Python's; a caller from Python reads the messages as they are.
"""

import re
import shlex
from ast import literal_eval
from collections.abc import Mapping
from typing import Any

from .parser import LEFT_OUT, MODELS, PUSH, SERVE, SOURCES, flag_of, metavar_of

__all__ = ["typed"]

_QUOTED = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\""""
_VALUE = rf"{_QUOTED}|\([^()]*\)|\[[^\[\]]*\]|\.\.\.|-?\w(?:[\w.+-]*\w)?"
_SAID = re.compile(
    rf"(?<![\w./\\='\"`-])(?:card\[')?(?P<name>[a-z]\w*)(?:'\])?=(?P<value>{_VALUE})(?![\w/\\=]|[.+-]\w)"
    rf"|`(?P<ticked>[a-z]\w*)(?:=(?P<given>{_VALUE}))?`"
    rf"|(?<!\w)(?:{_QUOTED})"  # what somebody called something is left as it is
)
# What functions that a command calls on its way call its arguments.
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "page": {"model": "models", "folder": "output"},
    "export": {"network": "model"},
    "pin": {"name": "names"},
    "convert": {"folder": "output", "repo_id": "push"},
}
_CALLS = {"timm_mobilevit_zoo.list_models()": "timm-mobilevit-zoo models --all"}


def typed(text: str, command: str) -> str:
    """Return a message with what its command's user types in the place of Python's arguments.

    Args:
        text: Of the package.
        command: Its name.
    """
    options = _options(command)
    aliases = _ALIASES.get(command, {})

    def replace(found: re.Match[str]) -> str:
        name = found["name"] or found["ticked"]
        name = name and aliases.get(name, name)
        if not name or name not in options:
            return found[0]
        return _word(command, name, found["value"] or found["given"], options[name])

    for clause in re.findall(rf"; [^;\n]*`(?:[a-z]\w*)=(?:{_VALUE})`[^;\n]*", text):
        if any(name not in options for name in re.findall(r"`([a-z]\w*)=", clause)):
            text = text.replace(clause, "")  # advice that this command has no option for
    text = _SAID.sub(replace, text)
    for call, words in _CALLS.items():
        text = text.replace(call, f"`{words}`")
    return text


def _options(command: str) -> dict[str, Any]:
    """Return the arguments that a command's user types, by name: the kind of an option, nothing of a word alone."""
    sources = [SOURCES[command]] if command in SOURCES else []
    sources += {"page": [SERVE], "convert": [PUSH], "models": [MODELS]}.get(command, [])
    arguments = {one.name: one for source in reversed(sources) for one in source.read().arguments}
    hidden = {"push": ("token", "dry_run"), "pull": ("cache_dir", "token")}.get(command, ())
    words: dict[str, Any] = {
        name: "" if one.required and not one.keyword_only else one.kind for name, one in arguments.items()
    }
    words |= dict.fromkeys(LEFT_OUT.get(command, ()), "")
    others: Mapping[str, dict[str, Any]] = {"predict": {"trust": bool}, "convert": {"push": str}}
    words |= others.get(command, {})
    return {name: kind for name, kind in words.items() if name not in hidden}


def _word(command: str, name: str, value: str | None, kind: Any) -> str:
    """Return an argument and its value as they are typed."""
    if kind == "":
        return metavar_of(command, name) if value in (None, "...") else str(value)
    flag = flag_of(name)
    if kind is bool:
        return flag if value != "False" else f"--no-{flag[2:]}"
    return flag if value in (None, "...", "None") else f"{flag} {_plain(str(value))}"


def _plain(value: str) -> str:
    """Return a value as a shell takes it, unless it holds what would have to be escaped."""
    if value[0] in "([":
        return value[1:-1].replace(",", "").strip()
    if value[0] not in "'\"" or "\\" in value:
        return value
    return shlex.quote(literal_eval(value))
