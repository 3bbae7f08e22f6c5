"""One commit on the Hugging Face Hub: first what it would be, then done, then compared with what arrived."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import RepositoryNotFoundError

from timm_mobilevit_zoo import __version__
from timm_mobilevit_zoo.common.files import digests
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS

from .checks import Refused
from .remote import HubError, endpoint, in_words, is_commit

__all__ = ["commit", "plan"]

STALE = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")  # pickles that a push replaces


def plan(
    repo_id: str, files: Mapping[str, bytes | Path], *, private: bool, branch: str, token: str | bool | None
) -> dict[str, Any]:
    """Return what `hub.push` tells of a push of these files, by name; nothing is changed."""
    if token is False:
        raise HubError("token=False: a push needs an account's token")
    if not branch or is_commit(branch):
        raise ValueError(f"branch={branch!r} must be the name of a branch")
    api = _api(token)
    with in_words("your account", token):
        me = api.whoami()
        _check_rights(me, repo_id)
    with in_words(repo_id, token):
        try:
            info = api.model_info(repo_id, revision=branch)
        except RepositoryNotFoundError:
            info = None
        there = _files(api, repo_id, str(info.sha)) if info else {}
    if info is None and branch != "main":
        raise ValueError(f"branch={branch!r}: {repo_id} does not exist yet, and its first commit goes to main")
    if info is not None and private and not info.private:
        raise ValueError(
            f"private=True, but {repo_id} is public already: whoever sees it would see the weights. "
            "`private=False` allows that"
        )
    listed = {}
    for name, data in files.items():
        own, other = digests(data), there.get(name)
        state = "new" if other is None else "same" if _digest(other) in own.values() else "changed"
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        listed[name] = {"size": size, "sha256": own["sha256"], "state": state}
    return {
        "endpoint": endpoint(),
        "account": me["name"],
        "repo_id": repo_id,
        "exists": info is not None,
        "private": private if info is None else bool(info.private),
        "branch": branch,
        "parent": info and info.sha,
        "files": listed,
        "delete": sorted(name for name in there if name.lower().endswith(STALE)),
        "revision": None,
        "sha256": {name: listed[name]["sha256"] for name in (CONFIG, WEIGHTS)},
    }


def commit(
    planned: Mapping[str, Any], files: Mapping[str, bytes | Path], *, message: str, token: str | bool | None
) -> dict[str, Any]:
    """Do what was planned, on top of the commit that the plan saw, and compare the digests of what arrived."""
    api, repo_id, revision = _api(token), planned["repo_id"], planned["parent"]
    if not planned["exists"]:
        with in_words(f"creating {repo_id}", token):
            api.create_repo(repo_id, private=planned["private"])  # refused if it is there by now, with what is in it
            info = api.model_info(repo_id)
        if planned["private"] and not info.private:
            raise HubError(f"{repo_id} was to be private, but somebody has made it public; nothing was pushed")
        revision = info.sha
    if planned["delete"] or any(file["state"] != "same" for file in planned["files"].values()):
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        deletions = [CommitOperationDelete(path_in_repo=name) for name in planned["delete"]]
        with in_words(f"pushing to {repo_id}", token):
            revision = api.create_commit(
                repo_id,
                [*operations, *deletions],
                commit_message=message,
                revision=planned["branch"],
                parent_commit=revision,
            ).oid
    if not is_commit(revision):
        raise HubError(f"pushing to {repo_id}: the Hub calls the commit {str(revision)[:80]!r}")
    with in_words(f"comparing {repo_id}", token):
        there = _files(api, repo_id, revision)
    for name, file in planned["files"].items():
        arrived = _digest(there[name]) if name in there else "missing"
        if arrived != file["sha256"] and arrived != digests(files[name])["blob"]:
            raise Refused(
                f"{name} of {repo_id} at {revision} is {arrived} on the Hub, not {file['sha256']}: do not use it"
            )
    return {**planned, "revision": revision}


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name="timm-mobilevit-zoo", library_version=__version__)


def _check_rights(me: Mapping[str, Any], repo_id: str) -> None:
    """Refuse what the Hub would refuse only after the upload."""
    role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
    owners = [me["name"], *(org["name"] for org in me.get("orgs") or ())]
    if role == "read":
        raise HubError(f"the token of {me['name']} is read-only; pushing needs one that may write")
    if role == "write" and repo_id.split("/")[0].lower() not in map(str.lower, owners):
        raise HubError(f"{me['name']} may push to repositories of {', '.join(owners)}, not to {repo_id}")


def _files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _digest(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id
