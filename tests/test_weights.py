"""Weights of others: the seeded checkpoint, in its authors' layout and wrapper, from the place that a tag declares."""

import argparse
import dataclasses
import hashlib
import http.server
import json
import re
import sys
import threading
import types
import urllib.parse
import warnings
from pathlib import Path

import pytest
import timm
import torch
from local_hub import LocalHub, Server, client
from PIL import Image
from safetensors.torch import load_file, save_file
from test_parity import compare, keys
from zoo import GOLDEN, RECORDED, author_weights, recorded_image

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.hub import download, weights
from timm_mobilevit_zoo.models import places
from timm_mobilevit_zoo.models.places import DRIVE, DRIVE_FOLDER, Place

BIRDS = "casvit_xs.birder_il_common"
BIRDER = Path(__file__).parent / "golden" / "birder"  # recorded with birder 0.8.4, 371 classes


def openmmlab(weights):
    """A VAN's weights under the names that OpenMMLab's code gives them."""
    found = {}
    for key, value in weights.items():
        key = re.sub(r"^block(\d)", r"blocks\1", re.sub(r"^(patch_embed\d)\.proj\.", r"\1.projection.", key))
        key = key.replace(".conv0.", ".DW_conv.").replace(".conv_spatial.", ".DW_D_conv.")
        key = key.replace(".dwconv.dwconv.", ".dwconv.")
        found[key.replace("head.", "head.fc.") if key.startswith("head.") else f"backbone.{key}"] = value
    return found


# What trainers wrap weights in, by family; and tags in whose files they have other names than their authors'.
WRAPPERS = {"casvit": "model", "efficientmod": "state_dict", "moganet": "state_dict", "repnext": "model"}
WRAPPERS |= {"unireplknet": "model", "van": "state_dict"}
LAYOUTS = {"van_b0.openmmlab_in1k": openmmlab}
DEFAULTS = [f"{path.stem}.{timm.get_pretrained_cfg(path.stem).tag}" for path in RECORDED]
PLACES = places.places()
FILES = [
    variant
    for variant in [*DEFAULTS, *LAYOUTS]
    if variant.partition("_")[0] in WRAPPERS and PLACES[variant].kind != "hub"
]


class Host:
    """A server of files on 127.0.0.1; `answers` has, by path, what it sends: bytes, or status, headers and body."""

    def __init__(self):
        self.answers, self.asked = {}, []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = urllib.parse.urlsplit(self.path).path
                host.asked.append(path)
                answer = host.answers.get(path, (404, {}, b""))
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host():
    host = Host()
    yield host
    host.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(download, "_warned", set())


@pytest.fixture
def moved(monkeypatch, host):
    """Move a tag's file to the local host, under its own path; what is known of it stays known."""

    def move(variant, known=None):
        cfg = timm.get_pretrained_cfg(variant)
        url = host.address + urllib.parse.urlsplit(cfg.url).path
        for key in {variant, *([cfg.architecture] if timm.get_pretrained_cfg(cfg.architecture) == cfg else [])}:
            monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, key, dataclasses.replace(cfg, url=url))
        configs = dict(places.package_configs())
        config = configs[(cfg.architecture, cfg.tag)]
        told = config.content["file"] | {"source": url, "name": url.rpartition("/")[2], "sha256": None} | (known or {})
        configs[(cfg.architecture, cfg.tag)] = config._replace(content=config.content | {"file": told})
        monkeypatch.setattr(places, "package_configs", lambda: configs)
        return urllib.parse.urlsplit(url).path

    return move


def packed(tmp_path, content):
    torch.save(content, tmp_path / "packed.pt")
    return (tmp_path / "packed.pt").read_bytes()


def quiet(variant, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return timm.create_model(variant, pretrained=True, **kwargs).eval()


@pytest.fixture
def drive(monkeypatch):
    """Stand in for gdown, which knows no host but Google's: files by id, and what a folder lists."""
    files, folders, asked = {}, {}, []

    def save(url, output, quiet):
        asked.append(url)
        if url.removeprefix(DRIVE) not in files:
            raise RuntimeError("Cannot retrieve the public link of the file.\nYou may need to change the permission")
        with open(output, "wb") as file:
            file.write(files[url.removeprefix(DRIVE)])

    def listed(url, skip_download, quiet):
        asked.append(url)
        return folders[url.removeprefix(DRIVE_FOLDER)]

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=save, download_folder=listed))
    return types.SimpleNamespace(files=files, folders=folders, asked=asked)


