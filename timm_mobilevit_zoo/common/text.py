"""What strangers wrote, on its way to a terminal."""

__all__ = ["printable"]


def printable(text: str, instead: str = "?") -> str:
    """Return text without the characters with which a stranger may try to move the reader's cursor."""
    return "".join(letter if letter.isprintable() else instead for letter in text)
