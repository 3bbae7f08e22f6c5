"""Folders of weights, checked and written."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from timm_mobilevit_zoo.common.files import appearing, digests
from timm_mobilevit_zoo.models.copies import copied, unwrapped
from timm_mobilevit_zoo.models.loading import label_list, read_by
from timm_mobilevit_zoo.models.names import our_models, own_name
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS, package_configs
from timm_mobilevit_zoo.models.probe import SEED, affordable, gmacs, probe
from timm_mobilevit_zoo.models.saving import mended
from timm_mobilevit_zoo_cli.checks import new_folder
from timm_mobilevit_zoo_cli.licences import check_card

from .card import CARD, card_text
from .checks import (
    build_meta,
    check_config,
    check_files,
    check_probe,
    check_values,
    hub_probe,
)
from .reading import read_config, read_weights

__all__ = ["Content", "check", "check_content", "export", "read_content"]


def check(folder: str | Path, *, architectures: Collection[str] | None = None) -> dict[str, Any]:
    """Check a folder of weights, in the order in which it could do harm: files, config, sizes, header, values, probe.

    The network of the config is first built without memory, and only names and shapes of the weights are read until
    they are known to fit. If the config has a probe, the logits of one known image, these are recomputed; weights that
    the package's hub configs name must give the logits recorded there. It cannot check whether the weights are any
    good, or whose they are.

    Args:
        folder: Folder with `model.safetensors` and `config.json`.
        architectures: Names that it may have; those of this package if not given.

    Returns:
        The `architecture`, its `num_classes` and `params`, and the `sha256` of both files.

    Raises:
        Refused: A `ValueError` that names the file, the entry and what would be right.
    """
    path = Path(folder)
    check_files(path)
    return check_content(path, architectures)


def check_content(path: Path, architectures: Collection[str] | None = None) -> dict[str, Any]:
    """Check all but what else lies in the folder: in the Hub's cache, files are links."""
    return read_content(path, our_models() if architectures is None else architectures).found


class Content(NamedTuple):
    """What a folder of weights holds, read once and checked."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    found: dict[str, Any]  # what `check` returns


def read_content(path: Path, architectures: Collection[str]) -> Content:
    """Return what a folder holds, of which everything has been looked at that `check` looks at in its two files."""
    data = read_config(path)
    config = check_config(data, architectures)
    model = build_meta(config)
    tensors, digest = read_weights(path / WEIGHTS, model)
    check_values(tensors)
    sha256 = {CONFIG: digests(data)["sha256"], WEIGHTS: digest}
    for told, logits in _told(config, digest):
        check_probe(config, model, tensors, logits, told)
    count = sum(parameter.numel() for parameter in model.parameters())
    found = {"architecture": config["architecture"], "num_classes": config["num_classes"], "params": count}
    return Content(config, tensors, found | {"sha256": sha256})


@read_by
def read_any(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of a folder, of this package's networks or timm's, checked."""
    content = read_content(folder, timm.list_models())
    return content.config, content.tensors


def _told(config: Mapping[str, Any], weights: str) -> list[tuple[str, list[float]]]:
    """Return who tells of these weights what logits the seeded image has."""
    told = [(CONFIG, config["probe"]["logits"])] if "probe" in config else []
    for (name, tag), (published, pinned) in package_configs().items():
        same = published.get("input_size") == config["pretrained_cfg"].get("input_size")
        if same and own_name(name) == config["architecture"] and pinned and pinned.sha256[WEIGHTS] == weights:
            where, found = f"the hub config of {name}.{tag}", published.get("probe")
            if found and found.get("weights") == "published":  # and not yet that of the seeded network
                told.append((where, hub_probe(published, "published", where)))
    return told