@pytest.mark.parametrize("variant", FILES)
def test_a_file_of_others_gives_the_recorded_logits(variant, drive, host, moved, tmp_path):
    name, place = variant.partition(".")[0], PLACES[variant]
    golden = next(path for path in GOLDEN if path.stem == name)
    content = {WRAPPERS[name.partition("_")[0]]: LAYOUTS.get(variant, dict)(author_weights(golden)), "epoch": 299}
    content["args"] = argparse.Namespace(model="rcvit_xs")
    content["model_ema"] = {key: 0 * value for key, value in author_weights(golden).items()}
    data, digits = packed(tmp_path, content), places.leading_digits(place.file)
    if place.kind == "address":
        host.answers[moved(variant)] = data
    elif place.url.startswith(DRIVE_FOLDER):
        one, log = (types.SimpleNamespace(id=id, path=f"run/{id}") for id in ("model_best.pth.tar", "summary.csv"))
        drive.folders[place.url.removeprefix(DRIVE_FOLDER)] = [log, one]
        drive.files[one.id] = data
    else:
        drive.files[place.url.removeprefix(DRIVE)] = data
    if digits:  # whose file is not this one
        with pytest.raises(hub.Refused, match=rf"not {digits}\.\.\., as its name says"):
            timm.create_model(variant, pretrained=True)
        moved(variant, {"sha256": hashlib.sha256(data).hexdigest()})
        model = timm.create_model(variant, pretrained=True).eval()
    else:
        with pytest.warns(UserWarning, match=rf"the digest of http.* is not known.* pin {variant}"):
            model = timm.create_model(variant, pretrained=True).eval()
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["url"] == timm.get_pretrained_cfg(variant).url
    size = int(keys(golden, "logits_")[0].removeprefix("logits_"))
    with torch.inference_mode():
        compare(golden, f"logits_{size}", model(recorded_image(size)), "logits")
    asked = len(drive.asked + host.asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the second time nothing is said, and nothing asked
        other = timm.create_model(variant, pretrained=True, num_classes=5, in_chans=1)
    assert other.num_classes == 5
    assert len(drive.asked + host.asked) == asked
    (cached,) = (tmp_path / "torch" / "checkpoints").iterdir()
    assert cached.name == (place.file or f"{variant}.pth")


def test_a_drive_without_gdown_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gdown", None)
    said = r"gdown is not installed: pip install .*\[drive\]'; or download https://drive\.google\.com/"
    with pytest.raises(ModuleNotFoundError, match=said):
        timm.create_model("casvit_xs", pretrained=True)
    assert not list((tmp_path / "torch").rglob("*.*"))


def test_what_a_drive_may_answer_instead(drive, tmp_path):
    with pytest.raises(hub.HubError, match="does not give the file: RuntimeError: Cannot retrieve the public link"):
        timm.create_model("casvit_xs", pretrained=True)
    folder = timm.get_pretrained_cfg("efficientmod_xxs").url.removeprefix(DRIVE_FOLDER)
    drive.folders[folder] = [types.SimpleNamespace(id=str(i), path=f"run/{i}.pth") for i in range(3)]
    with pytest.raises(hub.Refused, match=r"should hold one file of weights, and holds 3 \(run/0\.pth, "):
        timm.create_model("efficientmod_xxs", pretrained=True)
    drive.files[timm.get_pretrained_cfg("casvit_xs").url.removeprefix(DRIVE)] = b"<html>Quota exceeded</html>"
    with pytest.raises(ValueError, match="cannot be read as weights"):
        quiet("casvit_xs")
    assert not list((tmp_path / "torch").rglob("*.part"))


def birds(golden=BIRDER / "casvit_xs.safetensors", **changes):
    """A checkpoint of birder's trainer, with weights in its layout."""
    content = {"state": author_weights(golden), "birder_version": "0.8.4", "task": "image_classification"}
    content |= {"signature": {"inputs": [{"data_shape": [0, 3, 256, 256]}]}}
    content |= {"class_to_idx": {f"Species {i}": i for i in reversed(range(371))}}
    content |= {"rgb_stats": {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.2)}}
    return content | changes


