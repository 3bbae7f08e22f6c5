"""Write what is generated from the registered models: `hub_configs/*.json` and the tables of models in the docs.

Of a hub config whose weights are published the section `hub` and the probe are kept, and of another's file what only
those know who have had it (commit, digest, size): these do not follow from the model.

`python docs/tools/generate.py` writes; with `--check` it writes nothing and exits 1 naming what is stale.
"""

import argparse
import importlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import families
import timm
import torch

from timm_mobilevit_zoo.hub.checks import hub_probe
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.pins import HUB_CONFIGS, HubConfig, pins, read_configs
from timm_mobilevit_zoo.models.places import leading_digits, place_of
from timm_mobilevit_zoo.models.probe import SEED, gmacs, matches, probe, seed_weights

__all__ = ["check", "expected_files", "variants", "write"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/models.md"
SEEDED = "seeded by name"
TOLERANCE = 1e-4  # ten times what computers and versions of torch differ by; GELU's approximation is more
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
TAGS = ("<!-- tags:begin -->", "<!-- tags:end -->")


def variants() -> list[str]:
    """Return `name.tag` of every pretrained config that the package registers, smallest network of a family first."""
    ours = our_models()
    tagged = [t for t in timm.list_models(include_tags=True) if t.partition(".")[0] in ours]
    return sorted(tagged, key=lambda t: (timm.model_entrypoint(t.partition(".")[0]).__module__, _params(t), t))


def _build(variant: str, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(variant, **kwargs).eval()  # with its tag, so with that config's size and classes


@cache
def _params(variant: str) -> int:
    return sum(p.numel() for p in _build(variant).parameters())


@cache
def _gmacs(variant: str) -> float:
    cfg: Any = timm.get_pretrained_cfg(variant)
    return round(gmacs(_build(variant), cfg.input_size), 3)


@cache
def _levels(variant: str) -> Any:
    return _build(variant, features_only=True).feature_info


@cache
def _logits(variant: str) -> list[float]:
    cfg: Any = timm.get_pretrained_cfg(variant)
    return probe(seed_weights(timm.create_model(variant)), cfg.input_size)


def _probe(variant: str, old: HubConfig) -> dict[str, Any]:
    if old.pins:
        hub_probe(old.content, "published", f"{HUB_CONFIGS}/{_file_name(variant)}")
        return old.content["probe"]
    logits = _logits(variant)
    try:
        kept = hub_probe(old.content, SEEDED, variant)
    except ValueError:
        kept = []
    # Within the tolerance the old numbers stay: or else each computer would write last digits of its own.
    return {"seed": SEED, "weights": SEEDED, "logits": kept if matches(kept, logits, TOLERANCE) else logits}


def _hub_config(variant: str, old: HubConfig) -> dict[str, Any]:
    cfg: Any = timm.get_pretrained_cfg(variant)
    family = importlib.import_module(timm.model_entrypoint(cfg.architecture).__module__)
    claims = getattr(family, "published_top1", {})
    top1 = claims.get(f"{cfg.architecture}.{cfg.tag}", None if place_of(cfg) else claims.get(cfg.architecture))
    by = getattr(family, "claimed_by", {}).get(f"{cfg.architecture}.{cfg.tag}", "authors")
    return {
        "architecture": cfg.architecture,
        "tag": cfg.tag,
        "num_classes": cfg.num_classes,
        "params": _params(variant),
        "gmacs": _gmacs(variant),
        "input_size": cfg.input_size,
        "mean": cfg.mean,
        "std": cfg.std,
        "crop_pct": cfg.crop_pct,
        "interpolation": cfg.interpolation,
        "license": cfg.license,
        "origin_url": cfg.origin_url,
        "source_commit": getattr(family, "source_commits", {}).get(cfg.origin_url),
        "paper_ids": cfg.paper_ids,
        "paper_name": cfg.paper_name,
        "published": None if top1 is None else {"imagenet_1k_top1": top1, "claimed_by": by},
        "file": _file(cfg, old.content.get("file") or {}),
        "hub": old.content["hub"] if old.pins else {"repo_id": None, "revision": None, "sha256": None},
        "probe": _probe(variant, old),
    }


def _file(cfg: Any, old: dict[str, Any]) -> dict[str, Any] | None:
    """Return what is known of another's file: its place, which the tag declares, and what was recorded of it there."""
    place = place_of(cfg)
    if place is None or (old == {} and pins(cfg.architecture, cfg.tag)):
        return None
    here = {"source": place.repo_id or place.url, "name": place.file or None}
    kept = all(old.get(key) == value for key, value in here.items())
    return here | {key: old[key] if kept else None for key in ("revision", "sha256", "bytes")}


def _file_name(variant: str) -> str:
    name = variant.partition(".")[0]
    # The bare name means the default config, here as in timm; a second config of the name carries its tag.
    return f"{name if _is_default(variant) else variant}.json"


def _source(config: dict[str, Any]) -> str:
    papers = config["paper_ids"] or []
    url = config["origin_url"]
    kind = "written from the paper" if "arxiv.org" in url else f"[code]({url})"
    links = [kind + (f" ({config['license'].upper()})" if config["license"] else "")]
    for paper in [papers] if isinstance(papers, str) else papers:
        kind, _, number = paper.partition(":")
        links.append(f"[paper](https://arxiv.org/abs/{number})" if kind == "arXiv" else paper)
    return ", ".join(links)


def _row(variant: str, config: dict[str, Any]) -> list[str]:
    published = config["published"]
    return [
        _name(variant),
        str(published["imagenet_1k_top1"]) if published else "",
        f"{config['params'] / 1e6:.2f}",
        f"{config['gmacs']:.3f}",
        _size(config),
        f"`{config['tag']}`" if _weights(config) else "none",
    ]


def _detail(variant: str, config: dict[str, Any]) -> list[str]:
    levels = _levels(variant)
    channels, strides = ("-".join(map(str, values)) for values in (levels.channels(), levels.reduction()))
    return [_name(variant), str(config["num_classes"]), channels, strides, _source(config)]


def _name(variant: str) -> str:
    return f"`{Path(_file_name(variant)).stem}`"


def _size(config: dict[str, Any]) -> str:
    """Return the image's side where it is square, or both."""
    return " x ".join(map(str, dict.fromkeys(config["input_size"][1:])))


def _weights(config: dict[str, Any]) -> str:
    """Return the link to a tag's weights, nothing without."""
    if repo_id := config["hub"]["repo_id"]:
        return f"[{repo_id}](https://huggingface.co/{repo_id})"
    if not (file := config["file"]):
        return ""
    source = file["source"]
    if "://" not in source:
        return f"[{source}](https://huggingface.co/{source})"
    return f"[{'Google Drive' if 'drive.google' in source else file['name']}]({source})"


def _tags(configs: dict[str, dict[str, Any]]) -> str:
    """Return the table of tags that have weights: where, under which licence, what is claimed and what is known."""
    titles = ["name.tag", "claimed top-1 (%)", "weights", "image (px)", "classes", "licence", "digest"]
    rows = []
    for variant, config in configs.items():
        file = config["file"] or {}
        if where := _weights(config):
            published = config["published"]
            digits = leading_digits(file.get("name") or "")
            known = config["hub"]["repo_id"] or file.get("sha256")
            rows.append(
                [
                    f"`{variant}`",
                    str(published["imagenet_1k_top1"]) if published else "",
                    where,
                    _size(config),
                    str(config["num_classes"]),
                    config["license"] or "not stated",
                    "pinned" if known else f"{digits}..." if digits else "not known yet",
                ]
            )
    return _markdown(titles, rows, ".:.::..")


def _table(configs: dict[str, dict[str, Any]]) -> str:
    """Return what one chooses by, as wide as a page, and below, folded, what else there is to know."""
    chosen = ["name", "claimed top-1 (%)", "params (M)", "GMACs", "image (px)", "weights"]
    rows = [_row(variant, config) for variant, config in configs.items()]
    details = ["name", "classes", "channels", "strides", "source"]
    more = [_detail(variant, config) for variant, config in configs.items()]
    folded = f"<summary>Classes, channels, strides and sources</summary>\n\n{_markdown(details, more, '.:...')}"
    return f'{_markdown(chosen, rows, ".::::.")}\n\n<details markdown="1">\n{folded}\n\n</details>'


def _markdown(titles: list[str], rows: list[list[str]], align: str) -> str:
    """Return a table, its columns aligned to the right where `align` has a colon."""
    marks = ["---:" if mark == ":" else "---" for mark in align]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, marks, *rows))


