"""What `train` has recorded of a run in its folder, for the model card; and the card of a folder that has none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_mobilevit_zoo.common.files import open_regular, replacing
from timm_mobilevit_zoo.models.pins import WEIGHTS
from timm_mobilevit_zoo.models.probe import gmacs
from timm_mobilevit_zoo_cli.licences import check_card

from .card import CARD, card_text, licence_of
from .checks import Refused, build_meta

__all__ = ["RECORD", "add_card", "card_of_run"]

RECORD = "run.json"
MAX_RECORD_BYTES = 64 << 20  # 100,000 classes fit
# Options that every run has something to say of, and those that say nothing to others: paths, and how it was started.
ALWAYS = ("epochs", "batch_size", "opt", "lr", "weight_decay", "sched", "warmup_epochs", "smoothing", "seed")
NEVER = {"checkpoint", "cpu", "data", "dataset_download", "img_size", "model", "on_broken", "output", "pretrained"}
NEVER |= {"resume", "trust", "workers"}


def card_of_run(folder: Path, weights: str) -> dict[str, Any]:
    """Return what a run has to say in the card of its weights: `metrics` and `training`; nothing without a record.

    Args:
        folder: The run's.
        weights: sha256 of the weights that the card is for.

    Raises:
        Refused: For a record that cannot be read, or that speaks of other weights.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            told = json.loads(file.read(MAX_RECORD_BYTES).decode())
        card = _words(told)
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise Refused(f"{RECORD} is not what train writes: {type(error).__name__}: {str(error)[:200]}") from None
    if told.get("sha256") != weights:
        raise Refused(f"{RECORD} speaks of other weights than {WEIGHTS}: remove it to do without what it tells")
    return card


def _words(told: Mapping[str, Any]) -> dict[str, Any]:
    best, options, processes = told["best"], told["options"], told["processes"]
    names = {"top-1": "val_top1", "top-5": "val_top5"} if len(told["classes"]) > 5 else {"top-1": "val_top1"}
    metrics = {name: round(float(best[key]), 2) for name, key in names.items() if key in best}
    counts = [
        f"{told[part]:,} {use}" for part, use in (("train", "to train on"), ("val", "to validate on")) if told[part]
    ]
    kind = "the best by top-1 on the validation images" if metrics else "the last, without validation"
    training = {
        "images": ", ".join(counts),
        "classes": _spread(told["classes"]),
        "started from": told["start"],
        "epoch of these weights": f"{best['epoch']} of {options['epochs']}, {kind}",
    }
    options = {**options, "warmup_epochs": told["warmup_epochs"]}
    for name in dict.fromkeys((*ALWAYS, *told["given"])):
        if name not in NEVER:
            training[name.replace("_", " ")] = _shown(name, options[name])
    if processes > 1:
        training["batch size"] += f" in each of {processes} processes"
    training["made with"] = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    return {"metrics": metrics, "training": {key: value for key, value in training.items() if value}}


def _spread(classes: Mapping[str, Any]) -> str:
    counts = [count["train"] for count in classes.values() if count["train"] is not None]
    if not counts:
        return ""
    return f"{min(counts):,} to {max(counts):,} images of each to train on" if min(counts) < max(counts) else ""


def _shown(name: str, value: Any) -> str:
    if name == "teacher":  # where it lies is its owner's business
        return Path(value).name
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def add_card(folder: Path, config: Mapping[str, Any], found: Mapping[str, Any], words: dict[str, str]) -> Path | None:
    """Write the model card of a folder that has none, and return its path; None where there is one.

    Args:
        folder: That of the weights.
        config: Its config, checked.
        found: What `hub.check` returned.
        words: Those of a card that its owner knows, at least `license` where there is no card.

    Raises:
        ValueError: For words that no card can have.
        Refused: For words beside a card that says others, and as `card_of_run`.
    """
    path = folder / CARD
    if path.exists() and not words:
        return None
    card = card_of_run(folder, found["sha256"][WEIGHTS]) | words
    check_card(card)
    size = config["pretrained_cfg"].get("input_size")
    text = card_text(config, card, found, gmacs(build_meta(config), size) if size else None)
    if path.exists():
        same = path.read_bytes() == text.encode() or words == {"license": licence_of(path)}
        if not same:
            told = ", ".join(f"{name}={value!r}" for name, value in words.items())
            raise Refused(f"{CARD} is there already, and may say otherwise than {told}: edit it, or remove it")
        return None
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path
