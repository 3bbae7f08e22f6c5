"""Where others keep files with weights of this package's networks: one place a tag, said in the tag's own config.

timm's fields say it: `hf_hub_id` and perhaps `hf_hub_filename`, or `url`, of a file or of Google Drive. What cannot be
known without having the file (commit, digest, size) stands in the hub config of the tag, in its section `file`, once
somebody has had it: `timm-mobilevit-zoo pin` writes it there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import timm

from .names import PREFIX, our_models, own_name
from .pins import WEIGHTS, package_configs

__all__ = [
    "DRIVE",
    "DRIVE_FOLDER",
    "NoWeights",
    "Place",
    "declaration",
    "declared",
    "known_revision",
    "leading_digits",
    "no_weights",
    "place_of",
    "places",
]

DRIVE = "https://drive.google.com/uc?id="
DRIVE_FOLDER = "https://drive.google.com/drive/folders/"
_SOURCES = ("hf_hub_id", "hf_hub_filename", "url", "file", "state_dict", "source")


@dataclass(frozen=True)
class Place:
    """Where the weights of one tag are, and what is known of the file.

    Args:
        variant: `name.tag`.
        repo_id: Repository on the Hub, `owner/name`; empty elsewhere.
        url: Address of the file, or of a file or folder of Google Drive; empty on the Hub.
        file: Name of the file there; empty on Google Drive, which tells it only with the file.
        revision: Full commit id, of a repository whose commit is known.
        sha256: Digest of the file, where it is known.
        size: Bytes, where they are known.
        params: Parameters of the network that the file is for.
    """

    variant: str
    repo_id: str
    url: str
    file: str
    revision: str | None
    sha256: str | None
    size: int | None
    params: int

    @property
    def kind(self) -> str:
        """What it is: `hub`, `address` or `drive`."""
        return "hub" if self.repo_id else "drive" if self.url.startswith((DRIVE, DRIVE_FOLDER)) else "address"

    @property
    def most(self) -> int:
        """Bytes that the file may have: trainers keep averages and two moments beside the weights."""
        return 64 * 2**20 + 6 * 4 * self.params

    def __str__(self) -> str:
        return f"{self.file} of {self.repo_id}" if self.repo_id else self.url


def leading_digits(file: str) -> str:
    """Return the leading digits of the digest that a file's name carries, as `-385941af.pth`, or nothing."""
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z.]+$", file)
    return found[1] if found else ""


def known_revision(architecture: str, tag: str, repo_id: str | None) -> str | None:
    """Return the commit of another's repository that the hub config of a name and tag tells, None without."""
    config = package_configs().get((architecture, tag))
    known = (config.content.get("file") if config else None) or {}
    return known.get("revision") if repo_id and known.get("source") == repo_id else None


def place_of(cfg: Any) -> Place | None:
    """Return where the weights of a config are, None where it names no place.

    Args:
        cfg: A `timm.models.PretrainedCfg` of this package.
    """
    source = cfg.hf_hub_id or cfg.url
    if not source:
        return None
    key = (cfg.architecture.removeprefix(PREFIX), cfg.tag or "")
    content: Mapping[str, Any] = getattr(package_configs().get(key), "content", {})
    known = content.get("file") or {}
    repo_id, _, commit = (cfg.hf_hub_id or "").partition("@")
    url = "" if repo_id else cfg.url
    drive = url.startswith((DRIVE, DRIVE_FOLDER))
    name = (
        cfg.hf_hub_filename or WEIGHTS if repo_id else "" if drive else unquote(urlsplit(url).path).rpartition("/")[2]
    )
    same = known.get("source") == (repo_id or url) and known.get("name") == (name or None)
    kept = known if same else {}
    return Place(
        ".".join(key),
        repo_id,
        url,
        name,
        commit or kept.get("revision"),
        kept.get("sha256"),
        kept.get("bytes"),
        content.get("params") or 100_000_000,
    )


def declaration(cfg: Any) -> Any:
    """Return what the name and tag of a config declare, as timm has it registered; None for a tag that there is not."""
    name = own_name(cfg.architecture)
    try:
        return timm.get_pretrained_cfg(f"{name}.{cfg.tag}" if cfg.tag else name)
    except RuntimeError:  # of folders that were written when there was
        return None


def declared(cfg: Any) -> bool:
    """Tell whether a config's weights are those that its own name and tag declare, and no file or place of a caller."""
    own = declaration(cfg)
    return own is not None and all(getattr(cfg, field) == getattr(own, field) for field in _SOURCES)


def places() -> dict[str, Place]:
    """Return the places of all tags that have one, by `name.tag`."""
    ours = set(our_models())
    found = {}
    for variant in timm.list_models(pretrained=True, include_tags=True):
        if variant.partition(".")[0] in ours and (place := place_of(timm.get_pretrained_cfg(variant))):
            found[variant] = place
    return found


class NoWeights(RuntimeError):  # noqa: N818, it says what there is
    """Nobody publishes weights of a name that was to get some; a `RuntimeError`, as timm raises it."""


def no_weights(name: str) -> str:
    """Return what to say of a name whose weights nobody publishes: who has some, and how it gets its own."""
    having = list(places())
    same = [variant for variant in having if variant.partition(".")[0] == name]
    kin = [variant for variant in having if _family(variant) == _family(name)]
    others = list({_family(variant): variant for variant in reversed(having)}.values())[::-1]  # one of each family
    having_some = ", ".join((same or kin or others)[:6])
    whose = "Under this name" if same else "Of its family" if kin else "Of other families"
    return (
        f"nobody publishes such weights of {name}. {whose} there are {having_some or 'none'}. "
        f"`timm-mobilevit-zoo train DATA --model {name}` trains it; `pretrained=False` gives it random weights"
    )


def _family(variant: str) -> str:
    return timm.model_entrypoint(variant.partition(".")[0]).__module__
