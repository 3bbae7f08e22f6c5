"""The page as files, without a browser: what is written, what is refused, and how it is served."""

import base64
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from zoo import KINDS, create, interruptible, write_blots

from timm_mobilevit_zoo import cli
from timm_mobilevit_zoo.export import task
from timm_mobilevit_zoo.maps.panels import panels_of
from timm_mobilevit_zoo.maps.recording import record
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.page import ortweb, page, serve, write
from timm_mobilevit_zoo.page.server import POLICY

NAME = KINDS[1]  # small, and it has maps
PLAIN = "test_resnet"  # timm's; it has none


@pytest.fixture
def runtime(tmp_path):
    """A folder that looks like onnxruntime-web."""
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": ortweb.VERSION}))
    for part in ortweb.PARTS:
        (folder / "dist" / part).write_text(f"// {part}")
    return folder


@pytest.fixture
def networks(monkeypatch):
    """Let names stand for networks whose norms do something."""
    made = {}

    def load(model, pretrained, trust):
        return made.setdefault(model, seed_weights(create(model)))

    monkeypatch.setattr(write, "load", load)
    return made


def packed(path, monkeypatch, **changed):
    """Write a file as npm would, with members changed, and make its digest the one that is known."""
    with tarfile.open(path, "w:gz") as archive:
        for part in ortweb.PARTS:
            member = tarfile.TarInfo(f"package/dist/{part}")
            content = f"// {part}".encode()
            member.size = len(content)
            for name, value in changed.items():
                setattr(member, name, value)
            archive.addfile(member, io.BytesIO(content))
        outside = tarfile.TarInfo("../../outside")
        archive.addfile(outside, io.BytesIO())
    digest = hashlib.sha512(path.read_bytes()).digest()
    monkeypatch.setattr(ortweb, "SHA512", base64.b64encode(digest).decode())
    return path


def test_what_is_written(networks, runtime, tmp_path):
    target = tmp_path / "site"
    target.mkdir()  # empty is as good as new
    found = page([NAME, PLAIN], output=str(target), runtime=str(runtime), pretrained=False)
    assert json.loads((target / "models" / "index.json").read_text()) == found
    with_maps, without = found["models"]
    assert (with_maps["name"], without["name"], without["maps"]) == (NAME, PLAIN, None)
    for model in found["models"]:
        (file,) = model["files"]
        assert (file["precision"], file["file"]) == ("fp32", f"{model['name']}.onnx")
        manifest = json.loads((target / "models" / file["manifest"]).read_text())
        assert file["bytes"] == (target / "models" / file["file"]).stat().st_size
        assert manifest["checks"]["random"]["error"] < 1e-4
    assert found["runtime"]["files"] == {part: len(f"// {part}") for part in ortweb.PARTS}
    assert (target / "runtime" / "LICENSE").read_text().count("Copyright (c) Microsoft Corporation") == 1
    assert sorted(path.name for path in (target / "runtime").iterdir()) == sorted([*ortweb.PARTS, "LICENSE"])
    html = (target / "index.html").read_text()
    assert f'content="{POLICY}"' in html
    assert "{{" not in html
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    write_blots(folder, 4)
    return folder


def test_each_precision_is_written_and_checked(networks, runtime, photos, tmp_path):
    given = dict(precision=["int8", "fp32", "fp16", "fp32"], calibration=str(photos), runtime=str(runtime))
    found = page([NAME, PLAIN], output=str(tmp_path / "site"), pretrained=False, **given)
    for model in found["models"]:
        name, folder = model["name"], tmp_path / "site" / "models"
        files = {file["precision"]: file for file in model["files"]}
        assert list(files) == ["int8", "fp32", "fp16"], "the page begins with the first, and has none twice"
        assert [file["file"] for file in model["files"]] == [f"{name}.int8.onnx", f"{name}.onnx", f"{name}.fp16.onnx"]
        assert files["fp32"]["bytes"] > 1.6 * files["fp16"]["bytes"] > 1.6 * files["int8"]["bytes"]
        for precision, file in files.items():
            assert (folder / file["file"]).stat().st_size == file["bytes"]
            manifest = json.loads((folder / file["manifest"]).read_text())
            assert manifest["precision"] == precision
            (checks,) = manifest["checks"].items()
            assert checks[0] == ("calibration" if precision == "int8" else "random")
            assert checks[1]["rms" if precision == "int8" else "error"] <= manifest["tolerance"]
        assert set(manifest["files"]) == {f"{name}.fp16.onnx"}
    with_maps = found["models"][0]["maps"]
    assert with_maps["error"] < 1e-4, "maps stay in fp32"
    assert {path.name for path in folder.iterdir()} == {
        "index.json",
        with_maps["file"],
        *(file[key] for model in found["models"] for file in model["files"] for key in ("file", "manifest")),
    }