@pytest.mark.parametrize("golden", sorted(BIRDER.iterdir()), ids=lambda path: path.stem)
def test_a_birders_file_gives_its_logits(golden, host, moved, tmp_path):
    variant = f"{golden.stem}.birder_il_common"
    host.answers[moved(variant)] = packed(tmp_path, birds(golden))
    with torch.inference_mode():
        compare(golden, "logits_64", quiet(variant)(recorded_image(64)), "logits")


def test_a_birders_file_brings_names_mean_and_deviation(host, moved, tmp_path):
    host.answers[moved(BIRDS)] = packed(tmp_path, birds())
    model = quiet(BIRDS)
    cfg = model.pretrained_cfg
    assert cfg["label_names"][:2] == ["Species 0", "Species 1"]
    assert (list(cfg["mean"]), list(cfg["std"])) == ([0.5, 0.4, 0.3], [0.25, 0.25, 0.2])
    quiet(BIRDS, pretrained_cfg_overlay={"mean": (0.1, 0.1, 0.1)}, features_only=True)
    assert len(host.asked) == 1  # the second came from the cache


def test_a_digest_that_is_known_is_compared_each_time(host, moved, tmp_path):
    right = packed(tmp_path, birds())
    digest = hashlib.sha256(right).hexdigest()
    flipped = bytearray(right)
    flipped[len(right) // 2] ^= 1
    path = moved(BIRDS, {"sha256": digest})
    host.answers[path] = bytes(flipped)
    with pytest.raises(hub.Refused, match=f"its digest is [0-9a-f]{{64}}, not {digest}"):
        timm.create_model(BIRDS, pretrained=True)
    checkpoints = tmp_path / "torch" / "checkpoints"
    assert not list(checkpoints.iterdir())
    host.answers[path] = right
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timm.create_model(BIRDS, pretrained=True)
    (file,) = checkpoints.iterdir()
    file.write_bytes(flipped)  # damaged in the cache: fetched once more
    asked = len(host.asked)
    timm.create_model(BIRDS, pretrained=True)
    assert len(host.asked) == asked + 1
    assert file.read_bytes() == right


def test_the_digits_in_a_files_name_are_compared(host, tmp_path):
    place = Place("a.b", "", f"{host.address}/van-tiny-385941af.pth", "van-tiny-385941af.pth", None, None, None, 1000)
    host.answers["/van-tiny-385941af.pth"] = b"something else"
    with pytest.raises(hub.Refused, match=r"not 385941af\.\.\., as its name says"):
        download.fetch_weights(place)
    assert places.leading_digits("van-tiny_8xb128_in1k_20220501-385941af.pth") == "385941af"
    assert not places.leading_digits("moganet_xtiny_sz224_8xbs128_ep300.pth.tar")
    assert not places.leading_digits("cas_vit_xs_il-common.pt")


def gadget():
    class Gadget:
        def __reduce__(self):
            return print, ("this must not run",)

    return Gadget()


def fewer(content):
    for key in ("classifier", "dist_classifier"):
        for end in ("weight", "bias"):
            content["state"][f"{key}.{end}"] = content["state"][f"{key}.{end}"][:370]
    return content


FAULTS = {
    "a 404": ((404, {}, b"gone"), hub.HubError, r"\(404\) .*: the host does not give the file"),
    "a failing host": ((503, {}, b""), hub.HubError, r"\(503\) "),
    "another host": ((302, {"Location": "http://localhost:1/x"}, b""), hub.Refused, "sends on to http://localhost:1"),
    "another scheme": (
        (302, {"Location": "ftp://127.0.0.1/x"}, b""),
        (hub.Refused, hub.HubError),
        "ftp://127.0.0.1|302",
    ),
    "a loop": ((302, {"Location": "?again"}, b""), hub.HubError, r"\(302\)"),
    "half": (lambda data: (200, {"Content-Length": str(len(data))}, data[:1000]), hub.HubError, "arrived incomplete"),
    "cut": (lambda data: data[:1000], ValueError, "cannot be read as weights"),
    "too large": ((200, {"Content-Length": str(10**12)}, b""), hub.Refused, r"1,000,000,000,000 bytes; at most"),
    "empty": (b"", ValueError, "cannot be read as weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_on_the_way_is_told(fault, host, moved, tmp_path, capsys):
    answer, kind, said = FAULTS[fault]
    host.answers[moved(BIRDS)] = answer(packed(tmp_path, birds())) if callable(answer) else answer
    with pytest.raises(kind, match=said):
        quiet(BIRDS)
    assert not list((tmp_path / "torch").rglob("*.part"))
    assert len(host.asked) <= 11


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: birds(extra=gadget()), "cannot be read as weights: .*print"),
        (lambda: fewer(birds()), "has 370 classes, and casvit_xs.birder_il_common 371 classes"),
        (lambda: {"state": {}}, "holds no tensors by name"),
        (lambda: birds(state=dict(list(birds()["state"].items())[5:])), "the checkpoint does not fit"),
        (lambda: birds(class_to_idx={"one": 0}), "class_to_idx"),
        (lambda: birds(rgb_stats={"mean": ("x",), "std": None}), "rgb_stats"),
    ],
    ids=["gadget", "classes", "nothing", "a part", "names", "statistics"],
)
def test_what_is_wrong_with_a_file_is_told(content, said, host, moved, tmp_path, capsys):
    host.answers[moved(BIRDS)] = packed(tmp_path, content())
    with pytest.raises(ValueError, match=said):
        quiet(BIRDS)
    assert "this must not run" not in capsys.readouterr().out


