"""What the page needs of ONNX Runtime Web, from the package that npm has of it."""

import base64
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

__all__ = ["COMMAND", "VERSION", "fetch", "read"]

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as lock files say
COMMAND = f"npm pack onnxruntime-web@{VERSION}"
PARTS = (  # the first three for WASM, the others for WebGPU, which a browser loads only to time it
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def read(path: Path) -> dict[str, bytes]:
    """Return the files that the page needs, by name.

    Args:
        path: npm's file, which must be the one that is known here, or an unpacked folder of the same version, which is
            taken as it is.

    Raises:
        FileNotFoundError: For a path that is not there.
        ValueError: For another package, version or content.
    """
    told = f"runtime={str(path)!r}"
    if path.is_dir():
        try:
            about = json.loads((path / "package.json").read_text(encoding="utf-8"))
            is_it = (about["name"], about["version"]) == ("onnxruntime-web", VERSION)
        except (OSError, ValueError, KeyError, TypeError):
            is_it = False
        if not is_it:
            raise ValueError(f"{told} must hold a package.json of onnxruntime-web {VERSION}, as `{COMMAND}` gets it")
        return {name: (path / "dist" / name).read_bytes() for name in PARTS}
    if not path.is_file():
        raise FileNotFoundError(f"{told} is not there; `{COMMAND}` gets it")
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != SHA512:
        raise ValueError(f"{told} is not the file that `{COMMAND}` gets: its sha512 differs")
    parts = {}
    with tarfile.open(path) as archive:  # read, never unpacked: no name in it becomes a path here
        for name in PARTS:
            member = archive.getmember(f"package/dist/{name}")
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise ValueError(f"{told} has {member.name}, which is not a file")
            parts[name] = content.read()
    return parts


def fetch(folder: Path) -> dict[str, bytes]:
    """Have npm put its file into a folder, and return what `read` does.

    Raises:
        ValueError: Without npm, and where it fails.
    """
    try:
        subprocess.run(COMMAND.split(), cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"`fetch_runtime` runs `{COMMAND}`, and npm is not installed") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"`{COMMAND}` failed: {error.stderr.strip()}") from error
    return read(folder / f"onnxruntime-web-{VERSION}.tgz")
