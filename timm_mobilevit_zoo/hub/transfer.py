"""Weights on their way to the Hugging Face Hub and back."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from timm_mobilevit_zoo.common.files import appearing
from timm_mobilevit_zoo.common.files import digests as digests_of
from timm_mobilevit_zoo.models.loading import build
from timm_mobilevit_zoo.models.names import our_models, unknown
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS, pins
from timm_mobilevit_zoo.models.places import Place, place_of
from timm_mobilevit_zoo_cli.checks import need_card, new_folder
from timm_mobilevit_zoo_cli.licences import CARD_WORDS

from . import commit
from .card import CARD, pushed_card
from .checks import Refused, check_files
from .download import fetch_weights
from .folder import check, check_content, export, read_content
from .record import add_card
from .remote import check_repo_id, check_revision, check_token, fetch_checked, resolve

__all__ = ["load", "pull", "push"]

FILES = (CONFIG, WEIGHTS, CARD)


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
    if (place := _place(_name(model))) and not (revision or sha256):
        fetch_weights(place, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
        return timm.create_model(model, pretrained=True, cache_dir=cache_dir, **kwargs)
    repo_id, revision, sha256 = _pinned(model, revision, sha256)
    folder, found = fetch_checked(
        repo_id, revision, sha256, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    content = read_content(folder, our_models())
    _compare(content.found, found, folder)
    return build(content.config, content.tensors, **kwargs)


def pull(
    model: str,
    *,
    revision: str = "",
    output: str = "",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> dict[str, Any]:
    """Download weights into the cache or a folder, check them, and return the commit and digests to pin.

    Args:
        model: Repository, owner/name; or a registered name whose weights are published.
        revision: Branch, tag or commit id; main if not given. A registered name has its own.
        output: Folder to write the weights to, new or empty; only the Hub's cache if not given.
        cache_dir: Where the Hub's files are cached; the client's default if not given.
        token: As for `huggingface_hub`.

    Returns:
        What `check` returns, with `repo_id`, `revision` (the full commit id) and `path`.

    Raises:
        ValueError: For a name without published weights, or an output that holds something.
        HubError: If the Hub cannot be reached, or does not give the files.
        Refused: For what `check` refuses.
    """
    target = new_folder(output, "output") if output else None
    sha256 = None
    if (place := _place(_name(model))) and not revision:
        return _pull_file(model, place, target, cache_dir, token)
    if "/" in model:
        repo_id = model
        revision = resolve(repo_id, revision or "main", token)
    else:
        repo_id, revision, sha256 = _pinned(model, revision or None, None)
    folder, digests = fetch_checked(repo_id, revision, sha256, card=True, cache_dir=cache_dir, token=token)
    if target is None:
        found = check_content(folder)
        _compare(found, digests, folder)
    else:
        with appearing(target) as part:
            for name in FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, part / name)
            found = check(part)
            _compare(found, digests, folder)
    return found | {"repo_id": repo_id, "revision": revision, "path": str(output or folder)}


def push(
    folder: str | Path,
    repo_id: str,
    *,
    license: str = "",
    license_name: str = "",
    license_link: str = "",
    dataset: str = "",
    source: str = "",
    description: str = "",
    dry_run: bool = True,
    private: bool = True,
    branch: str = "main",
    message: str = "",
    token: str | bool | None = None,
) -> dict[str, Any]:
    """Check a folder of weights and return what a push would do, or with `dry_run=False` push it.

    A push is one commit, on top of the one that was looked at. It has the config, the weights and the card, with the
    repository's name in the card's example, and removes the repository's pickles. Other files in the folder are left
    alone. In a folder without a card, as `train` leaves it, the card is written first, from the arguments and from the
    folder: its classes and, for a run, the accuracy and the settings. It may be edited before the push.

    Args:
        folder: Folder of weights, as written by train, convert or pull.
        repo_id: Repository, owner/name; it is created if need be.
        license: Licence of the weights, for a folder without a card: mit, apache-2.0, cc-by-nc-4.0 and so on, or other.
        license_name: For the licence other: its name, such as my-license-1.0.
        license_link: For the licence other: its address.
        dataset: Data that the weights were trained on; its name on the Hub if it is there.
        source: Where the weights come from.
        description: Text for the model card.
        dry_run: Change nothing on the Hub.
        private: Make a new repository private, and refuse an existing public one.
        branch: Branch to commit to.
        message: Commit message; "Add" and the name of the network if not given.
        token: As for `huggingface_hub`; the one of `hf auth login` or `HF_TOKEN` if not given.

    Returns:
        The plan: `endpoint`, `account`, `repo_id`, `exists`, `private`, `branch` and its `parent` commit; `files`, by
        name the `size`, the `sha256` and whether it is `new`, `changed` or the `same`; `delete`, the pickles; `card`,
        the card's path if it was written now, or None. After a push `revision` and `sha256` are the arguments for
        `load`; before, `revision` is None.

    Raises:
        ValueError: For a repository that is not `owner/name`, and for a folder without a card if no licence is given.
        HubError: If the Hub cannot be reached, does not allow it, or has changed meanwhile.
        Refused: For what `check` refuses, a card without its licence or with others than the words given, a public
            repository that was meant to be private, or weights that arrived as others.
    """
    given, path = dict(locals()), Path(folder)
    check_repo_id(repo_id)
    check_token(token)
    check_files(path)
    need_card(path, license)
    content = read_content(path, our_models())
    found = content.found
    card = add_card(path, content.config, found, {name: given[name] for name in CARD_WORDS if given[name]})
    files: dict[str, bytes | Path] = {CONFIG: (path / CONFIG).read_bytes(), WEIGHTS: path / WEIGHTS}
    files[CARD] = pushed_card(path, repo_id)
    plan = commit.plan(repo_id, files, private=private, branch=branch, token=token)
    if plan["sha256"] != found["sha256"]:
        raise Refused(f"{path} has changed since it was checked")
    plan["card"] = card and str(card)
    if dry_run:
        return plan
    return commit.commit(plan, files, message=message or f"Add {found['architecture']}", token=token)


def _compare(found: Mapping[str, Any], wanted: Mapping[str, str], folder: Path) -> None:
    """Refuse what is not what was fetched: between the two, somebody may have written to the cache."""
    if found["sha256"] != wanted:
        raise Refused(f"{folder} has changed since its digests were compared")


def _name(model: Any) -> str:
    if not isinstance(model, str):
        raise ValueError(f"model={model!r} must be a repository, 'owner/name', or a registered name")
    return model


def _place(model: str) -> Place | None:
    """Return where another has the weights of a registered name, None without such a place."""
    if "/" in model or not timm.is_model(model):
        return None
    cfg: Any = timm.get_pretrained_cfg(model)
    return None if pins(cfg.architecture, cfg.tag) or model.partition(".")[0] not in our_models() else place_of(cfg)


def _pull_file(model: str, place: Place, target: Path | None, cache_dir: Any, token: Any) -> dict[str, Any]:
    """Download another's file, load it in its network, and write that as a folder of ours where one is given."""
    path = fetch_weights(place, cache_dir=cache_dir, token=token)
    network: Any = timm.create_model(model, pretrained=True, cache_dir=cache_dir)
    cfg = network.pretrained_cfg
    told = {"path": str(path), "sha256": {path.name: digests_of(path)["sha256"]}}
    if place.kind == "hub":
        told |= {"repo_id": place.repo_id, "revision": path.parents[place.file.count("/")].name}
    if target is not None:
        source = f"https://huggingface.co/{place.repo_id}" if place.repo_id else place.url
        stated = {"license": cfg["license"]} if cfg.get("license") else {}
        unstated = {"license": "other", "license_name": "none-stated", "license_link": cfg["origin_url"]}
        export(network, target, card={"source": source} | (stated or unstated))
        told["path"] = str(target)
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"architecture": cfg["architecture"], "num_classes": network.num_classes, "params": params} | told


def _pinned(
    model: str, revision: str | None, sha256: Mapping[str, str] | None
) -> tuple[str, str, Mapping[str, str] | None]:
    """Return repository, commit and digests that a name or a repository means."""
    if "/" in model:
        check_repo_id(model)
        check_revision(revision)
        return model, str(revision), sha256
    if not timm.is_model(model):
        raise ValueError(f"model={model!r} is neither a repository, owner/name, nor {unknown(model)}")
    if revision or sha256:
        raise ValueError(f"revision={revision!r}: {model} has its own; give a repository, 'owner/name'")
    cfg: Any = timm.get_pretrained_cfg(model)
    found = pins(cfg.architecture, cfg.tag)
    if found is None:
        raise ValueError(f"model={model!r} has no published weights")
    return found.repo_id, found.revision, found.sha256
