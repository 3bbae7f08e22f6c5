"""The Hugging Face Hub from the inside of `hub`: files fetched to a digest, and its errors in words.

What a repository holds is a stranger's: sizes are asked before anything is downloaded, and a file counts only when its
digest is the one that is pinned, or else the one under which the Hub keeps it. Tokens reach no message.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from timm_mobilevit_zoo.common.files import digests
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS
from timm_mobilevit_zoo.models.places import Place
from timm_mobilevit_zoo.models.pretrained import fetched_by
from timm_mobilevit_zoo_cli.text import printable

from .card import CARD, MAX_CARD_BYTES
from .checks import Refused, build_meta, check_config
from .client import causes, metadata, names_of_commit, patient
from .reading import MAX_CONFIG_BYTES, most_bytes, read_config

__all__ = [
    "HubError",
    "check_repo_id",
    "check_revision",
    "check_token",
    "endpoint",
    "fetch",
    "fetch_checked",
    "fetch_file",
    "in_words",
    "is_commit",
    "resolve",
]


class HubError(OSError):
    """The Hub, or the way to it, did not do what was asked."""


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no `owner/name`."""
    try:
        validate_repo_id(repo_id)
        owner, name = repo_id.split("/")
    except (HFValidationError, ValueError, TypeError, AttributeError):
        raise ValueError(
            f"repo_id={str(repo_id)[:200]!r} must be 'owner/name', of letters, digits, -, _ and ."
        ) from None
    if not owner or not name:
        raise ValueError(f"repo_id={repo_id!r} must be 'owner/name'")


def is_commit(revision: Any) -> bool:
    """Tell whether this is a full commit id."""
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def check_revision(revision: str | None) -> None:
    """Refuse what moves: a branch, a tag, a short commit id."""
    if not is_commit(revision):
        raise ValueError(
            f"revision={revision!r} must be a full commit id, 40 lower-case hex digits: a branch or a tag can change. "
            "`timm-mobilevit-zoo pull` shows the one that a branch stands at"
        )


def check_token(token: str | bool | None) -> None:
    """Refuse a token that would make the client fail with the token in its message."""
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("token holds white space or characters that no token has (perhaps the end of a line)")


def endpoint() -> str:
    """Return the Hub's address, without what a user may have put before its host or behind it."""
    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@fetched_by