def export(model: nn.Module, folder: str | Path, *, card: Mapping[str, Any], label_names: Any = None) -> dict[str, Any]:
    """Write a model's weights, config and card to a folder, check it, and reload it bit for bit.

    The folder appears only when all of that has held. The model is not changed; it may be on any device, in any memory
    format, and in the wrappers of DataParallel, torch.compile and their kind, of which nothing is written. What
    parametrisations compute is written as plain weights. The config also tells a probe, the logits of one known image,
    where its size makes that cheap.

    Args:
        model: One of this package's models, as `timm.create_model` made it and perhaps trained.
        folder: New, or empty.
        card: `license`, an identifier of the Hub's in any case (with `license_name` and `license_link` for `other`).
            And what there is of `description`, `dataset`, `metrics` (name to value), `source` (where the weights come
            from), `citation` and more `tags`.
        label_names: Of the classes: a sequence, an array, a mapping from index to name or from name to index; those in
            `model.pretrained_cfg` where not given.

    Returns:
        What `check` returns.

    Raises:
        ValueError: For a folder that holds something, a card without licence or with unknown entries, what is no model
            of this package, a model that its name does not rebuild (with another head, say), label names that are not
            one a class, tensors that share memory, or weights or logits that are not finite.
    """
    target = new_folder(folder, "folder")
    check_card(card)
    card = {**card, "license": card["license"].lower()}  # as the Hub spells it
    model = unwrapped(model)
    _check_model(model)
    network = _plain_copy(model)
    _mend_classes(network, label_names)
    check_values(network.state_dict())
    with appearing(target) as part:
        save_for_hf(network, str(part), safe_serialization=True)
        (part / WEIGHTS).chmod((part / CONFIG).stat().st_mode)  # newer safetensors lets nobody else read its files
        config = _config(part, network, card)
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        found = check(part)
        cost = gmacs(build_meta(config), config["pretrained_cfg"]["input_size"])
        (part / CARD).write_text(card_text(config, card, found, cost), encoding="utf-8")
        _reload(part, network)
    return found


def _plain_copy(model: nn.Module) -> Any:
    """Return a copy on the CPU, in evaluation mode, whose weights are plain tensors."""
    return copied(model).eval().to("cpu", memory_format=torch.contiguous_format)


def _check_model(model: Any) -> None:
    """Refuse what cannot be exported as it is, by what to do about it."""
    kind = type(model).__name__
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(model, nn.Module) or not cfg or not hasattr(model, "num_classes"):
        raise ValueError(f"model={kind} is not a timm classifier; give one as timm.create_model returned it")
    if cfg["architecture"] not in our_models():
        raise ValueError(f"model={cfg['architecture']!r} is not one of this package's")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"model={cfg['architecture']!r} is on the meta device: it has no weights")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(parameter), name)) != name:
            raise ValueError(f"model={cfg['architecture']!r} shares {name} with {other}; give each its own tensor")


def _mend_classes(network: Any, label_names: Any) -> None:
    """Make a network that is a copy say how many classes its head has, and what they are called."""
    cfg = network.pretrained_cfg
    names = cfg.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        head = network.get_submodule(name)
        if not isinstance(head, (nn.Linear, nn.Identity)):
            raise ValueError(
                f"model={cfg['architecture']!r} has a {type(head).__name__} for its head, {name}; its name alone "
                "rebuilds one linear layer there"
            )
        if isinstance(head, nn.Linear):
            network.num_classes = head.out_features
    told = cfg.get("label_names") if label_names is None else label_names
    cfg.pop("label_names", None)
    if told is not None:
        cfg["label_names"] = label_list(told, network.num_classes)
    cfg["num_classes"] = network.num_classes  # or timm would take the names for another network's


def _config(folder: Path, network: Any, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's config with what is wrong in it mended."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config = mended(config, network)
    cfg = config["pretrained_cfg"]
    cfg["license"] = card["license"]  # not that of other weights, nor their tag
    cfg.pop("tag", None)
    meta = build_meta(config)
    read_weights(folder / WEIGHTS, meta)  # says what is wrong with weights that no image would pass
    if affordable(meta, cfg["input_size"]):
        config["probe"] = {"seed": SEED, "logits": probe(network, cfg["input_size"])}
    return config


def _reload(folder: Path, network: Any) -> None:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    ours, theirs = network.state_dict(), again.state_dict()
    odd = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    if odd:
        raise ValueError(f"{len(odd)} tensors do not reload bit for bit, as {odd[0]}")
