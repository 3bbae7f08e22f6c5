"""Files with weights from the places that tags declare: fetched once into a cache, compared with what is known."""

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from huggingface_hub import constants
from tqdm import tqdm

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.files import digests, replacing
from timm_mobilevit_zoo.models.places import DRIVE, DRIVE_FOLDER, Place, leading_digits

from .checks import Refused
from .remote import HubError, fetch_file

__all__ = ["fetch_weights"]

ENDINGS = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".tar")
# Where a host's own redirects lead; any other host than the one that was asked is refused.
REDIRECTS: Mapping[str, str] = {"github.com": ".githubusercontent.com"}
TRIES, TIMEOUT = 3, 30  # seconds without a byte
_warned: set[str] = set()


def fetch_weights(
    place: Place,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the file of a place, from the cache where it is there; nothing is asked of the network then.

    A digest that is known, or of which the file's name carries the leading digits, is compared each time; a file in
    the cache that fails is fetched once more. Where none is known a warning says so, once a process and place.

    Args:
        place: From `places`.
        cache_dir: Where files are cached: the Hub's cache, or `checkpoints` in torch's, where not given.
        token: As for `huggingface_hub`.
        local_files_only: Make no request.

    Raises:
        HubError: If the place cannot be reached, or does not give the file.
        ModuleNotFoundError: For a file on Google Drive, without the extra `drive`.
        Refused: For a file that is too large, or has another digest.
    """
    if place.kind == "hub":
        path = fetch_file(place, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    else:
        path = _cached(place, Path(cache_dir or Path(torch.hub.get_dir(), "checkpoints")), local_files_only)
    known = place.sha256 or leading_digits(place.file) or place.kind == "hub"
    if not known and place.variant not in _warned:
        _warned.add(place.variant)
        warnings.warn(
            f"{place.variant}: the digest of {place} is not known, so nothing tells whether this is the file that its "
            f"authors published; `timm-mobilevit-zoo pin {place.variant}` shows the digest of what came",
            stacklevel=2,
        )
    return path


def _cached(place: Place, folder: Path, local_files_only: bool) -> Path:
    target = folder / (place.file or f"{place.variant}.pth")
    offline = local_files_only or constants.HF_HUB_OFFLINE
    for again in (False, True):
        if not target.is_file() or again:
            if offline:
                raise HubError(f"{place} is not in {folder}, and no request may be made")
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(target) as part:
                (_from_drive if place.kind == "drive" else _from_address)(place, part)
                if wrong := _wrong(place, part):
                    raise Refused(wrong)
            return target
        wrong = _wrong(place, target)
        if not wrong:
            return target
        if offline:
            raise Refused(f"{wrong}; it is damaged in {folder}, and offline it cannot be fetched again")
    raise AssertionError


def _wrong(place: Place, path: Path) -> str:
    """Return what is wrong with a file, by its size and digest; nothing where nothing is known to be."""
    size = path.stat().st_size
    if size > place.most:
        return f"{place} has {size:,} bytes; at most {place.most:,} are right"
    wanted = place.sha256 or leading_digits(place.file)
    if wanted and not (found := digests(path)["sha256"]).startswith(wanted):
        return f"{place}: its digest is {found}, not {wanted}{'' if place.sha256 else '..., as its name says'}"
    return ""


class _SameHost(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        away = new.netloc != old.netloc and not (
            old.hostname in REDIRECTS and str(new.hostname).endswith(REDIRECTS[str(old.hostname)])
        )
        if away or new.scheme != old.scheme:
            raise Refused(f"{old.netloc} sends on to {new.scheme}://{str(new.netloc)[:100]}, which is not asked")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _from_address(place: Place, part: Path) -> None:
    for left in range(TRIES - 1, -1, -1):
        try:
            return _stream(place, part)
        except HTTPError as error:
            if error.code < 500 or not left:
                raise HubError(f"({error.code}) {place}: the host does not give the file") from None
        except (HTTPException, OSError) as error:
            if isinstance(error, (HubError, Refused)) or (isinstance(error, OSError) and error.filename):
                raise
            if not left:
                reason = getattr(error, "reason", error)
                raise HubError(f"{place} arrived incomplete: {type(error).__name__}: {str(reason)[:200]}") from None
        time.sleep(2 ** (TRIES - 1 - left))
    return None


def _stream(place: Place, part: Path) -> None:
    request = Request(place.url, headers={"User-Agent": "timm-mobilevit-zoo"})
    with build_opener(_SameHost).open(request, timeout=TIMEOUT) as answer, part.open("wb") as file:
        told = answer.headers.get("Content-Length") or ""
        size = int(told) if re.fullmatch(r"[0-9]{1,18}", told) else None
        if size is not None and size > place.most:
            raise Refused(f"{place} has {size:,} bytes; at most {place.most:,} are right")
        done = 0
        with tqdm(total=size, unit="B", unit_scale=True, desc=place.file, disable=None) as bar:
            while chunk := answer.read(1 << 16):
                done += len(chunk)
                if done > place.most:
                    raise Refused(f"{place} has more than the {place.most:,} bytes that are right")
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and done != size:
        raise URLError(f"{done:,} of {size:,} bytes arrived")


def _from_drive(place: Place, part: Path) -> None:
    """Fetch from Google Drive, of a folder its one file of weights; its pages for large files are gdown's business."""
    try:
        gdown = require("gdown", "drive")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; or download {place.url} with a browser and give the file as pretrained_cfg_overlay="
            f"dict(file=...), or --checkpoint",
            name=error.name,
        ) from None
    address = place.url
    with _drive_in_words(place):
        if address.startswith(DRIVE_FOLDER):
            listed = gdown.download_folder(url=address, skip_download=True, quiet=True) or []
            found = [file for file in listed if str(file.path).endswith(ENDINGS)]
            if len(found) != 1:
                names = ", ".join(str(file.path)[:80] for file in listed[:10])
                raise Refused(f"{place} should hold one file of weights, and holds {len(found)} ({names})")
            address = DRIVE + found[0].id
        gdown.download(address, str(part), quiet=not os.isatty(2))
        if not part.is_file():
            raise HubError(f"{place}: Google Drive does not give the file")
    with suppress(OSError):
        for rest in part.parent.glob(f"{part.name}*.part"):  # of gdown's, where it was cut short
            rest.unlink()


@contextmanager
def _drive_in_words(place: Place) -> Iterator[None]:
    try:
        yield
    except (HubError, Refused):
        raise
    except Exception as error:  # gdown's own, and those of the libraries that it speaks with
        text = str(error).strip().partition("\n")[0][:200]
        raise HubError(f"{place}: Google Drive does not give the file: {type(error).__name__}: {text}") from None
