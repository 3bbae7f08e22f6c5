"""Write a file whole or not at all, open what is a file, and tell what is in one."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["appearing", "digests", "open_regular", "replacing"]


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and nothing else: a pipe would make the reader wait for ever, a device never end.

    Raises:
        FileNotFoundError: For a path where nothing is.
        ValueError: For a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened, which may wind a tape
        raise ValueError(f"{path} is no regular file")
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"))
    with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced meanwhile
            raise ValueError(f"{path} is no regular file")
        yield file


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


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes the target only if all goes well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / "folder"
        part.mkdir()
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)  # or fail, where something has appeared there meanwhile


def digests(data: bytes | Path) -> dict[str, str]:
    """Return the sha256 of a file and its id as a blob of git, the two names under which the Hub keeps files."""
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    for chunk in _chunks(data) if isinstance(data, Path) else [data]:
        sha256.update(chunk)
        blob.update(chunk)
    return {"sha256": sha256.hexdigest(), "blob": blob.hexdigest()}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
