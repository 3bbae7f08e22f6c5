"""What `pretrained=True` reads from the places that tags declare; a list of these, and their digests recorded."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from timm_mobilevit_zoo.common.files import digests, replacing
from timm_mobilevit_zoo.models.checkpoints import read_told
from timm_mobilevit_zoo.models.pins import HUB_CONFIGS, package_configs
from timm_mobilevit_zoo.models.places import Place, places
from timm_mobilevit_zoo.models.pretrained import opened_by
from timm_mobilevit_zoo_cli.near import did_you_mean

from .download import fetch_weights

__all__ = ["pin", "read", "weights"]


@opened_by
def read(place: Place, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a place's file, as they are named there, and what it tells of its config.

    Args:
        place: From `timm_mobilevit_zoo.models.places`.
        **options: As `fetch_weights` takes them.

    Raises:
        HubError: If the place cannot be reached, or does not give the file.
        Refused: For a file that is too large, or has another digest.
        ValueError: For a file that holds no weights, or more than may be read.
    """
    path = fetch_weights(place, **options)
    return read_told(path)


def weights(pattern: str = "*") -> list[dict[str, Any]]:
    """List the files that pretrained=True loads, one for each tag.

    The links were recorded from the authors' pages; the files themselves were not available then.

    Args:
        pattern: Names, or names with tags, such as recnext_* or *.in1k_384; all if not given.

    Returns:
        For each tag its `name` (with the tag), `place` (`hub`, `address` or `drive`), `source`, `file`, `license`,
        `top1` (what is claimed for this file, percent, or None), `bytes`, and `pinned`: whether its digest is known.

    Raises:
        ValueError: For a pattern that matches no tag.
    """
    rows = []
    for variant, place in sorted(places().items()):
        if not (fnmatchcase(variant, pattern) or fnmatchcase(variant.partition(".")[0], pattern)):
            continue
        name, _, tag = place.variant.partition(".")
        config = getattr(package_configs().get((name, tag)), "content", {})
        rows.append(
            {
                "name": variant,
                "place": place.kind,
                "source": place.repo_id or place.url,
                "file": place.file,
                "license": config.get("license"),
                "top1": (config.get("published") or {}).get("imagenet_1k_top1"),
                "bytes": place.size,
                "pinned": place.sha256 is not None,
            }
        )
    if not rows:
        raise ValueError(f"pattern={pattern!r} matches no tag with weights{did_you_mean(pattern, _spellings())}")
    return rows


def pin(names: Sequence[str], *, write: bool = False) -> list[dict[str, Any]]:
    """Download files of weights, try them in their networks, and return the commits and digests to pin.

    Args:
        names: Names, or names with tags, of files that weights lists.
        write: Record commit, digest and size in the hub configs of this checkout.

    Returns:
        For each file its `name`, `revision` (of a repository), `sha256`, `bytes`, and whether these were `known`.

    Raises:
        HubError: If a place cannot be reached, or does not give the file.
        Refused: For a file with another digest than the one that is pinned.
        ValueError: For a name without weights, a file that does not fit its network, or `write` outside a checkout.
    """
    known = places()
    unknown = [name for name in names if _variant(name) not in known]
    if unknown:
        raise ValueError(f"names={unknown[0]!r} has no file of weights{did_you_mean(unknown[0], _spellings())}")
    folder = Path(__file__).resolve().parents[2] / HUB_CONFIGS
    if write and not folder.is_dir():
        raise ValueError(
            "`write=True` needs a checkout of the repository: an installed package keeps what it came with"
        )
    found = []
    for name in names:
        place = known[_variant(name)]
        path = fetch_weights(place)
        timm.create_model(_variant(name), pretrained=True)
        on_hub = place.kind == "hub"
        row = {
            "revision": place.revision or (_commit(path, place.file) if on_hub else None),
            "sha256": digests(path)["sha256"],
            "bytes": path.stat().st_size,
        }
        if write:
            _record(folder, place, row)
        found.append({"name": place.variant, **row, "known": place.sha256 is not None})
    return found


def _spellings() -> set[str]:
    """Return all names that have weights, with their tags and without."""
    return {spelling for variant in places() for spelling in (variant, variant.partition(".")[0])}


def _variant(name: str) -> str:
    """Return `name.tag` of a registered name, with its own tag or the default one."""
    cfg: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return f"{name.partition('.')[0]}.{cfg.tag}" if cfg is not None else name


def _commit(path: Path, file: str) -> str:
    """Return the commit of a file in the Hub's cache, whose folder has its name."""
    return path.parents[file.count("/")].name


def _record(folder: Path, place: Place, row: dict[str, Any]) -> None:
    for path in folder.glob(f"{place.variant.partition('.')[0]}*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if f"{config['architecture']}.{config['tag']}" == place.variant:
            config["file"] |= row
            with replacing(path) as part:
                part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