def test_a_host_that_fails_once_is_asked_again(host, moved, tmp_path):
    path = moved(BIRDS)
    host.answers[path] = [(503, {}, b""), packed(tmp_path, birds())]
    quiet(BIRDS)
    assert host.asked == [path, path]


def test_offline_what_is_not_in_the_cache_is_told(host, moved, monkeypatch, tmp_path):
    path = moved(BIRDS)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubError, match=r"is not in .*, and no request may be made"):
        quiet(BIRDS)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    host.answers[path] = packed(tmp_path, birds())
    quiet(BIRDS)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    quiet(BIRDS)
    assert host.asked == [path]


def test_a_name_without_weights_says_who_has_some():
    with pytest.raises(
        RuntimeError, match=r"nobody publishes such weights of edgevit_s\. Of its family there are edgevit_"
    ):
        timm.create_model("edgevit_s", pretrained=True)
    with pytest.raises(RuntimeError, match=r"Under this name there are edgevit_xxs\.birder_il_common"):
        timm.create_model("edgevit_xxs", pretrained=True)
    with pytest.raises(RuntimeError, match=r"cloformer_xxs\. Of other families .*train DATA --model cloformer_xxs"):
        timm.create_model("cloformer_xxs", pretrained=True)


def test_the_list_agrees_with_timms():
    rows = weights.weights()
    ours = {row["name"] for row in rows}
    known = places.places()
    assert ours == {name for name in timm.list_models("*", pretrained=True, include_tags=True) if name in known}
    assert all(timm.get_pretrained_cfg(name).has_weights for name in ours)
    (row,) = weights.weights("casvit_xs.in1k_384")
    assert (row["place"], row["top1"], row["license"], row["pinned"]) == ("drive", 78.7, "mit", False)
    assert {row["name"] for row in weights.weights("edgevit_xs")} == {"edgevit_xs.birder_il_common"}
    with pytest.raises(ValueError, match=r"pattern='nothing' matches no tag with weights$"):
        weights.weights("nothing")


