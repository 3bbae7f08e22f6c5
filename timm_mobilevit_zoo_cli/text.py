"""What strangers wrote, on its way to a terminal, and the names that classes may have."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["check_labels", "printable"]

_LONGEST = 300  # characters of a class's name
_JOINERS = "\u200c\u200d"  # Persian, Hindi and many emoji are not written without them


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def printable(text: str, instead: str = "?", keep: str = "") -> str:
    """Return text without the characters with which a stranger may try to move the reader's cursor.

    Args:
        text: What is to be shown.
        instead: What stands in their place.
        keep: Those that are ours, as line ends of a message.
    """
    return "".join(letter if _is_shown(letter) or letter in keep else instead for letter in text)


def check_labels(names: Sequence[Any]) -> None:
    """Refuse what cannot be the names of classes, wherever they are written, read and shown.

    Raises:
        ValueError: For a name that is no string of 1 to 300 characters, that holds characters which nobody sees, as
            those that turn the direction of writing, or nothing else; and for two that only their Unicode form tells
            apart.
    """
    need = f"label_names must be printable strings of 1 to {_LONGEST} characters"
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST:
            raise ValueError(f"{need}, which {str(name)[:80]!a} is not")
        if odd := next((letter for letter in name if not _is_shown(letter)), ""):
            raise ValueError(
                f"{need}; {name[:80]!a} holds {odd!a}, {unicodedata.name(odd, 'which is none to be shown')}"
            )
        if not any(letter.isprintable() and letter != " " for letter in name):
            raise ValueError(f"{need}; {name[:80]!a} is invisible")
    seen = Counter(unicodedata.normalize("NFC", name) for name in names)
    if twice := [name for name, count in seen.items() if count > 1]:
        raise ValueError(f"label_names are not all different: {twice[0][:80]!r} is there twice")
