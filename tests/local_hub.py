"""A small Hugging Face Hub on 127.0.0.1 that huggingface_hub, timm, transformers and hf_xet take for the real one.

Model repositories, kept in memory. What clients can see is as on the Hub: routes, headers, error codes, ids of files,
permissions, and a second host ("cdn") for the content of large files, both ways. `LocalHub.faults` is a list of
dictionaries that make it misbehave, each `times` times (once if it does not say), after which it leaves the list:

    {"action": "truncate", "bytes": 1000, "match": r"\\.safetensors$", "method": "GET", "host": "cdn", "times": 2}

`match` is searched in the unquoted path. A condition that is left out fits every request that can show the fault.

    status      answer with this `status` and `message`
    hold        answer once the `gate` is opened
    headers     answer with these `headers` instead of the true ones
    lie         tell another sha256 for files in LFS (if nothing else is said, in answers about a tree or about paths)
    truncate    promise the whole body, send `bytes` of it, and close the connection
    corrupt     flip a bit of the body's byte at `offset`
    pieces      send `chunk` bytes at a time, and all but the first once the `gate`, if there is one, is opened
    no_range    send the whole file to a request for a part
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import fresh
import yaml
from hub_storage import GITATTRIBUTES, Commit, File, Repo, UnknownRevisionError, Xet

CARD_TYPES = {"license": (str, list), "tags": list, "library_name": str, "pipeline_tag": str, "model-index": list}
Tokens = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Request:
    host: str  # "hub" or "cdn"
    method: str
    path: str  # unquoted, without the query
    status: int
    account: str | None
    range: str | None


@dataclass
class Answer:
    body: Any  # bytes, or what becomes JSON
    status: int = 200
    headers: dict[str, Any] = field(default_factory=dict)


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, Any] = {}, **body: Any) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = Answer({"error": message, **body}, status, headers)


def read_card(file: File | None) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a README, and what is wrong with it."""
    text = file.data.decode(errors="replace") if file else ""
    found = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    try:
        card = (yaml.safe_load(found[1]) if found else None) or {}
    except yaml.YAMLError as error:
        return {}, [f"Invalid YAML: {error}"]
    if not isinstance(card, dict):
        return {}, ["The metadata must be a mapping"]
    wrong = [key for key, kind in CARD_TYPES.items() if key in card and not isinstance(card[key], kind)]
    return card, [f'"{key}" has the wrong type' for key in wrong]


