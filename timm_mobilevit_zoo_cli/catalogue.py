"""The networks by name, with what is known of each: read from files, so that no network is built and no torch imported.

Ours are in the hub configs, which `docs/tools/generate.py` writes; timm's light ones in `light.json`, which
`docs/tools/light.py` writes.
"""

import json
import re
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .near import did_you_mean
from .parser import root

__all__ = ["list_models"]

CONFIGS, PREFIX = "hub_configs", "zoo_"


def list_models(pattern: str = "*", *, all: bool = False) -> dict[str, dict[str, Any]]:
    """Return what is known of each network, by the name under which timm creates it.

    Args:
        pattern: Names, as recnext_* or *.in1k_384; a part of a name stands for all that hold it.
        all: List timm's own networks of at most 14 million parameters, too.

    Returns:
        By name, ours first, in each family the smallest first: `params`; `gmacs`, multiply-adds of an image in 1e9, at
        `img_size`, its height and width in pixels; `top1`, the authors' claim on ImageNet-1k in percent, None where
        there is none or the network is timm's; `license`, of the code or the weights; `weights`, the tags that have
        some; `tags`, for each tag of ours the same facts (`params` depend on its classes), and whether it has
        `weights`; `timm`, whether the network is timm's. The facts of a name are those of its default tag, the first.

    Raises:
        ValueError: For a pattern that matches no name.
    """
    known = _ours() | (_light() if all else {})
    if pattern in known:
        return {pattern: known[pattern]}
    found = {name: one for name, one in known.items() if _fits(name, one, pattern)}
    if not found:
        names = known if all else known | _light()
        raise ValueError(f"pattern={pattern!r} matches no name{did_you_mean(pattern, names)}")
    return found


def _fits(name: str, facts: dict[str, Any], pattern: str) -> bool:
    if not re.search(r"[*?\[]", pattern):
        pattern = f"*{pattern}*"
    return any(fnmatchcase(one, pattern) for one in (name, *(f"{name}.{tag}" for tag in facts["tags"])))


@cache
def _ours() -> dict[str, dict[str, Any]]:
    package = root()
    folder = package / CONFIGS
    configs: dict[str, list[tuple[bool, dict[str, Any]]]] = {}
    for path in (folder if folder.is_dir() else package.parent / CONFIGS).glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        # The bare name means the default config, as in timm.
        configs.setdefault(config["architecture"], []).append((path.stem != config["architecture"], config))
    taken = _of_timm() & configs.keys()
    rows = {PREFIX + name if name in taken else name: _facts(ones) for name, ones in configs.items()}
    return dict(sorted(rows.items(), key=lambda row: (row[0].removeprefix(PREFIX).split("_")[0], row[1]["params"])))


def _facts(found: list[tuple[bool, dict[str, Any]]]) -> dict[str, Any]:
    """Return a network's facts, from its configs, of which the first is the default one."""
    configs = [config for _, config in sorted(found, key=lambda pair: (pair[0], pair[1]["tag"]))]
    tags = {
        config["tag"]: {
            "params": config["params"],
            "gmacs": config["gmacs"],
            "img_size": config["input_size"][1:],
            "top1": (config["published"] or {}).get("imagenet_1k_top1"),
            "license": config["license"],
            "weights": bool(config["file"] or config["hub"]["repo_id"]),
        }
        for config in configs
    }
    return {
        **{key: value for key, value in tags[configs[0]["tag"]].items() if key != "weights"},
        "weights": [tag for tag, one in tags.items() if one["weights"]],
        "tags": tags,
        "timm": False,
    }


@cache
def _light() -> dict[str, dict[str, Any]]:
    """Return timm's light networks, but for those that the timm installed here does not have."""
    content = json.loads(Path(__file__).with_name("light.json").read_text(encoding="utf-8"))
    here = _of_timm()
    found = {
        name: {
            **{key: one[key] for key in ("params", "gmacs")},
            "img_size": one["input_size"][1:],
            "top1": None,
            "license": one["license"],
            "weights": one["tags"],
            "tags": {},
            "timm": True,
        }
        for name, one in content["models"].items()
        if name in here
    }
    return dict(sorted(found.items(), key=lambda row: row[1]["params"]))


@cache
def _of_timm() -> set[str]:
    """Return the names that timm registers, read from its sources: to import it would be to import torch."""
    spec = find_spec("timm")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in Path(folder, "models").glob("*.py"))
    return {name for text in texts for name in re.findall(r"@register_model\ndef (\w+)\(", text)}