def fetch(
    repo_id: str,
    revision: str,
    sha256: Mapping[str, str] | None = None,
    *,
    card: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder in the Hub's cache with a commit's config and weights, downloading what is not there.

    The config is checked, and the network that it means built without memory, before the weights are asked for; they
    may not be larger than that network needs. A file whose digest is wrong is downloaded once more.

    Args:
        repo_id: `owner/name`.
        revision: Full commit id.
        sha256: Digest of `config.json` and of `model.safetensors`, of one or of both; where not given, the name under
            which the Hub keeps the file is its digest.
        card: Fetch the model card, too, if there is one.
        cache_dir: Where the Hub's files are cached; the client's own place where not given.
        token: As for `huggingface_hub`.
        local_files_only: Make no request.

    Raises:
        ValueError: For arguments that name no commit.
        HubError: If the Hub cannot be reached, or does not give the file.
        Refused: For a config or a file that is not what it must be.
    """
    return fetch_checked(
        repo_id, revision, sha256, card=card, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )[0]


def fetch_checked(
    repo_id: str,
    revision: str,
    sha256: Mapping[str, str] | None = None,
    *,
    card: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[Path, dict[str, str]]:
    """Fetch as `fetch` does; return the sha256 of config and weights, too, as they were compared."""
    check_repo_id(repo_id)
    check_revision(revision)
    check_token(token)
    pinned = _check_pins(sha256)
    ask: dict[str, Any] = dict(repo_id=repo_id, revision=revision, cache_dir=cache_dir, token=token)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    found = {}
    path, found[CONFIG] = _file(CONFIG, MAX_CONFIG_BYTES, pinned.get(CONFIG), offline, ask)
    folder = path.parent
    most = most_bytes(build_meta(check_config(read_config(folder), our_models())))
    found[WEIGHTS] = _file(WEIGHTS, most, pinned.get(WEIGHTS), offline, ask)[1]
    if card:
        try:
            _file(CARD, MAX_CARD_BYTES, None, offline, ask)
        except HubError as error:
            if not (offline or error.args[0].startswith("(404)")):  # what else the cache has is enough
                raise
    return folder, found


def fetch_file(
    place: Place,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return one file of a repository that is another's, of its commit where that is known and else of `main`.

    What the cache has is taken without a request. The file is the one that the Hub keeps under its digest, and the one
    that is pinned if one is.

    Args:
        place: A repository and a file.
        cache_dir: Where the Hub's files are cached; the client's own place where not given.
        token: As for `huggingface_hub`.
        local_files_only: Make no request.

    Raises:
        HubError: If the Hub cannot be reached, or does not give the file.
        Refused: For a file that is too large, or has another digest.
    """
    check_repo_id(place.repo_id)
    check_token(token)
    revision = place.revision or "main"
    ask: dict[str, Any] = dict(repo_id=place.repo_id, revision=revision, cache_dir=cache_dir, token=token)
    known = huggingface_hub.try_to_load_from_cache(place.repo_id, place.file, cache_dir=cache_dir, revision=revision)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if isinstance(known, str) and not offline:
        with suppress(Refused):
            return _file(place.file, place.most, place.sha256, True, ask)[0]
    return _file(place.file, place.most, place.sha256, offline, ask)[0]


def resolve(repo_id: str, revision: str, token: str | bool | None = None) -> str:
    """Return the full commit id that a branch, a tag or a short id means; a full one without a request."""
    check_repo_id(repo_id)
    check_token(token)
    if is_commit(revision):
        return revision
    with in_words(f"{repo_id} at {revision}", token):
        found = patient(lambda: huggingface_hub.HfApi(token=token).model_info(repo_id, revision=revision).sha)
    if not is_commit(found):
        raise HubError(f"{repo_id} at {revision}: the Hub calls the commit {str(found)[:80]!r}")
    return str(found)


@contextmanager
def in_words(what: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn what a client of the Hub raises into a `HubError` that says what happened to `what`, without tokens.

    Progress bars are shown on a terminal only.
    """
    try:
        with _bars_on_terminals():
            yield
    except (HubError, Refused):
        raise
    except Exception as error:  # the client's own, its transport's, its threads': one for each version of it
        raise HubError(_without_tokens(_words(error, what), token)) from None


def _check_pins(sha256: Mapping[str, str] | None) -> Mapping[str, str]:
    right = f"must give 64 lower-case hex digits for {CONFIG} or {WEIGHTS}"
    if sha256 is not None and not isinstance(sha256, Mapping):
        raise ValueError(f"sha256={str(sha256)[:200]!r} {right}")
    for name, digest in (sha256 or {}).items():
        if name not in (CONFIG, WEIGHTS) or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            raise ValueError(f"sha256={{{name!r}: {str(digest)[:80]!r}}} {right}")
    return sha256 or {}


def _file(name: str, most: int, pinned: str | None, offline: bool, ask: Mapping[str, Any]) -> tuple[Path, str]:
    """Return a file of a commit, not larger than `most` bytes and with the right digest, and its sha256."""
    what = f"{name} of {ask['repo_id']} at {ask['revision'][:10]}"
    with in_words(what, ask["token"]), names_of_commit(what, ask["revision"]):
        known = huggingface_hub.try_to_load_from_cache(
            ask["repo_id"], name, cache_dir=ask["cache_dir"], revision=ask["revision"]
        )
        if not isinstance(known, str) and not offline:
            url = huggingface_hub.hf_hub_url(ask["repo_id"], name, revision=ask["revision"])
            size = patient(lambda: metadata(url, ask["token"])).size
            if size is not None and size > most:
                raise Refused(f"{what} has {size:,} bytes; at most {most:,} are right")
        for again in (False, True):
            get = partial(huggingface_hub.hf_hub_download, filename=name, local_files_only=offline, **ask)
            path = Path(patient(partial(get, force_download=again)))
            if is_commit(ask["revision"]) and path.parent.name != ask["revision"]:
                raise Refused(f"{what}: the cache keeps it as that of commit {path.parent.name[:80]!r}")
            if path.stat().st_size > most:  # not all say how large a file is, or the truth
                raise Refused(f"{what} has {path.stat().st_size:,} bytes; at most {most:,} are right")
            damaged, found, wanted, sha256 = _compare(path, pinned)
            if found == wanted:
                return path, sha256
            if offline or not damaged:
                break
    why = "; it is damaged in the cache, and offline it cannot be fetched again" if damaged and offline else ""
    raise Refused(f"{what}: its digest is {found}, not {wanted}{why}")


def _compare(path: Path, pinned: str | None) -> tuple[bool, str, str, str]:
    """Return whether a cached file may be damaged, its digest, the one that it should have, and its sha256."""
    found = digests(path)
    kept = Path(os.readlink(path)).name if path.is_symlink() else ""  # the Hub's own name of the content
    whole = kept in found.values()
    if pinned is not None:
        return not whole, found["sha256"], pinned, found["sha256"]
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", kept):
        return True, found["sha256" if len(kept) == 64 else "blob"], kept, found["sha256"]
    if kept:
        raise Refused(f"{path.name}: the Hub keeps it as {kept[:80]!r}, which is not a digest; give its sha256")
    return False, "", "", found["sha256"]  # no links on this file system, so nothing to compare with


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    shown = sys.stderr is not None and sys.stderr.isatty()
    asked = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    hide = not shown and not asked and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _words(error: BaseException, what: str) -> str:
    chain = causes(error)
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, (HFValidationError, OfflineModeIsEnabled)):
            return f"{what}: {one}"
        if status is not None:
            return f"({status}) {what}: {_status_words(one, status)}"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{what}: no token was given; set HF_TOKEN, or use `hf auth login`"
    if any(isinstance(one, LocalEntryNotFoundError) for one in chain) and constants.HF_HUB_OFFLINE:
        return f"{what} is not in the cache, and HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and len(chain) == 1:
        return f"{what} is not in the cache, and no request may be made"
    if any(isinstance(one, UnicodeError) for one in chain):
        return f"{what}: the token (HF_TOKEN, or its file) holds characters that no token has"
    if local := next((one for one in chain if isinstance(one, OSError) and one.filename), None):
        return f"{what}: {local}"
    deepest = chain[-1] if isinstance(error, LocalEntryNotFoundError) else error
    return f"{what}: {endpoint()} did not answer as it should: {type(deepest).__name__}: {str(deepest)[:300]}"


def _status_words(error: BaseException, status: int) -> str:
    if isinstance(error, GatedRepoError):
        return "the repository is gated; ask for access on its page, and give the token of that account"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, RepositoryNotFoundError) and status == 401:
        return "no such repository, or it is private and no token was given (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or it is private and the token's account may not see it"
    words = {
        401: "the token is missing, wrong or expired (HF_TOKEN, or `hf auth login`)",
        403: "the token may not do this: it is read-only, or its account does not own the repository",
        409: "it exists already, or is being changed",
        412: "somebody else has committed in between; look at what they did and push again",
        429: "too many requests; wait a while",
    }
    if status >= 500:
        return "the Hub failed; try again"
    return words.get(status) or str(error)[:300]


def _without_tokens(text: str, token: str | bool | None) -> str:
    known = [token if isinstance(token, str) else None]
    with suppress(OSError, UnicodeError):  # of a token's file
        known.append(huggingface_hub.get_token())
    for secret in filter(None, known):
        text = text.replace(secret, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_***", text)
    text = re.sub(r"(Bearer )[^'\"\s]+", r"\1***", text)
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    text = re.sub(r"\?[^\s'\"]*=[^\s'\")]*", "?***", text)  # of an address: signatures, or what a user put there
    return printable(text, " ")