def test_a_pin_is_written_and_then_kept(host, moved, tmp_path, monkeypatch):
    host.answers[moved(BIRDS)] = packed(tmp_path, birds())
    package = tmp_path / "timm_mobilevit_zoo" / "hub"
    (tmp_path / "hub_configs").mkdir()
    config = tmp_path / "hub_configs" / f"{BIRDS}.json"
    architecture, _, tag = BIRDS.partition(".")
    config.write_text(json.dumps({"architecture": architecture, "tag": tag, "file": {"revision": None}}))
    monkeypatch.setattr(weights, "__file__", str(package / "weights.py"))
    with pytest.warns(UserWarning, match="is not known"):
        (row,) = weights.pin([BIRDS], write=True)
    assert row["name"] == BIRDS
    assert not row["known"]
    assert json.loads(config.read_text())["file"] == {key: row[key] for key in ("revision", "sha256", "bytes")}
    with pytest.raises(ValueError, match="names='vit_nano_patch4_32' has no file of weights"):
        weights.pin(["vit_nano_patch4_32"])


# The Hub: others' own repositories

SUOUS = {"hf_token_of_suous_to_write": ("suous", "write")}
ASK = """
import json, sys, warnings
import timm, torch
from safetensors.torch import save_file
import timm_mobilevit_zoo
from timm_mobilevit_zoo import hub
torch.set_num_threads(1)
said = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    for name in sys.argv[2:]:
        try:
            model = timm.create_model(name, pretrained=True).eval()
            with torch.inference_mode():
                image = torch.load(sys.argv[1])
                save_file({"logits": model(image)}, f"{name}.safetensors")
            said.append(model.pretrained_cfg["hf_hub_id"])
        except (OSError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
print("\\n" + json.dumps(said))
"""


@pytest.fixture
def repository(tmp_path, request):
    """A Hub with the repository of a name, what it holds there, and what a fresh process says of names."""
    name = getattr(request, "param", "recnext_m0")
    golden, place = next(path for path in GOLDEN if path.stem == name), places.place_of(timm.get_pretrained_cfg(name))
    file = tmp_path / place.file
    if file.suffix == ".safetensors":
        save_file(author_weights(golden), file)
    else:
        file.write_bytes(packed(tmp_path, {WRAPPERS[name.partition("_")[0]]: author_weights(golden)}))
    torch.save(recorded_image(64), tmp_path / "image.pt")
    with LocalHub(tmp_path / "hub", SUOUS) as local:
        local.add(place.repo_id, {place.file: file.read_bytes(), "config.json": b"{}"})

        def ask(*names, home="home", **env):
            done = client(["-c", ASK, str(tmp_path / "image.pt"), *names], local, tmp_path / home, **env)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        yield golden, local, ask, tmp_path / "home"


@pytest.mark.parametrize(
    ("repository", "missing"),
    [("recnext_m0", "recnext_m0.base_300e_in1k"), ("van_b0", "van_b1.in1k")],
    indirect=["repository"],
)
def test_a_repository_of_others_gives_the_recorded_logits(repository, missing):
    golden, local, ask, home = repository
    cfg = timm.get_pretrained_cfg(golden.stem)
    found, said = ask(golden.stem, missing)
    assert found == cfg.hf_hub_id
    assert said.startswith(f"HubError: (401) {PLACES[missing]}")
    compare(golden, "logits_64", load_file(home / f"{golden.stem}.safetensors")["logits"], "logits")
    asked = len(local.requests)
    assert ask(golden.stem, f"{golden.stem}.{cfg.tag}") == [cfg.hf_hub_id] * 2
    assert len(local.requests) == asked  # from the cache, and nothing asked


@pytest.mark.parametrize("repository", ["unireplknet_a"], indirect=True)
def test_one_file_of_a_repository_of_others_gives_the_recorded_logits(repository):
    golden, _, ask, home = repository
    found, said = ask("unireplknet_a", "unireplknet_f")
    assert found == "DingXiaoH/UniRepLKNet"
    assert re.match(r"HubError: \(404\) unireplknet_f_in1k_224_acc78\.58\.pth of DingXiaoH/UniRepLKNet", said)
    compare(golden, "logits_64", load_file(home / "unireplknet_a.safetensors")["logits"], "logits")


