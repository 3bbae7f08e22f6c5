"""Which names have published weights, and what pins them: read from the hub configs that the package carries.

A hub config says of a name and tag what follows from the models; `docs/tools/generate.py` writes it. Two entries do
not follow: `hub`, which names the repository on the Hugging Face Hub with its commit and digests, and then `probe`,
which was recorded with the weights there. They are written when weights are published, and this module takes no other.

Networks know here where their weights are declared. How a hub is spoken to, `hub` knows: it says so by `fetched_by`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors.torch import load
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor

from timm_mobilevit_zoo.common.files import digests, open_regular

from .names import PREFIX, own_name

__all__ = [
    "CONFIG",
    "HUB_CONFIGS",
    "WEIGHTS",
    "HubConfig",
    "Pins",
    "build_pinned",
    "fetched_by",
    "package_configs",
    "pins",
    "read_configs",
]

FetchT = TypeVar("FetchT", bound=Callable[..., Path])

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_CONFIGS = "hub_configs"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
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


_fetchers: list[Callable[..., Path]] = []


def fetched_by(fetch: FetchT) -> FetchT:
    """Decorate what fetches pinned weights: `fetch(repo_id, revision, sha256, cache_dir=...)`, a folder with them."""
    _fetchers[:] = [fetch]
    return fetch


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
        ValueError: For a file that is no JSON object, or a section `hub` that is neither all null nor whole: by file,
            entry, value and what would be right.
    """
    configs: dict[tuple[str, str], HubConfig] = {}
    for path in sorted(folder.glob("*.json")):
        where = f"{HUB_CONFIGS}/{path.name}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{where} is no JSON object")
        key = (str(content.get("architecture")), str(content.get("tag") or ""))
        config = HubConfig(content, _pins(content, where))
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


def build_pinned(model_cls: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build as `timm.models.build_model_with_cfg`, with weights whose digests were compared where they are pinned.

    A file, a state dict, an address or another repository in `pretrained_cfg` or `pretrained_cfg_overlay` is left to
    timm.

    Args:
        model_cls: The network's class.
        variant: Name in the family's file; see `own_name`.
        pretrained: Load weights.
        **kwargs: As timm's function takes them.
    """
    own = own_name(variant)
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    pinned = False
    if pretrained:
        cfg: Any = resolve_pretrained_cfg(own, kwargs.get("pretrained_cfg"), dict(overlay))
        found = pins(variant, cfg.tag)
        other = cfg.source or cfg.file or cfg.state_dict or cfg.hf_hub_filename
        if found and cfg.hf_hub_id == found.hf_hub_id and not other:
            if cfg.url:
                overlay["hf_hub_id"] = None  # or timm would take the repository, and compare nothing
            else:
                folder = _fetchers[0](found.repo_id, found.revision, found.sha256, cache_dir=kwargs.get("cache_dir"))
                overlay["state_dict"], pinned = _read_pinned(folder / WEIGHTS, found.sha256[WEIGHTS]), True
    model = build_model_with_cfg(model_cls, own, pretrained, pretrained_cfg_overlay=overlay, **kwargs)
    if pinned:
        for module in model.modules():  # a backbone's wrapper has a config of its own
            known = getattr(module, "pretrained_cfg", None)
            if isinstance(known, dict):
                known.pop("state_dict", None)  # the repository is the source
    return model


def _read_pinned(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights of a file that is read once: what is compared is what is loaded."""
    with open_regular(path) as file:
        data = file.read()
    if (digest := digests(data)["sha256"]) != sha256:
        raise ValueError(f"{path} has changed: its digest is {digest}, not {sha256}")
    return load(data)
