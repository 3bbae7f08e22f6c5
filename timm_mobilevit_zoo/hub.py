"""Weights as folders, and their way to the Hugging Face Hub and back: written, checked, published, pinned.

A folder holds `model.safetensors`, `config.json` and a model card, `README.md`. It is what
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and what a repository on the Hub holds. The Hub carries
data only; a network is always built from this package.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from . import _push
from ._card import CARD, card_text, check_card, pushed_card
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
)
from ._names import our_models, own_name
from ._probe import SEED, affordable, gmacs, probe
from ._published import hub_probe, package_configs, pins
from ._remote import HubError, check_repo_id, check_revision, check_token, digests, fetch, resolve

__all__ = ["HubError", "Refused", "check", "export", "load", "pull", "push"]

FILES = (CONFIG, WEIGHTS, CARD)


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
    return _check(path, architectures)


def _check(path: Path, architectures: Collection[str] | None = None) -> dict[str, Any]:
    """Check all but what else lies in the folder: in the Hub's cache, files are links."""
    config = check_config(path, our_models() if architectures is None else architectures)
    model = build_meta(config)
    check_header(path, model)
    tensors = load_file(path / WEIGHTS)
    check_values(tensors)
    sha256 = {name: digests(path / name)["sha256"] for name in (CONFIG, WEIGHTS)}
    for told, logits in _told(config, sha256[WEIGHTS]):
        check_probe(config, model, tensors, logits, told)
    return {
        "architecture": config["architecture"],
        "num_classes": config["num_classes"],
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256,
    }


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
        ValueError: For a folder that holds something, a card without licence or with unknown entries, what is no model
            of this package (a wrapped one, say), a model that its name does not rebuild, tensors that share memory, or
            weights or logits that are not finite.
    """
    target = _new_folder(folder, "folder")
    check_card(card)
    _check_model(model)
    network: Any = copy.deepcopy(model).eval()
    network.to("cpu", memory_format=torch.contiguous_format)
    check_values(network.state_dict())
    with _appearing(target) as part:
        save_for_hf(network, str(part), safe_serialization=True)
        (part / WEIGHTS).chmod((part / CONFIG).stat().st_mode)  # newer safetensors lets nobody else read its files
        config = _config(part, network, card)
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        found = check(part)
        cost = gmacs(build_meta(config), config["pretrained_cfg"]["input_size"])
        (part / CARD).write_text(card_text(config, card, found, cost), encoding="utf-8")
        _reload(part, network)
    return found


def load(
    model: str,
    *,
    revision: str | None = None,
    sha256: Mapping[str, str] | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **kwargs: Any,
) -> Any:
    """Return a model with weights from the Hub, of one commit and checked as `check` checks a folder.

    What is in the cache is used, and then no request is made. A file that is damaged there is downloaded once more.

    Args:
        model: Repository, `owner/name`; or a registered name whose weights are published.
        revision: Full commit id of the repository. A name brings its own.
        sha256: Digests of `config.json` and `model.safetensors`, or of one of them. Without them a file has to be what
            the Hub says that it is. A name brings its own.
        cache_dir: Where the Hub's files are cached; the client's own place where not given.
        token: As for `huggingface_hub`; the one of `hf auth login` or `HF_TOKEN` where not given.
        local_files_only: Make no request.
        **kwargs: More arguments of `timm.create_model`.

    Raises:
        ValueError: For a name without published weights, or a repository without a full commit id.
        HubError: If the Hub cannot be reached, or does not give the files.
        Refused: For what `check` refuses, and for a file with another digest.
    """
    repo_id, revision, sha256 = _pinned(_name(model), revision, sha256)
    folder = fetch(repo_id, revision, sha256, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    _check(folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def pull(
    model: str,
    *,
    revision: str = "",
    output: str = "",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> dict[str, Any]:
    """Download and check weights, into the cache or a folder, and tell the commit and digests to pin.

    Args:
        model: Repository, owner/name; or a registered name whose weights are published.
        revision: Branch, tag or commit id; main where not given. A name brings its own.
        output: Folder to write them to, new or empty; the Hub's cache alone where not given.
        cache_dir: Where the Hub's files are cached; the client's own place where not given.
        token: As for `huggingface_hub`.

    Returns:
        What `check` returns, with `repo_id`, `revision` (the full commit id) and `path`.

    Raises:
        ValueError: For a name without published weights, or an output that holds something.
        HubError: If the Hub cannot be reached, or does not give the files.
        Refused: For what `check` refuses.
    """
    target = _new_folder(output, "output") if output else None
    sha256 = None
    if "/" in _name(model):
        repo_id = model
        revision = resolve(repo_id, revision or "main", token)
    else:
        repo_id, revision, sha256 = _pinned(model, revision or None, None)
    folder = fetch(repo_id, revision, sha256, card=True, cache_dir=cache_dir, token=token)
    found = _check(folder)
    if target is not None:
        with _appearing(target) as part:
            for name in FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, part / name)
            check(part)
    return found | {"repo_id": repo_id, "revision": revision, "path": str(output or folder)}


def push(
    folder: str | Path,
    repo_id: str,
    *,
    dry_run: bool = True,
    private: bool = True,
    branch: str = "main",
    message: str = "",
    token: str | bool | None = None,
) -> dict[str, Any]:
    """Check a folder of weights and tell what a push would do; do it where that is asked.

    A push is one commit, on top of the one that was looked at: of config, weights and card, whose example gets the
    repository's name, and without the pickles that were there. Whatever else the folder holds stays where it is.

    Args:
        folder: As `export` or `convert` wrote it.
        repo_id: Repository, owner/name; it is created if need be.
        dry_run: Change nothing on the Hub.
        private: Make a new repository private, and refuse one that is public already.
        branch: Branch to commit to.
        message: Of the commit; "Add" and the name of the network where not given.
        token: As for `huggingface_hub`; the one of `hf auth login` or `HF_TOKEN` where not given.

    Returns:
        The plan: `endpoint`, `account`, `repo_id`, `exists`, `private`, `branch` and its `parent` commit; `files`, by
        name the `size`, the `sha256` and whether it is `new`, `changed` or the `same`; `delete`, the pickles. After a
        push `revision` and `sha256` are what `load` wants; before, `revision` is None.

    Raises:
        ValueError: For a repository that is no `owner/name`.
        HubError: If the Hub cannot be reached, does not allow it, or has changed meanwhile.
        Refused: For what `check` refuses, a card without its licence, a public repository that was meant to be
            private, or weights that arrived as others.
    """
    path = Path(folder)
    check_repo_id(repo_id)
    check_token(token)
    found = check(path)
    files: dict[str, bytes | Path] = {CONFIG: (path / CONFIG).read_bytes(), WEIGHTS: path / WEIGHTS}
    files[CARD] = pushed_card(path, repo_id)
    plan = _push.plan(repo_id, files, private=private, branch=branch, token=token)
    if plan["sha256"] != found["sha256"]:
        raise Refused(f"{path} has changed since it was checked")
    if dry_run:
        return plan
    return _push.commit(plan, files, message=message or f"Add {found['architecture']}", token=token)


def _check_model(model: Any) -> None:
    """Refuse what cannot be exported as it is, by what to do about it."""
    kind = type(model).__name__
    inner = next(
        (name for name in ("module", "_orig_mod") if isinstance(model, nn.Module) and hasattr(model, name)), ""
    )
    if inner:
        raise ValueError(f"model={kind} wraps the model; give it as model.{inner}")
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(model, nn.Module) or not cfg or not hasattr(model, "num_classes"):
        raise ValueError(f"model={kind} is no classifier of timm's; give one as timm.create_model returned it")
    if cfg["architecture"] not in our_models():
        raise ValueError(f"model={cfg['architecture']!r} is none of this package's")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"model={cfg['architecture']!r} is on the meta device: it has no weights")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(parameter), name)) != name:
            raise ValueError(f"model={cfg['architecture']!r} shares {name} with {other}; give each its own tensor")


def _new_folder(folder: str | Path, argument: str) -> Path:
    if not isinstance(folder, (str, Path)) or not str(folder) or "\0" in str(folder):
        raise ValueError(f"{argument}={folder!r} must be the path of a folder, new or empty")
    target = Path(os.path.abspath(folder))
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise ValueError(f"{argument}={str(folder)!r} holds something that is no folder; choose a new one")
    if target == Path.cwd():
        raise ValueError(f"{argument}={str(folder)!r} is the current folder; choose a new one")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{argument}={str(folder)!r} holds something; choose a new one")
    return target


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes the target only if all goes well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / "folder"
        part.mkdir()
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)  # or fail, where something has appeared there meanwhile


def _name(model: Any) -> str:
    if not isinstance(model, str):
        raise ValueError(f"model={model!r} must be a repository, 'owner/name', or a registered name")
    return model


def _pinned(
    model: str, revision: str | None, sha256: Mapping[str, str] | None
) -> tuple[str, str, Mapping[str, str] | None]:
    """Return repository, commit and digests that a name or a repository means."""
    if "/" in model:
        check_repo_id(model)
        check_revision(revision)
        return model, str(revision), sha256
    if not timm.is_model(model):
        raise ValueError(f"model={model!r} is neither registered nor a repository, 'owner/name'")
    if revision or sha256:
        raise ValueError(f"revision={revision!r}: {model} brings its own; give a repository, 'owner/name'")
    cfg: Any = timm.get_pretrained_cfg(model)
    found = pins(cfg.architecture, cfg.tag)
    if found is None:
        raise ValueError(f"model={model!r} has no published weights")
    return found.repo_id, found.revision, found.sha256


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
    # Of a trained network, where timm finds them in both places and transformers in this one.
    config |= {key: cfg.pop(key) for key in ("label_names", "label_descriptions") if key in cfg}
    cfg["license"] = card["license"]  # not that of other weights, nor their tag
    cfg.pop("tag", None)
    meta = build_meta(config)
    check_header(folder, meta)  # says what is wrong with weights that no image would pass
    if affordable(meta, cfg["input_size"]):
        config["probe"] = {"seed": SEED, "logits": probe(network, cfg["input_size"])}
    return config


def _reload(folder: Path, network: Any) -> None:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    ours, theirs = network.state_dict(), again.state_dict()
    odd = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    if odd:
        raise ValueError(f"{len(odd)} tensors do not reload bit for bit, as {odd[0]}")
