"""Write what is told of whole families: docs/families.md, and the short table in README.md and README.zh.md.

Names, sizes, claims and places of weights come from hub_configs, ideas from the families' docstrings, and authors from
docs/papers.json. `generate.py` calls `pages` when it writes; `python docs/tools/families.py` does only this.
"""

import importlib
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm

from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.pins import HUB_CONFIGS, read_configs

__all__ = ["CARDS", "READMES", "cards", "pages", "summary"]

ROOT = Path(__file__).resolve().parents[2]
CARDS, PAPERS = "docs/families.md", ROOT / "docs" / "papers.json"
BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"
TABLE = (
    "| name and tag | params (M) | GMACs | image | claimed top-1 (%) | weights |",
    "| --- | ---: | ---: | --- | ---: | --- |",
)
SMALL = "32"  # what ends so is a new size of a class of timm's, and shares a row and a card
Config = Mapping[str, Any]
READMES: dict[str, dict[str, str]] = {
    "README.md": {
        "head": "| family | names | params (M) | GMACs | claimed top-1 (%) | files with weights |",
        "small": "ViT, DeiT, hybrid and Swin for 32 px",
        "none": "none published",
        "count": "{named} of {names} names have weights to load ({files} files, {pinned} with pinned digests).",
    },
    "README.zh.md": {
        "head": "| 系列 | 名称 | 参数量 (M) | GMACs | 作者公布的 top-1 (%) | 权重文件 |",
        "small": "面向 32 px 的 ViT、DeiT、混合网络和 Swin",
        "none": "未公开",
        "count": "{names} 个名称中有 {named} 个可以加载权重\uff1a共 {files} 个文件\uff0c{pinned} 个已固定摘要。",
    },
}


def _families(configs: Iterable[Config]) -> dict[str, list[Config]]:
    """Return configs by family, networks for small images last and as one, the smallest network of a family first."""
    found: dict[str, list[Config]] = {}
    for config in sorted(configs, key=lambda one: (one["params"], one["architecture"], one["tag"] or "")):
        module = timm.model_entrypoint(config["architecture"]).__module__.rpartition(".")[2]
        found.setdefault(SMALL if module.endswith(SMALL) else module, []).append(config)
    return {key: found[key] for key in sorted(found, key=lambda key: (key == SMALL, key))}


def _told(module: str) -> tuple[str, str]:
    """Return a family's title and its idea: what stands before and after the colon of its docstring's first line."""
    doc = importlib.import_module(module).__doc__ or ""
    title, _, idea = doc.partition("\n\nPaper:")[0].partition(": ")
    paragraphs = [textwrap.fill(" ".join(part.split()), 120) for part in idea.split("\n\n")]
    return title, "\n\n".join(text[0].upper() + text[1:] for text in paragraphs)


def _has_weights(config: Config) -> bool:
    return bool(config["file"] or config["hub"]["repo_id"])


def _is_default(config: Config) -> bool:
    return bool(timm.get_pretrained_cfg(config["architecture"]).tag == (config["tag"] or ""))


def _span(values: Iterable[float], digits: int) -> str:
    ends = sorted({f"{value:.{digits}f}" for value in values}, key=float)
    return " to ".join(ends[:: len(ends) - 1] if len(ends) > 1 else ends)


def _names(configs: list[Config]) -> list[str]:
    return list(dict.fromkeys(config["architecture"] for config in configs))


def _pattern(names: list[str]) -> str:
    prefix = names[0].partition("_")[0]
    while all(name.startswith(f"{prefix}_") for name in names):
        longer = "_".join(names[0].split("_")[: prefix.count("_") + 2])
        if longer == names[0] or not all(name.startswith(f"{longer}_") for name in names):
            return f"{prefix}_*"
        prefix = longer
    return f"*_{SMALL}"


def _row(key: str, configs: list[Config], words: Mapping[str, str]) -> str:
    names = _names(configs)
    module = timm.model_entrypoint(names[0]).__module__
    title = words["small"] if key == SMALL else _told(module)[0].partition(" as ")[0]
    files = sum(map(_has_weights, configs))
    configs = list(filter(_is_default, configs))
    claims = [config["published"]["imagenet_1k_top1"] for config in configs if config["published"]]
    cells = [
        f"[{title}](docs/families.md#{_anchor(key)})",
        f"`{_pattern(names)}` ({len(names)})",
        _span((config["params"] / 1e6 for config in configs), 1),
        _span((config["gmacs"] for config in configs), 2),
        _span(claims, 1) if claims else "",
        str(files) if files else words["none"],
    ]
    return "| " + " | ".join(cells) + " |"


def _anchor(key: str) -> str:
    return "small-images" if key == SMALL else key


def summary(configs: Iterable[Config], words: Mapping[str, str]) -> str:
    """Return the table of families, a row each, and the sentence that counts names with weights.

    Args:
        configs: What the hub configs hold.
        words: Headings and sentences of one language, of `READMES`.
    """
    configs = list(configs)
    loadable = [config for config in configs if _has_weights(config)]
    pinned = sum(bool(c["hub"]["repo_id"] or (c["file"] or {}).get("sha256")) for c in loadable)
    count = words["count"].format(
        named=len(_names(loadable)), names=len(_names(configs)), files=len(loadable), pinned=pinned
    )
    rows = [_row(key, own, words) for key, own in _families(configs).items()]
    return "\n".join([words["head"], "| --- | --- | ---: | ---: | ---: | ---: |", *rows, "", count])


