"""Write a file whole or not at all, and over another one only where that is wanted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_free", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes its name only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_free(name: str, path: Path, overwrite: bool) -> None:
    """Refuse a path that cannot be written to, or that is taken.

    Args:
        name: What the argument is called in messages.
        path: The file to write.
        overwrite: A file that exists may be replaced.

    Raises:
        FileNotFoundError: Where its folder is not there.
        ValueError: Where it is.
    """
    told = f"{name}={str(path)!r}"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{told} needs a folder that exists; {str(path.parent)!r} does not")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{told} exists; choose another" + ("" if path.is_dir() else ", or overwrite it"))