def test_a_wrong_file_of_a_precision_is_not_kept(networks, runtime, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(task.TOLERANCES, "int8", 1e-9)
    given = dict(precision=["fp32", "int8"], calibration=str(photos), runtime=str(runtime))
    with pytest.raises(ValueError, match=rf"onnx computes {PLAIN} wrongly in 8 bits: on calibration images"):
        page([PLAIN], output=str(tmp_path / "site"), pretrained=False, **given)
    assert not (tmp_path / "site").exists()


def test_broken_images_to_calibrate_on_stop_it_before_any_work(runtime, photos, tmp_path, monkeypatch, capsys):
    (photos / "broken.png").write_text("no image")
    monkeypatch.setattr(write, "load", lambda *args: pytest.fail("it began"))
    given = dict(precision=["fp32", "int8"], calibration=str(photos), runtime=str(runtime), pretrained=False)
    with pytest.raises(ValueError, match=r"calibration: 1 image\(s\) are broken; repair them or choose on_broken=skip"):
        page([PLAIN], output=str(tmp_path / "site"), **given)
    monkeypatch.setattr(write, "load", lambda model, pretrained, trust: seed_weights(create(model)))
    page([PLAIN], output=str(tmp_path / "site"), on_broken="skip", **given)
    assert re.findall(r"skipped: .*broken\.png", capsys.readouterr().err)


@pytest.mark.parametrize("name", [NAME, "cloformer_xxs"])
def test_the_maps_are_those_that_maps_draws(networks, runtime, tmp_path, name):
    found = page([name], output=str(tmp_path / "site"), runtime=str(runtime), pretrained=False)["models"][0]["maps"]
    network, path = networks[name], tmp_path / "site" / "models" / found["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found["sha256"]
    _, height, width = network.pretrained_cfg["input_size"]
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    drawn = [one for one in panels_of(network, x, record(network, x)) if one.kind != "matrix"]
    assert [one["title"] for one in found["outputs"]] == [one.title for one in drawn]
    assert [one["kind"] for one in found["outputs"]] == [one.kind for one in drawn]
    outputs = session.run([one["output"] for one in found["outputs"]], {"images": x.numpy()})
    for values, one, told in zip(outputs, drawn, found["outputs"], strict=True):
        assert list(values.shape) == told["shape"] == list(one.values.shape)
        np.testing.assert_allclose(values, one.values.numpy(), atol=1e-3 * float(one.values.abs().max()))
    assert not network.training


def test_wrong_maps_are_not_kept(networks, runtime, tmp_path, monkeypatch):
    real = write.panels_of
    calls = []

    def drift(network, x, layers):
        calls.append(1)
        return [one._replace(values=one.values * (1 + 0.01 * len(calls))) for one in real(network, x, layers)]

    monkeypatch.setattr(write, "panels_of", drift)
    with pytest.raises(ValueError, match=rf"onnx computes the maps of {NAME}.maps.onnx wrongly: off by 9.9e-03 of"):
        page([NAME], output=str(tmp_path / "site"), runtime=str(runtime), pretrained=False)
    assert [path.name for path in tmp_path.iterdir()] == ["runtime"]


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    (tmp_path / "<i>").mkdir()
    given = ["a/run", "b/run/", "hf-hub:owner/name", "<i>", "cloformer_xxs", "cloformer_xxs"]
    assert write._names(given) == ["run", "run-2", "name", "i", "cloformer_xxs", "cloformer_xxs-2"]
    assert write._names(["new/run", "new/run-3", "old/run"]) == ["run", "run-3", "run-2"], "numbered by hand"
    assert write._names(["run-2", "run", "x/run"]) == ["run-2", "run", "run-3"]
    assert write._names(["run", "run.maps", "Run", "run.onnx"]) == ["run", "run.maps-2", "Run-2", "run.onnx"]
    assert write._names(["run.int8", "run", "run.fp16"]) == ["run.int8", "run-2", "run.fp16"]


BAD = {
    "`models` is empty": {"models": []},
    r"models='vit' must be a list": {"models": "vit"},
    r"output='none/site' needs a folder that exists; 'none' does not": {"output": "none/site"},
    r"output='runtime' must be a new or empty folder": {"output": "runtime"},
    r"the page needs onnxruntime-web .* which runs `npm pack onnxruntime-web@[\d.]+`": {"runtime": ""},
    r"the page needs onnxruntime-web .*: give `fetch_runtime=True`, which runs .*, and not both": {
        "fetch_runtime": True
    },
    r"runtime='nothing.tgz' is not there; `npm pack onnxruntime-web@": {"runtime": "nothing.tgz"},
    r"runtime='runtime/dist' must hold a package.json of onnxruntime-web [\d.]+, as `npm pack": {
        "runtime": "runtime/dist"
    },
    r"runtime='runtime/package.json' is not the file that `npm pack .*` gets: its sha512 differs": {
        "runtime": "runtime/package.json"
    },
    r"images='nowhere' must be a folder with images in it": {"images": "nowhere"},
    r"calibration='nowhere' must be a folder with images in it": {"precision": ["int8"], "calibration": "nowhere"},
    r"calibration='runtime' must be a folder with images in it": {"precision": ["int8"], "calibration": "runtime"},
    r"calibration='runtime' needs precision=int8": {"precision": ["fp32", "fp16"], "calibration": "runtime"},
    r"precision=int8 needs `calibration`, a folder of images such as the": {"precision": ["fp32", "int8"]},
    r"precision='bf16' must be one of fp32, fp16, int8": {"precision": ["bf16"]},
    r"precision='int8' must be a list": {"precision": "int8"},
    r"`precision` is empty": {"precision": []},
    r"on_broken='skip' goes with `images` or `calibration`": {"on_broken": "skip"},
    r"models='cloformer_xxs' has no published weights; `pretrained=False` takes": {"pretrained": True},
    r"model='resnet19' is neither a folder nor a model of timm's": {"models": ["resnet19"]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named_before_any_work(monkeypatch, runtime, tmp_path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm_mobilevit_zoo.page.write.write_checked", lambda *args: pytest.fail("it began"))
    monkeypatch.setattr(ortweb, "fetch", lambda *args: pytest.fail("it fetched"))
    options = {"models": ["cloformer_xxs"], "output": "site", "runtime": "runtime", "pretrained": False} | BAD[message]
    with pytest.raises((ValueError, FileNotFoundError), match="^" + message):
        page(options.pop("models"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["runtime"]


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"interpolation": "lanczos"}, "has interpolation='lanczos'; the page does bicubic and bilinear"),
        ({"crop_mode": "border"}, "has crop_mode='border'; the page does center and squash"),
        ({"input_size": (4, 32, 32)}, "takes images of 4 channels; the page has 3, or 1 of grey"),
    ],
)
def test_images_that_the_page_cannot_prepare(monkeypatch, runtime, tmp_path, overlay, message):
    made = create(PLAIN, pretrained_cfg_overlay=overlay, in_chans=overlay.get("input_size", (3,))[0])
    monkeypatch.setattr(write, "load", lambda model, pretrained, trust: made)
    with pytest.raises(ValueError, match=message):
        page([PLAIN], output=str(tmp_path / "site"), runtime=str(runtime), pretrained=False)


@pytest.mark.parametrize("about", ["", "[]", "{}", '{"name": "onnxruntime-web", "version": "1.0.0"}'])
def test_a_folder_of_something_else(runtime, about):
    (runtime / "package.json").write_text(about)
    with pytest.raises(ValueError, match=rf"must hold a package.json of onnxruntime-web {ortweb.VERSION}"):
        ortweb.read(runtime)


def test_npms_file_is_read_and_never_unpacked(monkeypatch, tmp_path):
    path = packed(tmp_path / "given.tgz", monkeypatch)
    assert ortweb.read(path) == {part: f"// {part}".encode() for part in ortweb.PARTS}
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="its sha512 differs"):
        ortweb.read(path)
    path = packed(tmp_path / "given.tgz", monkeypatch, type=tarfile.SYMTYPE, linkname="/etc/hostname", size=0)
    with pytest.raises(ValueError, match=rf"has package/dist/{ortweb.PARTS[0]}, which is not a file"):
        ortweb.read(path)
    assert [path.name for path in tmp_path.iterdir()] == ["given.tgz"]


def test_npm_runs_only_when_asked_to(monkeypatch, networks, tmp_path):
    def run(command, cwd, **options):
        assert command == ["npm", "pack", f"onnxruntime-web@{ortweb.VERSION}"]
        packed(Path(cwd) / f"onnxruntime-web-{ortweb.VERSION}.tgz", monkeypatch)

    monkeypatch.setattr(subprocess, "run", run)
    page([NAME], output=str(tmp_path / "site"), fetch_runtime=True, pretrained=False)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert (tmp_path / "site" / "runtime" / ortweb.PARTS[0]).read_text() == f"// {ortweb.PARTS[0]}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(), "`fetch_runtime` runs `npm pack .*`, and npm is not installed"),
        (subprocess.CalledProcessError(1, "npm", stderr="no network\n"), "`npm pack .*` failed: no network$"),
    ],
)
def test_npm_may_fail(monkeypatch, tmp_path, error, message):
    def run(*args, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=message):
        ortweb.fetch(tmp_path)


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers


def test_the_command_writes_and_serves(runtime, tmp_path):
    command = [sys.executable, "-m", "timm_mobilevit_zoo", "page", PLAIN, "--no-pretrained", "-o", str(tmp_path / "s")]
    command += ["--runtime", str(runtime), "--serve"]
    with interruptible(command) as server:
        try:
            assert server.stdout.readline().endswith(f"s: {PLAIN}, fp32 1.8 MiB, no attention that is recorded\n")
            url = server.stdout.readline().split()[0]
            assert url.startswith("http://127.0.0.1:")
            kinds = {
                "": "text/html; charset=utf-8",
                "app.js": "text/javascript; charset=utf-8",
                "style.css": "text/css; charset=utf-8",
                "icon.svg": "image/svg+xml",
                "models/index.json": "application/json",
                f"models/{PLAIN}.onnx": "application/octet-stream",
                f"runtime/{ortweb.PARTS[0]}": "text/javascript; charset=utf-8",
                f"runtime/{ortweb.PARTS[2]}": "application/wasm",
            }
            for path, kind in kinds.items():
                content, headers = get(url + path)
                assert content == (tmp_path / "s" / (path or "index.html")).read_bytes()
                assert headers["Content-Type"] == kind
                assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
                assert headers["Content-Security-Policy"] == POLICY
            for path in ("models/", "nothing", "../runtime/package.json", "%2e%2e/runtime/package.json"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    get(url + path)
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_what_cannot_be_served(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"is not a page that `page` wrote: models/index.json is missing"):
        serve(str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="port=70000 must be from 0 to 65535"):
        serve(str(tmp_path), port=70000)
    told = {
        "MODEL is empty; give one or more": [],
        "--port goes with --serve": ["--port", "8000"],
        "--port -1 must be from 0 to 65535": ["vit", "--serve", "--port=-1"],
    }
    for message, options in told.items():
        with pytest.raises(SystemExit) as done:
            cli.main(["page", "-o", str(tmp_path / "site"), *options])
        assert done.value.code == 2
        assert message in capsys.readouterr().err


def test_nothing_in_the_page_names_another_host():
    for path in Path(write.__file__).with_name("assets").iterdir():
        hosts = re.findall(r"(?:https?:|\bsrc=.|\bhref=.)//[\w.-]+", path.read_text(encoding="utf-8"))
        assert set(hosts) <= {"http://www.w3.org"}, path.name  # names of XML's, not places


def test_the_page_lays_pictures_on_the_white_that_read_image_does():
    text = (Path(write.__file__).with_name("assets") / "app.js").read_text(encoding="utf-8")
    drawn = text[text.index("function pixelsOf(") :].partition("\n}")[0]
    steps = ('fillStyle = "white"', "fillRect(0, 0, canvas.width, canvas.height)", "drawImage(source", "getImageData(")
    assert [drawn.count(step) for step in steps] == [1] * 4
    assert sorted(steps, key=drawn.index) == list(steps)
