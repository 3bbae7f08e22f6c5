"""The model card of a folder of weights: its text, and what a push asks of it."""

import re
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCardData

from timm_mobilevit_zoo.common.files import open_regular
from timm_mobilevit_zoo_cli.licences import LICENSES, not_known

from .checks import Refused

__all__ = ["CARD", "MAX_CARD_BYTES", "card_text", "licence_of", "pushed_card"]

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20
HERE = "OWNER/REPOSITORY"  # until a push knows which
LISTED = 100  # names of classes, at most
MAX_METADATA = 1 << 16  # characters; YAML is read slowly
IMPORT = "import timm_mobilevit_zoo"
EXAMPLE = r"""(\btimm\.create_model\(["']hf-hub:)[^"'\s]+"""


def card_text(config: Mapping[str, Any], card: Mapping[str, Any], found: Mapping[str, Any], gmacs: float | None) -> str:
    """Return the model card: the Hub's metadata, then what a reader wants to know.

    Args:
        config: Of the folder; its label names are a list.
        card: As for `hub.export`.
        found: What `hub.check` returned.
        gmacs: Multiply-adds of one image, in units of 1e9; None without an image size.
    """
    cfg, name = config["pretrained_cfg"], found["architecture"]
    # Python's own types: YAML writes NumPy's as objects of theirs, which nobody reads.
    card = {key: str(value) if isinstance(value, str) else value for key, value in card.items()}
    metrics = {str(k): int(v) if isinstance(v, Integral) else float(v) for k, v in card.get("metrics", {}).items()}
    dataset = card.get("dataset") or "unknown"
    slug = re.sub(r"[^\w./-]+", "-", dataset).strip("-") or "unknown"  # the Hub takes no other letters there
    results = [EvalResult("image-classification", slug, dataset, key, value) for key, value in metrics.items()]
    data = ModelCardData(
        license=card["license"],
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "timm-mobilevit-zoo", *map(str, card.get("tags", ()))],
        datasets=[slug] if card.get("dataset") else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    size = f", images of {' x '.join(map(str, cfg['input_size'][1:]))} pixels" if cfg.get("input_size") else ""
    facts = [
        f"- {found['params'] / 1e6:.2f} M parameters" + ("" if gmacs is None else f", {gmacs:.3f} GMACs"),
        f"- {found['num_classes']} classes{size}",
    ]
    if labels := config.get("label_names"):
        more = f", and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
        facts.append(f"- Classes: {', '.join(map(_plain, labels[:LISTED]))}{more}")
    facts += [f"- {label}: {card[key]}" for label, key in (("Data", "dataset"), ("Source", "source")) if card.get(key)]
    facts += [f"- {key}: {value}" for key, value in metrics.items()]
    known: Any = timm.get_pretrained_cfg(name)  # and not what the config says, which a stranger may have written
    if known.paper_name:
        facts.append(f"- Paper: {known.paper_name} ({known.paper_ids})")
    facts += [f"- Note: {note}" for note in known.notes or ()]
    text = [f"---\n{data.to_yaml()}\n---", f"# {name}", card.get("description", ""), "\n".join(facts)]
    text.append(f"""```python
import timm

import timm_mobilevit_zoo  # registers {name}

model = timm.create_model("hf-hub:{HERE}", pretrained=True).eval()
```""")
    if training := card.get("training"):
        rows = [f"| {_plain(name)} | {_plain(value)} |" for name, value in training.items()]
        text.append("\n".join(["## Training", "", "| | |", "|---|---|", *rows]))
    if card.get("citation"):
        text.append(f"```bibtex\n{card['citation'].strip()}\n```")
    return "\n\n".join(filter(None, text)) + "\n"


def pushed_card(folder: Path, repo_id: str) -> bytes:
    """Return a folder's card as it is pushed: with the repository's name in its example.

    Raises:
        Refused: For a card that is missing, or lacks what makes the repository work for its readers.
    """
    path = folder / CARD
    if not path.is_file():
        raise Refused(f"{CARD} is missing; a push with `license` writes one")
    text, data = _read(path)
    licence = data.get("license")
    shown = repr(licence)[:80]
    if not isinstance(licence, str) or licence not in LICENSES:
        raise Refused(f"{CARD}: license: {shown} {not_known(licence)}")
    if licence == "other" and not (data.get("license_name") and data.get("license_link")):
        raise Refused(f"{CARD}: license: 'other' needs license_name and license_link")
    if data.get("library_name") != "timm":
        raise Refused(f"{CARD}: library_name={str(data.get('library_name'))[:80]!r} must be 'timm'")
    tags = data.get("tags") or []
    if not isinstance(tags, list) or "transformers" in tags:
        raise Refused(f"{CARD}: tags must not have 'transformers': the Hub would have it loaded without this package")
    if IMPORT not in text:
        raise Refused(f"{CARD} must show its readers to `{IMPORT}`: without it timm lacks the name")
    return _with_name(text, repo_id).encode()


def licence_of(path: Path) -> Any:
    """Return the licence that a card states, as it stands there."""
    return _read(path)[1].get("license")


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a card's text and what its head says; it raises `Refused` for one that cannot be read."""
    if path.stat().st_size > MAX_CARD_BYTES:
        raise Refused(f"{CARD} has more than {MAX_CARD_BYTES} bytes")
    try:
        with open_regular(path) as file:
            text = re.sub(r"\r\n?", "\n", file.read(MAX_CARD_BYTES).decode("utf-8-sig"))
        return text, _metadata(text)
    except Exception as error:  # no UTF-8, or no YAML, whose errors are its library's own
        raise Refused(f"{CARD} cannot be read: {' '.join(str(error)[:1000].split())[:200]}") from None


def _plain(text: Any) -> str:
    """Return text as Markdown shows it as it is, in a line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("`", "'")
    return re.sub(r"([\\*_\[\]<>|~$])", r"\\\1", text)


def _metadata(text: str) -> dict[str, Any]:
    """Return what a card's head says, in YAML between two lines of three dashes.

    Raises:
        ValueError: For a head that is too long or names a part of itself, which could then unfold without end.
    """
    lines = text.lstrip().split("\n")
    ends = [place for place, line in enumerate(lines) if line.rstrip() == "---"][:2]
    if len(ends) < 2 or ends[0] != 0:
        return {}
    head = "\n".join(lines[1 : ends[1]])
    if len(head) > MAX_METADATA:
        raise ValueError(f"its metadata has more than {MAX_METADATA} characters")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(head)):
        raise ValueError("its metadata has a YAML alias, as *name; write out what it stands for")
    found = yaml.safe_load(head)
    if found is not None and not isinstance(found, dict):
        raise ValueError("its metadata is not a mapping")
    return found or {}


def _with_name(text: str, repo_id: str) -> str:
    """Return a card with a repository's name where it shows how to load the weights: in each block with the import."""
    blocks = text.replace(HERE, repo_id).split("`")
    for place, block in enumerate(blocks):
        before, found, after = block.partition(IMPORT)
        blocks[place] = before + found + re.sub(EXAMPLE, rf"\g<1>{repo_id}", after, count=1) if found else block
    return "`".join(blocks)
