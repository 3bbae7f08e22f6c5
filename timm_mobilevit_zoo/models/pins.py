"""Which names have published weights, and what pins them: read from the hub configs that the package carries.

A hub config says of a name and tag what follows from the models; `docs/tools/generate.py` writes it. Three entries do
not follow: `hub`, which names a repository on the Hugging Face Hub that holds a folder of ours, with its commit and
digests, and then `probe`, which was recorded with the weights there; and what `file` says of another's file beside its
place. They are written when weights are published or pinned, and this module takes no other.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .names import PREFIX

__all__ = [
    "CONFIG",
    "HUB_CONFIGS",
    "WEIGHTS",
    "HubConfig",
    "Pins",
    "package_configs",
    "pins",
    "read_configs",
]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_CONFIGS = "hub_configs"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
FILE = {  # of another's file: what its entries must be, None aside
    "source": (str, ".+", "the repository or address that the tag's config declares"),
    "name": (str, "[^/]+", "the file's name there"),
    "revision": (str, "[0-9a-f]{40}", "a commit of 40 hex digits"),
    "sha256": (str, "[0-9a-f]{64}", "a digest of 64 hex digits"),
    "bytes": (int, "[0-9]+", "the file's size"),
}
SECTION = {  # of a config whose weights are published: what its entries must be
    "hub.repo_id": (f"{NAME}/{NAME}", "a repository, 'owner/name'"),
    "hub.revision": ("[0-9a-f]{40}", "a commit of 40 hex digits"),
    f"hub.sha256[{CONFIG!r}]": ("[0-9a-f]{64}", "a digest of 64 hex digits"),
    f"hub.sha256[{WEIGHTS!r}]": ("[0-9a-f]{64}", "a digest of 64 hex digits"),
}


@dataclass(frozen=True)
class Pins:
    """One commit of a repository on the Hub, and the digests of the two files that are read from it."""

    repo_id: str
    revision: str
    sha256: Mapping[str, str]

    @property
    def hf_hub_id(self) -> str:
        """The repository at its commit, as timm's configs name it."""
        return f"{self.repo_id}@{self.revision}"


class HubConfig(NamedTuple):
    """What a file holds, and the pins in it."""

    content: dict[str, Any]
    pins: Pins | None


def pins(architecture: str, tag: str | None) -> Pins | None:
    """Return where the weights of a name and tag are published, or None where they are not.

    Raises:
        ValueError: As `read_configs`.
    """
    found = package_configs().get((architecture.removeprefix(PREFIX), tag or ""))
    return found and found.pins


@cache
def package_configs() -> dict[tuple[str, str], HubConfig]:
    """Return the hub configs that the package carries, or that lie beside it in a checkout; see `read_configs`."""
    package = Path(__file__).resolve().parent.parent
    carried = package / HUB_CONFIGS
    return read_configs(carried if carried.is_dir() else package.parent / HUB_CONFIGS)


def read_configs(folder: Path) -> dict[tuple[str, str], HubConfig]:
    """Return the hub configs in a folder by the architecture and tag in them, whatever the files are called.

    Raises:
        ValueError: For a file that is not a JSON object, or a section `hub` that is neither all null nor whole: names
            file, entry, value and what would be right.
    """
    configs: dict[tuple[str, str], HubConfig] = {}
    for path in sorted(folder.glob("*.json")):
        where = f"{HUB_CONFIGS}/{path.name}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{where} is not a JSON object")
        key = (str(content.get("architecture")), str(content.get("tag") or ""))
        config = HubConfig(content, _pins(content, where))
        _check_file(content.get("file"), where)
        if key in configs and (config.pins or configs[key].pins):
            raise ValueError(f"{where}: architecture={key[0]!r}, tag={key[1]!r} are those of another file, too")
        configs[key] = config
    return configs


def _pins(content: Mapping[str, Any], where: str) -> Pins | None:
    """Return what the section `hub` says; None where it is missing or all null."""
    hub = content.get("hub", {})
    if not isinstance(hub, dict) or hub.keys() - {"repo_id", "revision", "sha256"}:
        raise ValueError(f"{where}: hub={hub} must have repo_id, revision and sha256, only these")
    if all(value is None for value in hub.values()):
        return None
    sha256 = hub.get("sha256")
    if not isinstance(sha256, dict) or sha256.keys() != {CONFIG, WEIGHTS}:
        raise ValueError(f"{where}: hub.sha256={sha256} must have a digest of {CONFIG} and of {WEIGHTS}, only these")
    values = [hub.get("repo_id"), hub.get("revision"), sha256[CONFIG], sha256[WEIGHTS]]
    for (entry, (pattern, right)), value in zip(SECTION.items(), values, strict=True):
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{where}: {entry}={value!r} must be {right}")
    return Pins(hub["repo_id"], hub["revision"], sha256)


def _check_file(found: Any, where: str) -> None:
    """Refuse a section `file` with entries that nobody writes."""
    if found is None:
        return
    if not isinstance(found, dict) or found.keys() != FILE.keys():
        raise ValueError(f"{where}: file={str(found)[:200]} must have {', '.join(FILE)}, only these")
    for entry, (kind, pattern, right) in FILE.items():
        value = found[entry]
        if value is not None and (not isinstance(value, kind) or not re.fullmatch(pattern, str(value))):
            raise ValueError(f"{where}: file.{entry}={value!r} must be {right}")
