"""The Hub's client, held to names that are names, and asked again where a Hub is busy for a while.

huggingface_hub makes paths of what a Hub answers: of an ETag the name of a file in its cache, of a commit that of a
folder. In each of its versions two functions of `file_download` hand these on before anything is written. They are
wrapped here by ones that look at the names first, for the requests of this package alone.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from huggingface_hub import file_download

from .checks import Refused

__all__ = ["causes", "metadata", "names_of_commit", "patient"]

FoundT = TypeVar("FoundT")

COMMIT = "[0-9a-f]{40}"
NAME = "[0-9A-Za-z][0-9A-Za-z._-]{0,127}"
WAITS = 1, 2, 4, 8  # seconds, between five attempts
LONGEST = 60  # seconds that a Hub may ask for
BUSY = 408, 429, 500, 502, 503, 504  # what the client itself asks again for
# Errors of its transports, which differ by version: a connection that was made has broken.
BROKEN = {"ChunkedEncodingError", "ReadError", "ReadTimeout", "RemoteProtocolError", "WriteError"}

_expected: ContextVar[tuple[str, str] | None] = ContextVar("expected", default=None)


@contextmanager
def names_of_commit(what: str, revision: str) -> Iterator[None]:
    """Refuse, inside, what a Hub sends as another commit's, or under a name that is no plain one.

    Args:
        what: The file, for the message.
        revision: The commit that is asked for; a branch may stand at any.
    """
    token = _expected.set((what, revision))
    try:
        yield
    finally:
        _expected.reset(token)


def metadata(url: str, token: str | bool | None) -> Any:
    """Return what a Hub's headers say of a file."""
    return file_download.get_hf_file_metadata(url, token=token)


def patient(call: Callable[[], FoundT]) -> FoundT:
    """Call, and a little later again where a Hub was busy or a connection broke; five times in all."""
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:  # of the client's transport, which differs by version
            pause = None if wait is None else _pause(error, wait)
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it came from, outermost first."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(inner)
    return chain


def _pause(error: Exception, wait: int) -> int | None:
    """Return how many seconds to wait for another attempt, None where that would change nothing."""
    chain = causes(error)
    responses: list[Any] = [getattr(one, "response", None) for one in chain]
    response = next((one for one in responses if one is not None), None)
    if response is None:
        cut = type(error) is OSError and not error.filename  # a transfer, which older clients leave to their caller
        broken = any(isinstance(one, (ConnectionResetError, TimeoutError)) for one in chain)
        return wait if cut or broken or any(type(one).__name__ in BROKEN for one in chain) else None
    if response.status_code not in BUSY:
        return None
    asked = response.headers.get("Retry-After") or ""
    seconds = int(asked) if re.fullmatch("[0-9]{1,6}", asked) else wait
    return seconds if seconds <= LONGEST else None


def _check(etag: str | None, commit: str | None, xet: str | None = None) -> None:
    what, revision = _expected.get() or ("", "")
    pinned = re.fullmatch(COMMIT, revision)  # beside it lies what was downloaded as another commit, unpinned
    if commit is not None and not (commit == revision if pinned else re.fullmatch(COMMIT, commit)):
        raise Refused(f"{what}: the Hub sent it as that of commit {commit[:80]!r}")
    if etag is not None and not re.fullmatch(NAME, etag):
        raise Refused(f"{what}: the Hub calls it {etag[:80]!r}, which is not a file name")
    if xet is not None and not re.fullmatch("[0-9a-f]{64}", xet):
        raise Refused(f"{what}: the Hub keeps it as {xet[:80]!r}, which is not a digest")


def _looked_at(ask: Callable[..., Any], look: Callable[[Any], None]) -> Callable[..., Any]:
    @wraps(ask)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if _expected.get() is None:
            return ask(*args, **kwargs)
        try:
            found = ask(*args, **kwargs)
        except Exception as error:  # of a file that is not there the client keeps that, in a folder named by the commit
            headers = getattr(getattr(error, "response", None), "headers", {})
            _check(None, headers.get("X-Repo-Commit"))
            raise
        look(found)
        return found

    return checked


def _look_at_headers(found: Any) -> None:
    _check(found.etag, found.commit_hash, getattr(getattr(found, "xet_file_data", None), "file_hash", None))


def _look_at_listing(found: Any) -> None:  # newer clients may take the names from a listing that they have kept
    _check(found[1], found[2])


for _name, _look in (("get_hf_file_metadata", _look_at_headers), ("_get_metadata_or_catch_error", _look_at_listing)):
    setattr(file_download, _name, _looked_at(getattr(file_download, _name), _look))
