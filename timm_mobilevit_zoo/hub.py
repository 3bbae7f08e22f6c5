"""Folders of weights that timm and transformers load: written, and checked before anything of them is built.

A folder holds `model.safetensors`, `config.json` and a model card, `README.md`. It is what
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and what a repository on the Hugging Face Hub holds.
"""

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from ._checks import (
    CONFIG,
    MODEL_ARGS,
    WEIGHTS,
    Refused,
    build_meta,
    check_config,
    check_files,
    check_header,
    check_probe,
    check_values,
    our_models,
)
from ._probe import SEED, affordable, probe
from ._published import package_configs

__all__ = ["Refused", "check", "export"]

CARD = "README.md"
LICENSES = (
    "afl-3.0",
    "apache-2.0",
    "apple-amlr",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "gpl-3.0",
    "mit",
    "other",
)
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


def check(folder: str | Path, *, architectures: Collection[str] | None = None) -> dict[str, Any]:
    """Check a folder of weights, in the order in which it could do harm: files, config, sizes, header, values, probe.

    The network that the config means is built without memory first, and only names and shapes of the weights are read
    before they are known to fit. Where the config tells a probe, the logits of one known image, they are recomputed;
    weights that the package's hub configs name must give what these tell. What it cannot know is whether the weights
    are any good, or whose they are.

    Args:
        folder: Holds `model.safetensors` and `config.json`.
        architectures: Names that it may have; those of this package where not given.

    Returns:
        The `architecture`, its `num_classes` and `params`, and the `sha256` of both files.

    Raises:
        Refused: A `ValueError` that names the file, the entry and what would be right.
    """
    path = Path(folder)
    check_files(path)
    config = check_config(path, our_models() if architectures is None else architectures)
    model = build_meta(config)
    check_header(path, model)
    tensors = load_file(path / WEIGHTS)
    check_values(tensors)
    sha256 = {name: _sha256(path / name) for name in (CONFIG, WEIGHTS)}
    for told, logits in _told(config, sha256[WEIGHTS]):
        check_probe(config, tensors, logits, told)
    return {
        "architecture": config["architecture"],
        "num_classes": config["num_classes"],
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256,
    }


def _told(config: Mapping[str, Any], weights: str) -> list[tuple[str, list[float]]]:
    """Return who tells of these weights what logits the seeded image has."""
    told = [(CONFIG, config["probe"]["logits"])] if "probe" in config else []
    for (name, tag), (published, pins) in package_configs().items():
        same = published.get("input_size") == config["pretrained_cfg"].get("input_size")
        if same and name == config["architecture"] and pins and pins.sha256[WEIGHTS] == weights:
            told.append((f"the hub config of {name}.{tag}", published["probe"]["logits"]))
    return told


