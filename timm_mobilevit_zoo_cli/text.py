"""What strangers wrote, on its way to a terminal."""

__all__ = ["printable"]


def printable(text: str, instead: str = "?", keep: str = "") -> str:
    """Return text without the characters with which a stranger may try to move the reader's cursor.

    Args:
        text: What is to be shown.
        instead: What stands in their place.
        keep: Those that are ours, as line ends of a message.
    """
    return "".join(letter if letter.isprintable() or letter in keep else instead for letter in text)
