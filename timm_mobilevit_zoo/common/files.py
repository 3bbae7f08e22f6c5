"""Write files whole or not at all, hold a folder while one works in it, open what is a file, and tell what is in it."""

import errno
import filecmp
import hashlib
import itertools
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "appearing",
    "beside",
    "claiming",
    "digests",
    "holding",
    "open_regular",
    "replacing",
    "replacing_all",
    "sweep",
]

_PART = re.compile(r"\..+\.(?P<pid>\d+)-\d+@(?P<host>.*)\.part", re.DOTALL)
_COUNT = itertools.count()
_PARTS: set[str] = set()  # what this process is writing, by name
_LOCKS: set[int] = set()  # descriptors of the folders that it holds


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and nothing else: a pipe would make the reader wait for ever, a device never end.

    Raises:
        FileNotFoundError: For a path where nothing is.
        ValueError: For a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened, which may wind a tape
        raise ValueError(f"{path} is not a regular file")
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"))
    with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced meanwhile
            raise ValueError(f"{path} is not a regular file")
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes its name only when it is whole and on the disk."""
    with replacing_all(path) as parts:
        yield parts[0]


@contextmanager
def replacing_all(path: Path, *more: Path) -> Iterator[list[Path]]:
    """Give a path to write to for each of the files that belong together; they take their names when all are whole.

    A process may be killed between two renames. So those of the old files that differ, but the first, vanish before
    anything is renamed: whoever reads finds files of one writing, some of which may be missing, and never an old one
    beside a new one.

    Args:
        path: The file that the others speak of: weights, for example.
        more: Those that speak of it: their config, a table, a manifest.
    """
    targets = (path, *more)
    for folder in {target.parent for target in targets}:
        sweep(folder)
    with ExitStack() as stack:
        parts = [stack.enter_context(_part_of(target)) for target in targets]
        yield parts
        for part in parts:
            with part.open("r+b") as file:
                os.fsync(file.fileno())
        pairs = list(zip(parts, targets, strict=True))
        changed = [(part, target) for part, target in pairs[1:] if not _same(part, target)]
        for _, target in changed:
            target.unlink(missing_ok=True)
        for part, target in (pairs[0], *changed):
            part.replace(target)


def _same(part: Path, target: Path) -> bool:
    return target.is_file() and filecmp.cmp(part, target, shallow=False)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes the target only if all goes well; what is put beside it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with _part_of(target) as scratch:
        part = scratch / "folder"
        part.mkdir(parents=True)
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)  # or fail, where something has appeared there meanwhile


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Give an empty folder on the target's disk for work on it, which is gone afterwards."""
    sweep(target.parent)
    with _part_of(target) as part:
        part.mkdir()
        yield part


@contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """Give a path beside the target that names this process; whatever is there at the end is removed."""
    part = target.with_name(f".{target.name}.{os.getpid()}-{next(_COUNT)}@{socket.gethostname()}.part")
    _PARTS.add(part.name)
    try:
        yield part
    finally:
        _remove(part)
        _PARTS.discard(part.name)


def sweep(folder: Path, *, everyone: bool = False) -> None:
    """Remove what processes that are no more have left half-written.

    Args:
        folder: Where to look.
        everyone: Whoever wrote it, on whatever machine: for a folder that this process holds.
    """
    with suppress(OSError):  # a folder that nobody may list, another user's file
        for name in os.listdir(folder):
            found = _PART.fullmatch(name)
            if found and name not in _PARTS and (everyone or not _may_live(found)):
                _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _may_live(part: re.Match[str]) -> bool:
    """Tell whether the process that a part is named after may still write it: nobody asks another machine."""
    pid = int(part["pid"])
    if part["host"] != socket.gethostname():
        return True
    if pid == os.getpid():
        return False  # an earlier process had the number: this one's parts are known
    if os.name == "nt":
        return True  # signal 0, which only asks elsewhere, ends a process there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder: no other process, and no other thread of this one, holds it meanwhile.

    The lock is the operating system's, on the file `.lock`: it ends with the process, however that ends, and on a disk
    that machines share it is seen by all of them. A file that nobody holds is no hindrance. Where the disk knows no
    locks, nothing is held.

    Raises:
        BlockingIOError: Where another holds it; says who.
        OSError: Where the folder cannot be written to.
    """
    with _locked(folder / ".lock", folder):
        yield


@contextmanager
def claiming(target: Path, argument: str) -> Iterator[None]:
    """Hold a path that is to be written, as `holding` does a folder: two that write it would mix.

    Args:
        target: A file, or a folder that is to appear.
        argument: What messages call it.

    Raises:
        ValueError: Where another writes it; says who.
    """
    try:
        with ExitStack() as held:
            held.enter_context(_locked(target.with_name(f".{target.name}.lock"), target))
            claimed = held.pop_all()
    except BlockingIOError as error:
        raise ValueError(f"{argument}={str(target)!r} is being written: {error.strerror}; choose another") from None
    with claimed:
        yield


@contextmanager
def _locked(path: Path, what: Path) -> Iterator[None]:
    lock = None
    while lock is None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            # Who held it a moment ago may have removed the file that was opened.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                lock = descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            told = os.read(descriptor, 300).decode(errors="replace") or "another process"
            raise BlockingIOError(errno.EWOULDBLOCK, f"{told} holds it", str(what)) from None
        finally:
            if lock is None:
                os.close(descriptor)
    _LOCKS.add(lock)
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        if lock in _LOCKS:  # not in a child that was forked
            _LOCKS.discard(lock)
            if os.name != "nt":
                path.unlink(missing_ok=True)
            os.close(lock)
            if os.name == "nt":  # which removes no file that is open
                with suppress(OSError):
                    path.unlink()


def _lock(descriptor: int) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: Where another holds it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # nobody reads a byte that is locked: not one of the words
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            os.lseek(descriptor, 0, os.SEEK_SET)
            raise BlockingIOError(error.errno, str(error)) from None


def _let_go() -> None:
    """Leave a forked child, a loader's worker, without the locks: it would hold them when its parent has gone."""
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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
