"""The model card of a folder of weights: what may go into it, its text, and what a push asks of it."""

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ._checks import Refused

__all__ = ["CARD", "MAX_CARD_BYTES", "card_text", "check_card", "pushed_card"]

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20
HERE = "OWNER/REPOSITORY"  # until a push knows which
EXAMPLE = r"""(import timm_mobilevit_zoo\b[^`]*?\btimm\.create_model\(["']hf-hub:)[^"'\s]+"""  # in one block of code
SLUG = "[a-z0-9][a-z0-9.-]*"
# The Hub's identifiers, but for those of a single model.
_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl
    odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unlicense wtfpl zlib
"""
LICENSES = tuple(_LICENSES.split())
CARD_ENTRIES = {
    "citation",
    "dataset",
    "description",
    "license",
    "license_link",
    "license_name",
    "metrics",
    "source",
    "tags",
}


def check_card(card: Mapping[str, Any]) -> None:
    """Refuse a card without a licence, with entries that there are not, or with values of another kind."""
    if not isinstance(card, Mapping):
        raise ValueError(f"card={card!r} must be a mapping, at least {{'license': 'mit'}} or another licence")
    unknown = sorted(map(str, card.keys() - CARD_ENTRIES))
    if unknown:
        raise ValueError(f"card has no entry {', '.join(unknown)}; it may have {', '.join(sorted(CARD_ENTRIES))}")
    if card.get("license") not in LICENSES:
        raise ValueError(f"card['license']={card.get('license')!r} must be one of {', '.join(LICENSES)}")
    if card["license"] == "other" and not (card.get("license_name") and card.get("license_link")):
        raise ValueError("card['license']='other' needs license_name and license_link")
    if not re.fullmatch(SLUG, card.get("license_name") or "x"):
        raise ValueError(
            f"card['license_name']={card['license_name']!r} must be a name as 'my-license-1.0', for the Hub"
        )
    for key in sorted(card.keys() - {"metrics", "tags"}):
        if not isinstance(card[key], str):
            raise ValueError(f"card[{key!r}]={card[key]!r} must be text")
    metrics, tags = card.get("metrics", {}), card.get("tags", ())
    if not isinstance(metrics, Mapping) or not all(isinstance(key, str) and _finite(metrics[key]) for key in metrics):
        raise ValueError(f"card['metrics']={metrics!r} must give a finite number for each name")
    listed = isinstance(tags, (list, tuple)) and all(isinstance(tag, str) for tag in tags)
    if not listed or "transformers" in tags:
        raise ValueError(f"card['tags']={tags!r} must be a list of names, without 'transformers': the Hub goes by it")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def card_text(config: Mapping[str, Any], card: Mapping[str, Any], found: Mapping[str, Any], gmacs: float) -> str:
    """Return the model card: the Hub's metadata, then what a reader wants to know.

    Args:
        config: Of the folder.
        card: As for `hub.export`.
        found: What `hub.check` returned.
        gmacs: Multiply-adds of one image, in units of 1e9.
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
    size = " x ".join(map(str, cfg["input_size"][1:]))
    facts = [
        f"- {found['params'] / 1e6:.2f} M parameters, {gmacs:.3f} GMACs",
        f"- {found['num_classes']} classes, images of {size} pixels",
    ]
    facts += [f"- {label}: {card[key]}" for label, key in (("Data", "dataset"), ("Source", "source")) if card.get(key)]
    facts += [f"- {key}: {value}" for key, value in metrics.items()]
    if cfg.get("paper_name"):
        facts.append(f"- Paper: {cfg['paper_name']} ({cfg.get('paper_ids')})")
    text = [f"---\n{data.to_yaml()}\n---", f"# {name}", card.get("description", ""), "\n".join(facts)]
    text.append(f"""```python
import timm

import timm_mobilevit_zoo  # registers {name}

model = timm.create_model("hf-hub:{HERE}", pretrained=True).eval()
```""")
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
        raise Refused(f"{CARD} is missing; hub.export writes one, of the model that timm loads from {folder}")
    if path.stat().st_size > MAX_CARD_BYTES:
        raise Refused(f"{CARD} has more than {MAX_CARD_BYTES} bytes")
    try:
        text = re.sub(EXAMPLE, rf"\g<1>{repo_id}", path.read_text(encoding="utf-8-sig").replace(HERE, repo_id))
        data: Any = ModelCard(text).data
    except Exception as error:  # no UTF-8, or no YAML, whose errors are its library's own
        raise Refused(f"{CARD} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if data.license not in LICENSES:
        raise Refused(f"{CARD}: license={data.license!r} must be one of {', '.join(LICENSES)}")
    if data.license == "other" and not (data.license_name and data.license_link):
        raise Refused(f"{CARD}: license='other' needs license_name and license_link")
    if data.library_name != "timm":
        raise Refused(f"{CARD}: library_name={data.library_name!r} must be 'timm'")
    if "transformers" in (data.tags or ()):
        raise Refused(f"{CARD}: tags must not have 'transformers': the Hub would have it loaded without this package")
    if "import timm_mobilevit_zoo" not in text:
        raise Refused(f"{CARD} must show its readers to `import timm_mobilevit_zoo`: without it timm lacks the name")
    return text.encode()