def export(model: nn.Module, folder: str | Path, *, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a model's weights, config and card to a folder, check it, and reload it bit for bit.

    The folder appears only when all of that has held. The model is not changed; it may be on any device and in any
    memory format. The config also tells a probe, the logits of one known image, where its size makes that cheap.

    Args:
        model: One of this package's models, as `timm.create_model` made it and perhaps trained.
        folder: New, or empty.
        card: `license`, an identifier of the Hub's (with `license_name` and `license_link` for `other`). And what there
            is of `description`, `dataset`, `metrics` (name to value), `source` (where the weights come from),
            `citation` and more `tags`.

    Returns:
        What `check` returns.

    Raises:
        ValueError: For a folder that holds something, a card without licence or with unknown entries, a model that its
            name does not rebuild, or weights or logits that are not finite.
    """
    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"folder={str(target)!r} holds something; choose a new one")
    _check_card(card)
    network: Any = copy.deepcopy(model).eval()
    network.to("cpu", memory_format=torch.contiguous_format)
    name = network.pretrained_cfg["architecture"]
    if name not in our_models():
        raise ValueError(f"model={name!r} is none of this package's")
    check_values(network.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / "folder"
        save_for_hf(network, str(part), safe_serialization=True)
        (part / CONFIG).write_text(json.dumps(_config(part, network, card), indent=2) + "\n", encoding="utf-8")
        found = check(part)
        (part / CARD).write_text(_card(network, card, found), encoding="utf-8")
        _reload(part, network)
        if target.exists():
            target.rmdir()
        shutil.move(part, target)
    return found


def _check_card(card: Mapping[str, Any]) -> None:
    unknown = sorted(card.keys() - CARD_ENTRIES)
    if unknown:
        raise ValueError(f"card has no entry {', '.join(unknown)}; it may have {', '.join(sorted(CARD_ENTRIES))}")
    if card.get("license") not in LICENSES:
        raise ValueError(f"card['license']={card.get('license')!r} must be one of {', '.join(LICENSES)}")
    if card["license"] == "other" and not (card.get("license_name") and card.get("license_link")):
        raise ValueError("card['license']='other' needs license_name and license_link")


def _config(folder: Path, network: Any, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's config with what is wrong in it mended."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    args, cfg = config.get("model_args", {}), config["pretrained_cfg"]
    odd = {key: value for key, value in args.items() if key not in MODEL_ARGS}
    if odd:
        raise ValueError(f"model was built with {odd}, which {config['architecture']} alone does not say")
    args.pop("num_classes", None)  # transformers would get it twice
    # timm before 1.0.31 leaves what the name's own config says of classes, channels and the size of the image.
    cfg["num_classes"] = network.num_classes
    if network.in_chans != cfg["input_size"][0]:
        cfg["input_size"] = [network.in_chans, *cfg["input_size"][1:]]
        cfg |= {key: [sum(cfg[key]) / len(cfg[key])] for key in ("mean", "std")}
    if cfg.get("fixed_input_size"):
        cfg["input_size"] = [network.in_chans, *network.patch_embed.img_size]
    if network.in_chans != 3:
        args["in_chans"] = network.in_chans
    if args:
        config["model_args"] = args
    cfg["license"] = card["license"]  # not that of other weights, nor their tag
    cfg.pop("tag", None)
    meta = build_meta(config)
    check_header(folder, meta)  # says what is wrong with weights that no image would pass
    if affordable(meta, cfg["input_size"]):
        config["probe"] = {"seed": SEED, "logits": probe(network, cfg["input_size"])}
    return config


def _card(network: Any, card: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the model card: the Hub's metadata, then what a reader wants to know."""
    cfg, name = network.pretrained_cfg, found["architecture"]
    metrics = card.get("metrics", {})
    results = [
        EvalResult("image-classification", card.get("dataset", "unknown"), card.get("dataset", "unknown"), key, value)
        for key, value in metrics.items()
    ]
    data = ModelCardData(
        license=card["license"],
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "timm-mobilevit-zoo", *card.get("tags", ())],
        datasets=[card["dataset"]] if card.get("dataset") else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    size = " x ".join(map(str, cfg["input_size"][1:]))
    facts = [f"- {found['params'] / 1e6:.2f} M parameters, {found['num_classes']} classes, {size} pixels"]
    facts += [f"- {label}: {card[key]}" for label, key in (("Data", "dataset"), ("Source", "source")) if card.get(key)]
    facts += [f"- {key}: {value}" for key, value in metrics.items()]
    if cfg.get("paper_name"):
        facts.append(f"- Paper: {cfg['paper_name']} ({cfg.get('paper_ids')})")
    text = [f"---\n{data.to_yaml()}\n---", f"# {name}", card.get("description", ""), "\n".join(facts)]
    text.append(f"""```python
import timm

import timm_mobilevit_zoo  # registers {name}

model = timm.create_model("hf-hub:OWNER/REPOSITORY", pretrained=True).eval()
```""")
    if card.get("citation"):
        text.append(f"```bibtex\n{card['citation'].strip()}\n```")
    return "\n\n".join(filter(None, text)) + "\n"


def _reload(folder: Path, network: Any) -> None:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    ours, theirs = network.state_dict(), again.state_dict()
    odd = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    if odd:
        raise ValueError(f"{len(odd)} tensors do not reload bit for bit, as {odd[0]}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
