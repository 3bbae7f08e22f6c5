"""What tests/local_hub.py keeps: repositories in memory, and the stores on disk that hf_xet reads and writes."""

import hashlib
import json
import os
import secrets
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
)
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS.split())
REGULAR_LIMIT = 10_000_000  # bytes; larger files go to LFS, whatever their name


class UnknownRevisionError(Exception):
    pass


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        """What git holds: the file, or a pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return pointer.encode() if self.lfs else self.data

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    authors: list[dict[str, str]]
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # sha256 -> LFS content, committed or not

    def commit(self, branch: str, files: dict[str, File], title: str, author: str) -> str:
        parent, now = self.branches.get(branch), datetime.now(timezone.utc)
        content = [self.id, parent, title, author, now.timestamp(), sorted((path, f.oid) for path, f in files.items())]
        date = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        new = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[new] = Commit(new, parent, title, [{"user": author}], date, files)
        self.objects |= {file.sha256: file.data for file in files.values() if file.lfs}
        self.branches[branch] = new
        return new

    def resolve(self, revision: str) -> Commit:
        for prefix, named in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            if sha := named.get(revision.removeprefix(prefix)):
                return self.commits[sha]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        if len(found) != 1:
            raise UnknownRevisionError(revision)
        return self.commits[found[0]]

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        while commit:
            yield commit
            commit = self.commits.get(commit.parent or "")

    def tracks(self, path: str, size: int, files: Mapping[str, File]) -> bool:
        """Whether a file goes to LFS. Empty files never do."""
        lines = files.get(".gitattributes", File(b"")).data.decode().splitlines()
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        named = any(fnmatch(name, pattern) for name in (path, path.rsplit("/", 1)[-1]) for pattern in patterns)
        return size > 0 and (named or size > REGULAR_LIMIT)


class Xet:
    """Content stores on disk, which hf_xet itself reads and writes as `local://FOLDER`.

    The process that opens a store locks its index: each token gets a store of its own, and the server reads a copy.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # hf_xet opens a log when it is imported, in the user's cache if it is not told another place.
        with mock.patch.dict(os.environ, HF_XET_LOG_DEST=str(folder / "xet.log")):
            import hf_xet
        self.hf_xet, self.folder, self.hashes = hf_xet, folder.resolve(), dict[str, str]()

    def store(self, kind: str) -> Path:
        path = self.folder / f"{kind}-{secrets.token_hex(6)}"
        path.mkdir()
        return path

    @staticmethod
    def access(store: Path) -> dict[str, Any]:
        return {"endpoint": f"local://{store}", "token": "local", "token_expiry_unix_secs": int(time.time()) + 3600}

    def hash(self, file: File) -> str:
        if file.sha256 not in self.hashes:
            path = self.folder / file.sha256
            path.write_bytes(file.data)
            self.hashes[file.sha256] = self.hf_xet.hash_files([str(path)])[0].hash
            path.unlink()
        return self.hashes[file.sha256]

    def put(self, files: Iterable[File]) -> Path:
        store = self.store("read")
        with self.hf_xet.XetSession().new_upload_commit(**self.access(store)) as group:
            for file in files:
                group.start_upload_bytes(file.data, sha256=file.sha256)
        return store

    def get(self, sha256: str, size: int) -> bytes | None:
        """What a client has written to one of its stores."""
        for shard in self.folder.glob("write-*/xet/xorbs/shards/*.mdb"):
            if name := self.names(shard.read_bytes()).get(sha256):
                copy = self.store("copy")
                shutil.copytree(shard.parents[1], copy / "xet" / "xorbs")
                with self.hf_xet.XetSession().new_file_download_group(**self.access(copy)) as group:
                    group.start_download_file(self.hf_xet.XetFileInfo(name, size), str(copy / "file"))
                return (copy / "file").read_bytes()
        return None

    @staticmethod
    def names(shard: bytes) -> dict[str, str]:
        """A shard's sha256 -> Xet hash. Its records have 48 bytes: a file, then the file's parts, then its sha256."""
        names, at = {}, 48
        while at + 48 <= len(shard) and shard[at : at + 32] != b"\xff" * 32:
            *name, flags, parts = struct.unpack_from("<4QII", shard, at)
            at += 48 * (1 + parts * (2 if flags >> 31 else 1))  # twice the records if the parts have checksums
            if flags >> 30 & 1:
                sha256 = struct.unpack_from("<4Q", shard, at)
                names["".join(f"{word:016x}" for word in sha256)] = "".join(f"{word:016x}" for word in name)
                at += 48
        return names