def test_a_repository_of_others_that_sends_another_file(repository):
    _, local, ask, _ = repository
    local.faults.append({"action": "corrupt", "offset": 100_000, "match": r"safetensors$", "method": "GET", "times": 9})
    local.faults.append({"action": "corrupt", "offset": 100_000, "host": "cdn", "method": "GET", "times": 9})
    (said,) = ask("recnext_m0")
    assert "its digest is" in said
    local.faults.clear()
    (found,) = ask("recnext_m0")
    assert found == "suous/recnext_m0.dist_300e_in1k"


def test_the_readmes_first_example_runs_with_such_weights(repository, tmp_path):
    _, local, _, home = repository
    page = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    code = re.search(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    home.mkdir()
    Image.new("RGB", (300, 200), "teal").save(home / "photo.jpg")
    done = client(["-c", code], local, home)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S.*: \d+\.\d%", done.stdout.splitlines()[-1])
    command = "import sys; from timm_mobilevit_zoo.cli import main; main(sys.argv[1:])"
    done = client(["-c", command, "predict", "recnext_m0", "photo.jpg"], local, home)
    assert done.returncode == 0, done.stderr
    assert re.match(r"photo\.jpg: [A-Za-z].* \d+\.\d%", done.stdout.splitlines()[-1])


COMMANDS = """
import contextlib, io, json, sys
import torch
from timm_mobilevit_zoo.cli import main
torch.set_num_threads(1)
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    said.append([status or 0, out.getvalue()])
print("\\n" + json.dumps(said))
"""


def test_every_command_takes_such_names(repository, digits):
    _, local, _, home = repository
    home.mkdir()
    name = "recnext_m0.dist_300e_in1k"
    Image.new("RGB", (300, 200), "teal").save(home / "photo.jpg")
    train = ["train", str(digits), "--img-size", "32", "--epochs", "1", "--warmup-epochs", "0", "--workers", "0"]
    train += ["--batch-size", "16"]
    commands = [
        ["export", name, "--format", "onnx", "--output", "recnext.onnx", "--img-size", "32"],
        ["bench", name, "--img-size", "32", "--rounds", "5", "--seconds", "0.01", "--threads", "1"],
        [*train, "--model", name, "--pretrained", "--output", "run"],
        [*train, "--model", "vit_nano_patch4_32", "--teacher", name, "--output", "taught"],
    ]
    done = client(["-c", COMMANDS, json.dumps(commands)], local, home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _ in said] == [0, 0, 0, 2], "\n".join(text for _, text in said)
    manifest = json.loads((home / "recnext.onnx.json").read_text(encoding="utf-8"))
    assert (manifest["architecture"], manifest["output"]["shape"]) == ("recnext_m0", [1, 1000])
    assert json.loads((home / "run" / "config.json").read_text(encoding="utf-8"))["num_classes"] == 3
    assert "teacher" in said[-1][1]  # which knows a thousand other classes
    fetched = [one for one in local.requests if one.host == "cdn" and one.method == "GET"]
    assert len(fetched) == 1  # by the first of them


def test_hub_takes_names_whose_weights_are_others(host, moved, tmp_path):
    host.answers[moved(BIRDS)] = packed(tmp_path, birds())
    with pytest.warns(UserWarning, match="is not known"):
        found = hub.pull(BIRDS, output=str(tmp_path / "folder"))
    assert (found["architecture"], found["num_classes"], found["path"]) == ("casvit_xs", 371, str(tmp_path / "folder"))
    assert hub.check(tmp_path / "folder")["num_classes"] == 371
    model = hub.load(BIRDS, local_files_only=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert again.pretrained_cfg["label_names"] == model.pretrained_cfg["label_names"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert len(host.asked) == 1


def test_a_tag_that_is_gone_keeps_no_folder_from_loading():
    cfg = timm.get_pretrained_cfg("casvit_xs").to_dict() | {"tag": "of_another_time", "url": None}
    weights = timm.create_model("casvit_xs", num_classes=3).state_dict()
    cfg |= {"state_dict": weights, "num_classes": 3}
    model = timm.create_model("casvit_xs", pretrained=True, pretrained_cfg=cfg, num_classes=3)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