def _bibtex(number: str, title: str, papers: Mapping[str, Any]) -> str:
    if number not in papers:
        raise ValueError(f"docs/papers.json lacks {number}, {title}: add its authors, year and key")
    paper, bare = papers[number], number.partition(":")[2]
    shielded = re.sub(r"\b(\w*[A-Z]\w*[A-Z]\w*)\b", r"{\1}", title).replace("&", r"\&")
    authors = " and ".join(paper["authors"])
    lines = [f"title = {{{shielded}}},", f"author = {{{authors}}},", f"year = {{{paper['year']}}},"]
    lines += [f"eprint = {{{bare}}},", "archivePrefix = {arXiv},"]
    return "\n".join([f"@misc{{{paper['key']},", *(f"  {line}" for line in lines), "}"])


def _point(module: str) -> str:
    head, idea = _told(module)
    return textwrap.fill(f"- {head}: {idea[0].lower()}{idea.partition('. ')[0][1:].partition('.')[0]}.", 120)


def _card(key: str, configs: list[Config], papers: Mapping[str, Any]) -> str:
    names = _names(configs)
    modules = list(dict.fromkeys(timm.model_entrypoint(name).__module__ for name in names))
    title, idea = _told(modules[0])
    if key == SMALL:
        title, idea = "Networks for small images", "\n".join(map(_point, modules))
    known = [name for module in modules for name in importlib.import_module(module).default_cfgs]  # ablations last
    first = min(filter(_is_default, configs), key=lambda one: known.index(one["architecture"]))
    loadable, classes = _has_weights(first), first["num_classes"]
    made = f'"{first["architecture"]}"' + (", pretrained=True" if loadable else f", num_classes={classes}")
    size = ", ".join(map(str, first["input_size"][1:]))
    code = f"import timm\nimport torch\n\nimport timm_mobilevit_zoo\n\nmodel = timm.create_model({made}).eval()\n"
    code += f"print(tuple(model(torch.rand(1, 3, {size})).shape))  # -> (1, {classes})"
    rows = [
        [
            f"`{one['architecture']}.{one['tag']}`" if _has_weights(one) else f"`{one['architecture']}`",
            f"{one['params'] / 1e6:.2f}",
            f"{one['gmacs']:.3f}",
            " x ".join(map(str, one["input_size"][1:])),
            str(one["published"]["imagenet_1k_top1"]) if one["published"] else "",
            "yes" if _has_weights(one) else "no",
        ]
        for one in configs
    ]
    cited = dict.fromkeys((c["paper_ids"], c["paper_name"]) for c in configs if c["paper_ids"])
    return "\n\n".join(
        [
            f'<a id="{_anchor(key)}"></a>',
            f"## {title}",
            idea,
            f"```{'py' if loadable else 'python'}\n{code}\n```",
            "\n".join([*TABLE, *(f"| {' | '.join(row)} |" for row in rows)]),
            "```bibtex\n" + "\n\n".join(_bibtex(*paper, papers) for paper in cited) + "\n```",
        ]
    )


HEAD = """# Families

One card for each family: its idea, code to paste, its sizes, and the paper to cite. Accuracies are the authors' claims
on ImageNet-1k, not verified here. Where a card says `pretrained=True`, the weights are downloaded from their authors,
as [Weights](weights.md#weights-of-others) explains. Differences from the authors' code are listed in
[Models](models.md). `docs/tools/families.py` writes this page."""


def cards(configs: Iterable[Config]) -> str:
    """Return the page of cards.

    Raises:
        ValueError: For a paper that docs/papers.json does not know.
    """
    papers = json.loads(PAPERS.read_text(encoding="utf-8"))
    return "\n\n".join([HEAD, *(_card(key, own, papers) for key, own in _families(configs).items())]) + "\n"


def pages(configs: Iterable[Config], root: Path = ROOT) -> dict[str, str]:
    """Return the text of every page that this file writes, by its path below `root`.

    Raises:
        ValueError: As `cards`, and for a README without the two lines that its table goes between.
    """
    configs = list(configs)
    found = {CARDS: cards(configs)}
    for name, words in READMES.items():
        head, has_begin, rest = (root / name).read_text(encoding="utf-8").partition(BEGIN)
        _, has_end, tail = rest.partition(END)
        if not has_begin or not has_end:
            raise ValueError(f"{root / name} lacks the lines {BEGIN} and {END}, in this order")
        found[name] = f"{head}{BEGIN}\n{summary(configs, words)}\n{END}{tail}"
    return found


def main() -> None:
    """Write the pages from the hub configs that are there."""
    configs = [config.content for config in read_configs(ROOT / HUB_CONFIGS).values()]
    for name, text in pages([c for c in configs if c["architecture"] in our_models()]).items():
        (ROOT / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