def _page(path: Path, text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    head, has_begin, rest = text.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{path} lacks the lines {begin} and {end}, in this order")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def expected_files(root: Path = ROOT) -> dict[str, str]:
    """Return the text of every generated file by its path below `root`.

    Raises:
        ValueError: For a page without the lines of its table, a hub config that holds pins of no registered name, and
            as `read_configs` and `families.pages`.
    """
    old = read_configs(root / HUB_CONFIGS)
    keys = {variant: _key(variant) for variant in variants()}
    lost = [".".join(key) for key, config in old.items() if config.pins and key not in keys.values()]
    if lost:
        raise ValueError(f"{HUB_CONFIGS} holds pins of {', '.join(lost)}, not registered: delete it by hand")
    configs = {variant: _hub_config(variant, old.get(key, HubConfig({}, None))) for variant, key in keys.items()}
    files = {f"{HUB_CONFIGS}/{_file_name(v)}": json.dumps(c, indent=2) + "\n" for v, c in configs.items()}
    table = _table({variant: config for variant, config in configs.items() if _is_default(variant)})
    text = _page(root / PAGE, (root / PAGE).read_text(encoding="utf-8"), table)
    files[PAGE] = _page(root / PAGE, text, _tags(configs), *TAGS)
    return files | families.pages(configs.values(), root)


def _is_default(variant: str) -> bool:
    return timm.get_pretrained_cfg(variant.partition(".")[0]) == timm.get_pretrained_cfg(variant)


def _key(variant: str) -> tuple[str, str]:
    cfg: Any = timm.get_pretrained_cfg(variant)
    return cfg.architecture, cfg.tag or ""


def _leftovers(files: dict[str, str], root: Path) -> list[str]:
    found = {path.relative_to(root).as_posix() for path in (root / HUB_CONFIGS).glob("*.json")}
    return sorted(found - files.keys())


def check(root: Path = ROOT) -> list[str]:
    """Return the paths below `root` that are missing, differ from what the models say, or belong to no model."""
    files = expected_files(root)
    stale = [
        name
        for name, text in files.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]
    return stale + _leftovers(files, root)


def write(root: Path = ROOT) -> None:
    """Write every generated file below `root` and remove hub configs of models that are gone."""
    files = expected_files(root)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(path.name + ".tmp")
        new.write_text(text, encoding="utf-8", newline="\n")
        os.replace(new, path)
    for name in _leftovers(files, root):
        (root / name).unlink()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write hub_configs/*.json and the tables of models.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming the stale files")
    if not parser.parse_args().check:
        write()
        return
    files = [config["file"] for config in map(_read, sorted((ROOT / HUB_CONFIGS).glob("*.json"))) if config["file"]]
    pinned = sum(file["sha256"] is not None for file in files)
    sys.stdout.write(f"{pinned} of {len(files)} files of others are pinned\n")
    if stale := check():
        sys.exit("stale, run `python docs/tools/generate.py`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
