"""A static page that runs models in a browser, with all that it needs: the models and ONNX Runtime Web."""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from . import __version__, _ortweb
from ._data import images_in
from ._extras import require
from ._formats import FORMATS, INPUT, quiet
from ._layers import record
from ._remote import digests
from .export import TOLERANCE, to_onnx
from .maps import KINDS, panels_of
from .predict import load

__all__ = ["check_port", "page", "serve"]

# What the page may load: its own files, compiled WASM, and pictures that the reader gives it.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'"
)
# The first two let a page have threads; a worker has no policy but that of its own answer.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
INDEX = Path("models", "index.json")


def page(
    models: Sequence[str],
    *,
    output: str,
    runtime: str = "",
    fetch_runtime: bool = False,
    images: str = "",
    pretrained: bool = True,
) -> dict[str, Any]:
    """Write a static page that runs models in a browser: on photos and the camera, with attention maps, and timed.

    Args:
        models: Folders that train left, or names that timm creates with weights.
        output: Folder to write; it must be new or empty.
        runtime: ONNX Runtime Web: the file that `npm pack` left, or an unpacked folder.
        fetch_runtime: Get ONNX Runtime Web with `npm pack`, about 32 MB.
        images: Folder of images to compare the written models on too, beside random ones.
        pretrained: Give names their weights; without, random ones, as they serve to measure time.

    Returns:
        What the page reads first: `models`, each with its `name`, `file`, `bytes`, `manifest` and `maps` (None without
        recorded attention), the `runtime` with its `version` and `files`, and `versions`.

    Raises:
        ValueError: For arguments that cannot work, before any work, and for a file that computes something else.
        FileNotFoundError: For an output without a folder around it, or a model or runtime that is not there.
        ModuleNotFoundError: Without the extra `onnx`; it names the pip command.
    """
    target = Path(output)
    if not models or isinstance(models, str):
        raise ValueError(f"models={models!r} must be a list of at least one model")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"output={output!r} needs a folder that exists; {str(target.parent)!r} does not")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"output={output!r} must be a new or empty folder")
    if bool(runtime) == fetch_runtime:
        raise ValueError(
            f"runtime={runtime!r} must be the file or folder of onnxruntime-web {_ortweb.VERSION} that "
            f"`{_ortweb.COMMAND}` gets; or leave it out, and fetch_runtime runs that command"
        )
    if images and not (Path(images).is_dir() and images_in(Path(images))):
        raise ValueError(f"images={images!r} must be a folder with images in it")
    for module in FORMATS["onnx"].modules:
        require(module, FORMATS["onnx"].extra)
    parts = None if fetch_runtime else _ortweb.read(Path(runtime))
    networks = {name: _load(model, pretrained) for name, model in zip(_names(models), models, strict=True)}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch, "page")
        shutil.copytree(Path(__file__).with_name("_page"), part)
        html = part / "index.html"
        html.write_text(html.read_text(encoding="utf-8").replace("{{policy}}", POLICY), encoding="utf-8")
        for folder in (part / INDEX.parent, part / "runtime"):
            folder.mkdir()
        if parts is None:
            parts = _ortweb.fetch(Path(scratch))
        for name, content in parts.items():
            (part / "runtime" / name).write_bytes(content)
        (part / "LICENSE.onnxruntime").replace(part / "runtime" / "LICENSE")
        index = {
            "models": [_write(name, network, part / INDEX.parent, images) for name, network in networks.items()],
            "runtime": {"version": _ortweb.VERSION, "files": {name: len(content) for name, content in parts.items()}},
            "versions": {"timm_mobilevit_zoo": __version__, "timm": timm.__version__, "torch": torch.__version__},
        }
        (part / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            target.rmdir()
        part.replace(target)
    return index


def serve(folder: str, *, port: int = 0) -> None:
    """Serve a page on this machine alone, with the headers that threads need, until it is interrupted.

    Args:
        folder: What `page` wrote.
        port: Port on 127.0.0.1; 0 takes a free one.

    Raises:
        ValueError: For a folder that holds no page, and a port that is none.
        OSError: For a port that is taken.
    """
    if not Path(folder, INDEX).is_file():
        raise ValueError(f"folder={folder!r} must be a page that this command wrote; it has no {INDEX}")
    check_port(port)
    with ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=folder)) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def check_port(port: int) -> None:
    """Raise a ValueError for a number that no port has."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port} must be from 0 to 65535")


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - the parent's, which asks the system for what it lacks
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the reader has gone
            super().copyfile(source, outputfile)

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _names(models: Sequence[str]) -> list[str]:
    """Return names for files and readers: the last part of each model's, with a number where that is taken."""
    names: list[str] = []
    for model in models:
        last = Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2]
        name = first = re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip(".-") or "model"
        while name in names:
            name = f"{first}-{len([one for one in names if one.startswith(first)]) + 1}"
        names.append(name)
    return names