class Gate:
    """Where a request stops until a test lets it go on; who waits longer than a client may take goes on, too."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        self._reached.set()
        self._open.wait(200)

    def reached(self) -> bool:
        return self._reached.wait(200)

    def open(self) -> None:
        self._open.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's own asks the name service for this machine's name


ROUTES: list[tuple[str, str, re.Pattern[str], Callable[..., Any]]] = []


def route(method: str, path: str, host: str = "hub") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """{repo} stands for two parts of the path, {path} for all that is left, any other name for one part."""
    path = path.replace("{repo}", "(?P<repo>[^/]+/[^/]+)").replace("{path}", "(?P<path>.+)")
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, host, pattern, function))
        return function

    return keep


class Handler(BaseHTTPRequestHandler):
    """One connection: each request goes to `answer`, then to a route, which returns JSON or an Answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    hub: "LocalHub"
    host: str

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients may go away
            super().handle()

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(100), 16):
            body += self.rfile.read(size)
            self.rfile.readline(10)
        self.rfile.readline(10)
        return body

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.where, self.body, self.account, self.role = unquote(url.path), self.read_body(), None, ""
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.fault = self.take_fault("status", "hold", "lie", "headers")
        if self.hub._stopped:
            self.close_connection = True
            return
        if self.fault.get("action") == "hold":
            self.fault["gate"].hold()
        try:
            with self.hub._lock:
                answer = self.routed(url.path)
            self.send(answer if isinstance(answer, Answer) else Answer(answer))
        except RefusedError as refused:
            self.send(refused.answer)
        except UnknownRevisionError as error:
            self.send(RefusedError(404, f"Invalid rev id: {error}", "RevisionNotFound").answer)
        except ConnectionError:
            raise
        except Exception as error:
            self.send(RefusedError(500, f"The local Hub has failed: {error!r}").answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def routed(self, path: str) -> Any:
        if token := self.headers.get("Authorization"):
            self.account, self.role = self.hub.tokens.get(token.removeprefix("Bearer "), (None, ""))
            if self.account is None:
                raise RefusedError(401, "Invalid credentials in Authorization header")
        if self.fault.get("action") == "status":
            raise RefusedError(self.fault["status"], self.fault.get("message", "Injected fault"))
        if self.host == "cdn" and self.query.get("signature") != self.hub._signature(self.where):
            raise RefusedError(403, "The address is not signed")
        wanted = (self.command.replace("HEAD", "GET"), self.host)
        for method, host, pattern, function in ROUTES:
            if (method, host) == wanted and (found := pattern.fullmatch(path)):
                return function(self, **{name: unquote(value) for name, value in found.groupdict().items()})
        raise RefusedError(404, "There is no such page")

    def send(self, answer: Answer) -> None:
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        kind = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json; charset=utf-8"
        status, headers, wanted = answer.status, answer.headers | self.fault.get("headers", {}), self.headers["Range"]
        ends = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if status == 200 and "ETag" in headers else None
        shows = ["truncate", "corrupt", "pieces"] if status == 200 and data and self.command != "HEAD" else []
        fault = self.take_fault(*shows, *(["no_range"] if ends else []))
        if ends and fault.get("action") != "no_range":
            start, size = int(ends[1]), len(data)
            data = data[start : int(ends[2]) + 1 if ends[2] else None]
            status = 206 if data else 416
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{size}" if data else f"bytes */{size}"
        self.hub.requests.append(Request(self.host, self.command, self.where, status, self.account, wanted))
        self.send_response(status)
        always = {"Content-Type": kind, "Content-Length": len(data), "Accept-Ranges": "bytes", "X-Request-Id": "local"}
        for name, value in {**always, **headers}.items():
            self.send_header(name, re.sub(r"[^ -~]", "?", str(value)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.get("action") == "corrupt":
            at = fault.get("offset", len(data) // 2)
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if fault.get("action") == "truncate":
            data, self.close_connection = data[: fault["bytes"]], True
        chunk = fault.get("chunk", 1 << 20)
        for start in range(0, len(data), chunk):
            self.wfile.write(data[start : start + chunk])
            if "gate" in fault:
                fault["gate"].hold()

    def take_fault(self, *actions: str) -> dict[str, Any]:
        with self.hub._lock:
            for place, fault in enumerate(self.hub.faults):
                match = fault.get("match", "/(tree|paths-info)/" if fault["action"] == "lie" else "")
                fits = fault.get("host", self.host) == self.host and fault.get("method", self.command) == self.command
                if fits and fault["action"] in actions and re.search(match, self.where):
                    left = fault.get("times", 1) - 1
                    self.hub.faults[place : place + 1] = [{**fault, "times": left}] if left > 0 else []
                    return fault
        return {}

    # What routes share

    def json(self) -> dict[str, Any]:
        form = "form-urlencoded" in self.headers.get("Content-Type", "")
        return dict(parse_qs(self.body.decode())) if form else json.loads(self.body or b"{}")

    def login(self) -> str:
        if self.account is None:
            raise RefusedError(401, "Invalid username or password.")
        return self.account

    def owns(self, namespace: str) -> bool:
        return self.account == namespace or self.account in self.hub._orgs.get(namespace, ())

    def check_write(self, namespace: str) -> None:
        if not self.owns(self.login() and namespace) or self.role != "write":
            raise RefusedError(403, f"This token of {self.account} ({self.role}) may not write to {namespace}")

    def read(self, repo_id: str) -> Repo:
        repo = self.hub._repos.get(repo_id)
        if repo is None or (repo.private and not self.owns(repo_id.split("/")[0])):
            # To strangers the Hub sends no code: clients guess it from the address, but only if that has https.
            known = self.account is not None
            raise RefusedError(404 if known else 401, "Repository not found", "RepoNotFound")
        return repo

    def write(self, repo_id: str) -> Repo:
        repo = self.read(repo_id)
        self.check_write(repo_id.split("/")[0])
        return repo

    def entries(self, commit: Commit) -> list[dict[str, Any]]:
        folders = {str(folder) for path in commit.files for folder in Path(path).parents if folder.name}
        found = [{"type": "directory", "path": p, "size": 0, "oid": File(p.encode()).oid} for p in folders]
        for path, file in commit.files.items():
            found.append({"type": "file", "path": path, "size": len(file.data), "oid": file.oid})
            if file.lfs:
                sha256 = file.sha256[::-1] if self.fault.get("action") == "lie" else file.sha256
                found[-1]["lfs"] = {"oid": sha256, "size": len(file.data), "pointerSize": len(file.blob)}
                found[-1] |= {"xetHash": self.hub.xet.hash(file)} if self.hub.xet else {}
        return sorted(found, key=lambda entry: entry["path"])

    # Accounts and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> Any:
        name, orgs = self.login(), [org for org, members in self.hub._orgs.items() if self.account in members]
        auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": self.role}}
        user = {"type": "user", "id": name, "name": name, "fullname": name, "auth": auth}
        return {**user, "orgs": [{"type": "org", "name": org} for org in orgs]}

    @route("POST", "/api/repos/create")
    def create(self) -> Any:
        wanted = self.json()
        namespace, name = wanted.get("organization") or self.login(), wanted["name"]
        self.check_write(namespace)
        answer = {"url": f"{self.hub.endpoint}/{namespace}/{name}", "name": f"{namespace}/{name}"}
        if self.hub.exists(answer["name"]):
            raise RefusedError(409, "You already created this model repo", **answer)
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.hub._create(answer["name"], private, self.login())
        return answer

    @route("GET", "/api/models/{repo}")
    @route("GET", "/api/models/{repo}/revision/{revision}")
    def info(self, repo: str, revision: str = "main") -> Any:
        found = self.read(repo)
        commit = found.resolve(revision)
        card = read_card(commit.files.get("README.md"))[0]
        tags = [*(card.get("tags") or []), card.get("library_name"), card.get("pipeline_tag")]
        tags += ["safetensors"] if any(path.endswith(".safetensors") for path in commit.files) else []
        tags += [f"license:{card['license']}"] if "license" in card else []
        siblings = []
        for entry in (entry for entry in self.entries(commit) if entry["type"] == "file"):
            siblings.append({"rfilename": entry["path"]})
            if "blobs" in self.query:
                siblings[-1] |= {"size": entry["size"], "blobId": entry["oid"]}
                if lfs := entry.get("lfs"):
                    siblings[-1]["lfs"] = {**lfs, "sha256": lfs["oid"]}
        dates = [past.date for past in found.history(commit)]
        answer = {"_id": repo, "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.id, "likes": 0}
        answer |= {"lastModified": dates[0], "createdAt": dates[-1], "private": found.private, "siblings": siblings}
        answer |= {"gated": False, "disabled": False, "downloads": 0, "tags": list(dict.fromkeys(filter(None, tags)))}
        answer |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        return answer | ({"cardData": card} if card else {})

    @route("GET", "/api/models/{repo}/tree/{revision}")
    @route("GET", "/api/models/{repo}/tree/{revision}/{path}")
    def tree(self, repo: str, revision: str, path: str = "") -> Any:
        prefix = f"{path}/" if path else ""
        entries = [e for e in self.entries(self.read(repo).resolve(revision)) if e["path"].startswith(prefix)]
        if path and not entries:
            raise RefusedError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        start, stop = int(self.query.get("cursor", 0)), int(self.query.get("cursor", 0)) + self.hub.page_size
        following = f"{self.hub.endpoint}{quote(self.where)}?{urlencode({**self.query, 'cursor': stop})}"
        return Answer(entries[start:stop], 200, {"Link": f'<{following}>; rel="next"'} if entries[stop:] else {})

    @route("POST", "/api/models/{repo}/paths-info/{revision}")
    def paths_info(self, repo: str, revision: str) -> Any:
        paths = self.json()["paths"]
        return [entry for entry in self.entries(self.read(repo).resolve(revision)) if entry["path"] in paths]

    @route("GET", "/api/models/{repo}/commits/{revision}")
    def commits(self, repo: str, revision: str) -> Any:
        past = self.read(repo).history(self.read(repo).resolve(revision))
        return [{"id": c.id, "title": c.title, "message": "", "date": c.date, "authors": c.authors} for c in past]

    @route("GET", "/api/models/{repo}/refs")
    def refs(self, repo: str) -> Any:
        kinds = {"branches": ("heads", self.read(repo).branches), "tags": ("tags", self.read(repo).tags)}
        return {"converts": []} | {
            kind: [{"name": name, "ref": f"refs/{part}/{name}", "targetCommit": sha} for name, sha in named.items()]
            for kind, (part, named) in kinds.items()
        }

    @route("POST", "/api/models/{repo}/(?P<kind>branch|tag)/{revision}")
    def create_ref(self, repo: str, kind: str, revision: str) -> Any:
        found, wanted = self.write(repo), self.json()
        start = (wanted.get("startingPoint") or "main") if kind == "branch" else revision
        named, name = (found.branches, revision) if kind == "branch" else (found.tags, wanted["tag"])
        if name in named:
            raise RefusedError(409, f"Reference already exists: {name}")
        named[name] = found.resolve(start).id
        return {}

    @route("DELETE", "/api/models/{repo}/(?P<kind>branch|tag)/{revision}")
    def delete_ref(self, repo: str, kind: str, revision: str) -> Any:
        found = self.write(repo)
        if (kind, revision) == ("branch", "main"):
            raise RefusedError(403, "The default branch cannot be deleted")
        if (found.branches if kind == "branch" else found.tags).pop(revision, None) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return {}

    # Uploads

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Any:
        errors = [{"message": error} for error in read_card(File(self.json()["content"].encode()))[1]]
        if errors:
            raise RefusedError(400, "Invalid metadata in README.md", errors=errors, warnings=[])
        return {"errors": [], "warnings": []}

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def preupload(self, repo: str, revision: str) -> Any:
        found = self.write(repo)
        commit, files = found.resolve(revision), []
        for new in self.json()["files"]:
            mode = "lfs" if found.tracks(new["path"], new["size"], commit.files) else "regular"
            files.append({"path": new["path"], "uploadMode": mode, "shouldIgnore": False})
            if old := commit.files.get(new["path"]):
                files[-1]["oid"] = old.sha256 if old.lfs else old.oid
        return {"files": files, "commitOid": commit.id}

    @route("POST", r"/{repo}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo: str) -> Any:
        found, objects = self.write(repo), [{"oid": o["oid"], "size": o["size"]} for o in self.json()["objects"]]
        for item in (item for item in objects if item["oid"] not in found.objects):
            verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
            item["actions"] = {"upload": {"href": self.hub._signed(f"/{repo}/{item['oid']}")}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/{repo}/{sha256}", host="cdn")
    def lfs_upload(self, repo: str, sha256: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise RefusedError(400, "The content has another sha256")
        self.hub._repos[repo].objects[sha256] = self.body
        return Answer(b"", 200, {"ETag": f'"{sha256}"'})

    @route("POST", r"/{repo}\.git/info/lfs/verify")
    def lfs_verify(self, repo: str) -> Any:
        if len(self.write(repo).objects.get(self.json()["oid"], b"")) != self.json()["size"]:
            raise RefusedError(404, "The object was not uploaded, or has another size")
        return {}

    @route("GET", "/api/models/{repo}/xet-(?P<kind>read|write)-token/{revision}")
    def xet_token(self, repo: str, kind: str, revision: str) -> Any:
        commit, xet = (self.read if kind == "read" else self.write)(repo).resolve(revision), self.hub.xet
        if xet is None:
            raise RefusedError(404, "There is no Xet storage here")
        store = xet.put(file for file in commit.files.values() if file.lfs) if kind == "read" else xet.store("write")
        url, token, expiry = xet.access(store).values()
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": expiry}
        return Answer({"casUrl": url, "accessToken": token, "exp": expiry}, 200, headers)

    @route("POST", "/api/models/{repo}/commit/{revision}")
    def commit(self, repo: str, revision: str) -> Any:
        found, head = self.write(repo), self.read(repo).resolve(revision)
        if revision not in found.branches:
            raise RefusedError(400, f"Not a branch: {revision}")
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        if not head.id.startswith(header["value"].get("parentCommit") or ""):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            path = value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
            if key == "file":
                files[path] = File(base64.b64decode(value["content"]))
                if path == "README.md" and read_card(files[path])[1]:
                    raise RefusedError(400, "Invalid metadata in README.md")
            elif key == "lfsFile":
                data = found.objects.get(value["oid"])
                if data is None and self.hub.xet:
                    data = self.hub.xet.get(value["oid"], value["size"])
                if data is None or hashlib.sha256(data).hexdigest() != value["oid"]:
                    raise RefusedError(400, f"The content of {path} was not uploaded")
                files[path] = File(data, lfs=True)
            else:
                gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]
                if not gone:
                    raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {p: file for p, file in files.items() if p not in gone}
        new = found.commit(revision, files, header["value"]["summary"], self.login())
        return {"success": True, "commitOid": new, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{new}"}

    # Downloads

    @route("GET", "/{repo}/resolve/{revision}/{path}")
    def resolve(self, repo: str, revision: str, path: str) -> Any:
        commit = self.read(repo).resolve(revision)
        file, headers = commit.files.get(path), {"X-Repo-Commit": commit.id}
        if file is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
        if not file.lfs:
            return Answer(file.data, 200, {**headers, "ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        headers |= {"Location": self.hub._signed(f"/{repo}/{file.sha256}/{path}")}
        if self.hub.xet:
            token = f"{self.hub.endpoint}/api/models/{repo}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": self.hub.xet.hash(file), "X-Xet-Refresh-Route": token}
        return Answer(b"Found", 302, headers)

    @route("GET", "/{repo}/{sha256}/{path}", host="cdn")
    def lfs_download(self, repo: str, sha256: str, path: str) -> Any:
        return Answer(self.hub._repos[repo].objects[sha256], 200, {"ETag": f'"{sha256}"'})


class LocalHub:
    """`with LocalHub(folder, {"hf_test_writer": ("ada", "write")}) as hub`: clients go to `hub.endpoint`.

    Args:
        folder: where Xet stores go; nothing else is on disk.
        tokens: for each token its account and "read" or "write".
        xet: give Xet addresses to the files in LFS; needs hf_xet in this process, too.
        orgs: for each organisation the accounts that may do there what they may do in their own namespace.
    """

    def __init__(self, folder: Path, tokens: Tokens, *, xet: bool = False, orgs: Mapping[str, set[str]] = {}) -> None:
        self.tokens, self._orgs, self.xet = tokens, orgs, Xet(Path(folder)) if xet else None
        self._lock, self._secret, self._stopped = threading.RLock(), secrets.token_bytes(16), False
        self._repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[dict[str, Any]] = []
        self.page_size = 1000  # entries in one answer about a tree

    def __enter__(self) -> "LocalHub":
        kinds = [type("Bound", (Handler,), {"hub": self, "host": host}) for host in ("hub", "cdn")]
        self._servers = [Server(("127.0.0.1", 0), kind) for kind in kinds]
        self.endpoint, self._cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True  # for connections that a client still has
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        branch: str = "main",
        delete: Iterable[str] = (),
    ) -> str:
        """Commit without a client and return the commit's id; `private` is for a repository that this creates."""
        with self._lock:
            repo = self._repos.get(repo_id) or self._create(repo_id, private, repo_id.split("/")[0])
            start = repo.branches.setdefault(branch, repo.branches["main"])
            kept = {path: file for path, file in repo.commits[start].files.items() if path not in tuple(delete)}
            new = {path: File(data, repo.tracks(path, len(data), kept)) for path, data in files.items()}
            return repo.commit(branch, kept | new, "Add files", repo_id.split("/")[0])

    def head(self, repo_id: str, branch: str = "main") -> str:
        return self._repos[repo_id].branches[branch]

    def commits(self, repo_id: str, branch: str = "main") -> list[str]:
        repo = self._repos[repo_id]
        return [commit.id for commit in repo.history(repo.commits[repo.branches[branch]])]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self._repos[repo_id].resolve(revision).files.items()}

    def tag(self, repo_id: str, name: str, revision: str) -> None:
        self._repos[repo_id].tags[name] = self._repos[repo_id].resolve(revision).id

    def is_private(self, repo_id: str) -> bool:
        return self._repos[repo_id].private

    def exists(self, repo_id: str) -> bool:
        return repo_id in self._repos

    def _create(self, repo_id: str, private: bool, author: str) -> Repo:
        self._repos[repo_id] = Repo(repo_id, private)
        self._repos[repo_id].commit("main", {".gitattributes": File(GITATTRIBUTES.encode())}, "initial commit", author)
        return self._repos[repo_id]

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()

    def _signed(self, path: str) -> str:
        return f"{self._cdn}{quote(path)}?signature={self._signature(path)}"


def client(
    code: str | Sequence[str],
    hub: LocalHub,
    home: Path,
    token: str | None = None,
    *,
    wait: bool = True,
    own: bool = False,
    stderr: int = subprocess.PIPE,
    **env: str,
) -> Any:
    """Run Python code, or Python with arguments, in a process that knows no Hub, token or cache but these.

    Nothing that it says may show a token. It works in its home. Return what it said, or the process without `wait`. It
    is forked (see fresh.py) unless it is to be started of its `own`.
    """
    home.mkdir(parents=True, exist_ok=True)
    # Newer clients ask the Hub once a day for this list, each time before their first request.
    (home / ".agent_harnesses.json").write_text('{"standardEnvVars": [], "harnesses": {}}')
    inherited = {k: v for k, v in os.environ.items() if not re.search("^(HF|HUGGING|TRANSFORMERS)|_proxy$", k, re.I)}
    told = {"HF_HOME": str(home), "XDG_CACHE_HOME": str(home), "TORCH_HOME": str(home), "HF_ENDPOINT": hub.endpoint}
    told |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or ""}
    told |= {} if hub.xet else {"HF_HUB_DISABLE_XET": "1"}
    args = ["-c", code] if isinstance(code, str) else list(code)
    if wait and not own and stderr == subprocess.PIPE and "PYTHONPATH" not in env:
        done = fresh.run(args, cwd=home, env=inherited | told | env)
        assert not [secret for secret in hub.tokens if secret in f"{done.stdout}{done.stderr}"], "a token is shown"
        return done
    process = subprocess.Popen(
        [sys.executable, *args],
        env=inherited | told | env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    if not wait:
        return process
    try:
        said, complained = process.communicate(timeout=200)
    finally:
        process.kill()
    assert not [secret for secret in hub.tokens if secret in f"{said}{complained}"], "a token is shown"
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)
