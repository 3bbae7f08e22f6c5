"""What may go into a model card, a licence above all."""

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from .near import did_you_mean

__all__ = ["CARD_WORDS", "LICENSES", "check_card", "not_known"]

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
LICENSES_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
LICENSES = tuple(_LICENSES.split())
CARD_WORDS = ("license", "license_name", "license_link", "dataset", "source", "description")  # that `convert` takes
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
    "training",
}


def check_card(card: Mapping[str, Any]) -> None:
    """Refuse a card without a licence, with entries that there are not, or with values of another kind."""
    if not isinstance(card, Mapping):
        raise ValueError(f"card={_short(card)} must be a mapping, at least {{'license': 'mit'}} or another licence")
    unknown = sorted(map(str, card.keys() - CARD_ENTRIES))
    if unknown:
        raise ValueError(f"card has no entry {', '.join(unknown)[:200]}; it may have {', '.join(sorted(CARD_ENTRIES))}")
    licence = card.get("license")
    if not isinstance(licence, str) or licence.lower() not in LICENSES:
        raise ValueError(f"card['license']={_short(licence)} {not_known(licence)}")
    if licence.lower() == "other" and not (card.get("license_name") and card.get("license_link")):
        raise ValueError("card['license']='other' needs `license_name` and `license_link`")
    for key in sorted(card.keys() - {"metrics", "tags", "training"}):
        if not isinstance(card[key], str) or not _is_whole(card[key]):
            raise ValueError(f"card[{key!r}]={_short(card[key])} must be text")
    if not re.fullmatch(SLUG, card.get("license_name") or "x"):
        raise ValueError(
            f"card['license_name']={_short(card['license_name'])} must be a name like my-license-1.0, in lower case"
        )
    metrics, tags = card.get("metrics", {}), card.get("tags", ())
    if not isinstance(metrics, Mapping) or not all(isinstance(key, str) and _finite(metrics[key]) for key in metrics):
        raise ValueError(f"card['metrics']={_short(metrics)} must give a finite number for each name")
    training = card.get("training", {})
    if not isinstance(training, Mapping) or not all(isinstance(one, str) for pair in training.items() for one in pair):
        raise ValueError(f"card['training']={_short(training)} must give text for each name")
    listed = isinstance(tags, (list, tuple)) and all(isinstance(tag, str) for tag in tags)
    if not listed or "transformers" in tags:
        raise ValueError(
            f"card['tags']={_short(tags)} must be a list of names, without 'transformers', by which the Hub goes"
        )


def not_known(licence: Any) -> str:
    """Return what is wrong with a licence that the Hub has no identifier for, and which it may be."""
    meant = did_you_mean(re.sub(r"[\s_]+", "-", str(licence).removesuffix(" License")), LICENSES)
    known = f"is not one that the Hub knows, such as mit, apache-2.0, cc-by-4.0 or other{meant}"
    return known if meant else f"{known}; all are at {LICENSES_PAGE}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _is_whole(text: str) -> bool:
    """Tell whether text can be written to a file: halves of letters, as JSON may hold them, cannot."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