def _load(model: str, pretrained: bool) -> Any:
    """Return a network that the page can feed."""
    if pretrained and timm.is_model(model) and not Path(model).exists():
        known: Any = timm.get_pretrained_cfg(model)
        if not known.has_weights:
            raise ValueError(f"models: {model!r} has no published weights; --no-pretrained takes random ones")
    network = load(model, pretrained=pretrained)
    config = resolve_data_config({}, model=network)
    can = {"interpolation": ("bicubic", "bilinear"), "crop_mode": ("center", "squash")}
    for key, values in can.items():
        if config[key] not in values:
            raise ValueError(f"models: {model!r} has {key}={config[key]!r}; the page does {' and '.join(values)}")
    channels = config["input_size"][0]
    if channels not in (1, 3) or len(config["mean"]) != channels:
        raise ValueError(f"models: {model!r} takes images of {channels} channels; the page has 3, or 1 of grey")
    return network


def _write(name: str, network: Any, folder: Path, images: str) -> dict[str, Any]:
    """Write a network and its maps, and return what the page is told of them."""
    file, maps = folder / f"{name}.onnx", folder / f"{name}.maps.onnx"
    manifest = to_onnx(network, str(file), images=images)
    x = torch.randn(2, 1, *manifest["input"]["shape"][1:], generator=torch.Generator().manual_seed(0))
    return {
        "name": name,
        "file": file.name,
        "bytes": manifest["files"][file.name]["bytes"],
        "manifest": f"{file.name}.json",
        "maps": _write_maps(network, x, maps),
    }


class _Maps(nn.Module):
    """What there is to show of a network over an image: `(1, C, H, W)` to one `(H', W')` a layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.told: list[dict[str, Any]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        panels = [one for one in panels_of(self.network, x, record(self.network, x)) if one.kind != "matrix"]
        self.told = [
            {"output": f"map{i}", "title": one.title, "kind": one.kind, "text": KINDS[one.kind]}
            | {"shape": [int(side) for side in one.values.shape]}
            for i, one in enumerate(panels)
        ]
        return tuple(one.values for one in panels)


def _write_maps(network: nn.Module, x: Tensor, path: Path) -> dict[str, Any] | None:
    """Write the maps of a network for images like `x[0]` and compare them on `x[1]`; return None where it has none."""
    shown = _Maps(network).eval()
    try:
        expected = shown(x[1])
    except ValueError:  # no attention that is recorded
        return None
    told = shown.told
    if not told:
        return None
    with quiet():
        torch.onnx.export(
            shown,
            (x[0],),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=[INPUT],
            output_names=[one["output"] for one in told],
        )
    session = require("onnxruntime", "onnx").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(values) for values in session.run(None, {INPUT: x[1].numpy()})]
    error = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(found, expected, strict=True)
    )
    if not error <= TOLERANCE:  # NaN is not
        raise ValueError(f"onnx computes the maps of {path.name} wrongly: off by {error:.1e} of the largest value")
    content = path.read_bytes()
    digest = digests(content)["sha256"]
    return {"file": path.name, "bytes": len(content), "sha256": digest, "error": error, "outputs": told}
