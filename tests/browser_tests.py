"""The page in a browser: `make page-test` runs this, with Debian's Chromium and npm's onnxruntime-web.

    ZOO_CHROMIUM=/usr/bin/chromium ZOO_ORT_WEB=onnxruntime-web-VERSION.tgz pytest tests/browser_tests.py

ZOO_SCREENSHOTS=FOLDER keeps what a phone and a desktop show.
"""

import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_images import TURNS, turned
from timm.data import resolve_data_config
from timm.models import save_for_hf
from zoo import KINDS, close, create, interruptible

from timm_mobilevit_zoo.common.images import read_image, reader
from timm_mobilevit_zoo.demo import write_digits
from timm_mobilevit_zoo.maps.panels import clarity, panels_of
from timm_mobilevit_zoo.maps.recording import record
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.page import page as write_page
from timm_mobilevit_zoo.predict import load, predict

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
OTHERS = ["test_resnet", KINDS[1]]  # timm's smallest, without attention, and one of ours with a class token
PRECISIONS = ["fp32", "fp16", "int8"]
SIZE = 64
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1200, "height": 900}
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WAIT = 60_000  # milliseconds, for what takes a moment


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "digits"
    write_digits(folder)
    return {split: sorted((folder / split).glob("*/*.png")) for split in ("train", "val")}


@pytest.fixture(scope="session")
def model(digits, tmp_path_factory):
    """CloFormer with a classifier that is fitted to digits, on features of random weights; as `train` leaves one."""
    overlay = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0}
    network = seed_weights(create("cloformer_xxs", num_classes=10, pretrained_cfg_overlay=overlay))
    read = reader(resolve_data_config({}, model=network))
    picked = digits["train"][::6]
    with torch.inference_mode():
        features = [
            network.forward_head(network.forward_features(read(path)[None]), pre_logits=True) for path in picked
        ]
        x = torch.cat(features)
        mean, std = x.mean(0), x.std(0) + 1e-6
        z = (x - mean) / std
        wanted = 8 * torch.eye(10)[[int(path.parent.name) for path in picked]]
        weight = torch.linalg.solve(z.T @ z + 100 * torch.eye(z.shape[1]), z.T @ wanted).T / std
        head = network.get_classifier()
        head.weight.copy_(weight)
        head.bias.copy_(wanted.mean(0) - weight @ mean)
    folder = tmp_path_factory.mktemp("model") / "digits"
    save_for_hf(network, folder, model_config={"label_names": LABELS}, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def site(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "below" / "site"
    folder.parent.mkdir()
    write_page([str(model), *OTHERS], output=str(folder), runtime=os.environ["ZOO_ORT_WEB"], pretrained=False)
    return folder


@pytest.fixture(scope="session")
def precise(digits, tmp_path_factory):
    """A page whose models are in each precision."""
    folder = tmp_path_factory.mktemp("precise") / "site"
    calibration = str(digits["train"][0].parent.parent)
    given = {"precision": PRECISIONS, "calibration": calibration, "runtime": os.environ["ZOO_ORT_WEB"]}
    write_page(OTHERS, output=str(folder), pretrained=False, **given)
    return folder


@contextmanager
def served(site):
    command = [sys.executable, "-m", "timm_mobilevit_zoo", "page", "-o", str(site), "--serve"]
    with interruptible(command) as server:
        yield server.stdout.readline().split()[0]
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


@pytest.fixture(scope="session")
def url(site):
    """The page as the command serves it."""
    with served(site) as address:
        yield address


@pytest.fixture(scope="session")
def precise_url(precise):
    with served(precise) as address:
        yield address


@pytest.fixture(scope="session")
def plain(site):
    """The page as any server of files has it, below a path and without headers."""
    handler = partial(SimpleHTTPRequestHandler, directory=site.parent.parent)
    handler.log_message = lambda *args: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{site.parent.name}/{site.name}/"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["ZOO_CHROMIUM"], args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def chromium_with_gpu(chromium):
    """Chromium with a GPU made of software."""
    flags = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-vulkan=swiftshader"]
    flags += ["--use-webgpu-adapter=swiftshader", "--use-angle=swiftshader"]
    flags += [flag for flag in FLAGS if flag != "--disable-gpu"]
    kind = chromium.browser_type
    browser = kind.launch(executable_path=os.environ["ZOO_CHROMIUM"], args=flags, ignore_default_args=["--disable-gpu"])
    yield browser
    browser.close()


@pytest.fixture
def visit(chromium):
    """What opens an address; afterwards nothing may have come from elsewhere, and nothing may have gone wrong."""
    contexts, origins, requests, errors = [], set(), [], []

    def visit(address, viewport=PHONE, **options):
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        origins.add("/".join(address.split("/")[:3]))
        context.on("request", lambda request: requests.append(request.url))
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(address)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert requests
    assert {"/".join(found.removeprefix("blob:").split("/")[:3]) for found in requests} == origins
    assert errors == []


def ready(tab):
    expect(tab.locator("#status")).to_have_text("Ready", timeout=WAIT)


def state(tab, what):
    return tab.evaluate(f"async () => (await import('./app.js')).state.{what}")


def classify(tab, path):
    """Give the page a file and return its classes."""
    tab.evaluate("async () => { (await import('./app.js')).state.classes = null; }")
    tab.set_input_files("#file", path)
    for _ in range(300):
        if found := state(tab, "classes"):
            ready(tab)
            return found
        tab.wait_for_timeout(100)
    return pytest.fail(f"no classes: {tab.inner_text('#status')}")


def overflow(tab):
    """What pokes out of the page on the right."""
    return tab.evaluate(
        """() => {
          const { scrollWidth, clientWidth } = document.documentElement;
          const all = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
          const out = all.filter((one) => one.getBoundingClientRect().right > clientWidth + 0.5);
          return [...out.map((one) => one.outerHTML.slice(0, 80)), ...(scrollWidth > clientWidth ? ["scrolls"] : [])];
        }"""
    )


def test_it_classifies_as_python_does(visit, url, model, digits):
    network, paths = load(str(model)), [str(path) for path in digits["val"][::25]]
    right = 0
    tab = visit(url)
    ready(tab)
    for path, wanted in zip(paths, predict(network, paths), strict=True):
        found, wanted = classify(tab, path), wanted["classes"]
        assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
        assert tab.inner_text("#classes li:first-child .name") == wanted[0]["label"]
        assert tab.inner_text("#classes li:first-child .share") == f"{100 * wanted[0]['probability']:.1f}%"
        right += LABELS[int(Path(path).parent.name)] == found[0]["label"]
    assert right > 0.7 * len(paths), "or the model says nothing worth comparing"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 0.9, "input_size": (3, 48, 80)},
        {"crop_mode": "squash", "input_size": (3, 33, 47)},
        {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.25,)},
    ],
    ids=lambda config: " ".join(map(str, config.values())) or "plain",
)
def test_it_prepares_images_as_timm_does(visit, url, tmp_path, config):
    base = {"input_size": (3, 64, 64), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    config = base | {"crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "center"} | config
    generator = np.random.default_rng(0)
    tab = visit(url + "preprocess.js")  # where no model is loaded
    for width, height in [(97, 61), (61, 97), (150, 110), (20, 33), (64, 64)]:
        pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.fromarray(pixels[..., :3])
        if config["crop_mode"] == "squash":  # Pillow 13 may take the height first; before, the width always came first
            image = image.resize((int(config["input_size"][2] / config["crop_pct"]), height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "noise.png")
        wanted = reader(config)(tmp_path / "noise.png")
        given = {"data": pixels.flatten().tolist(), "width": width, "height": height}
        found = tab.evaluate(
            """async ([image, input]) => {
              const { prepare } = await import("./preprocess.js");
              return Array.from(prepare(image, input));
            }""",
            [given, config | {"shape": [1, *config["input_size"]]}],
        )
        close(torch.tensor(found).view_as(wanted), wanted)  # a step of 8 bits is 0.015


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_photos_stand_upright_as_in_python(visit, url, tmp_path, ending):
    tab = visit(url)
    ready(tab)
    for orientation in TURNS:
        path = turned(tmp_path, orientation, ending)[1]
        classify(tab, path)
        wanted = read_image(path, "RGB")
        shown = tab.evaluate(
            """async () => {
              const { data, width, height } = (await import("./app.js")).state.picture.pixels;
              return { data: Array.from(data), size: [width, height] };
            }"""
        )
        assert tuple(shown["size"]) == wanted.size == (80, 48), orientation
        found = np.array(shown["data"]).reshape(48, 80, 4)[..., :3]
        assert abs(found - np.asarray(wanted).astype(int)).max() <= 4 * (ending == "jpg"), orientation


def test_its_maps_are_those_of_python(visit, url, model, digits):
    path = digits["val"][100]
    network = load(str(model))
    x = reader(resolve_data_config({}, model=network))(path)[None]
    panels = {panel.title: panel for panel in panels_of(network, x, record(network, x))}
    tab = visit(url)
    ready(tab)
    expect(tab.locator("#overlay")).to_be_hidden()
    classify(tab, path)
    tab.check("#show")
    expect(tab.locator("#overlay")).to_be_visible()
    ready(tab)
    ranks = {title: (min(panel.cells) >= 4, clarity(panel)) for title, panel in panels.items()}
    assert state(tab, "map")["title"] == max(ranks, key=ranks.get), "the choice of Python"
    titles = tab.locator("#layer option").all_inner_texts()
    assert titles == list(panels)
    varied = 0
    for title in titles:
        tab.select_option("#layer", title)
        ready(tab)
        shown, wanted = state(tab, "map"), panels[title].values
        assert shown["title"] == title
        found = torch.tensor(shown["values"]).view(shown["height"], shown["width"])
        assert float((found - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())
        flat = bool(wanted.max() - wanted.min() <= 1e-5 * wanted.abs().max())
        assert ("the same everywhere" in tab.inner_text("#kind")) == flat
        varied += not flat
    assert varied > 12
    tab.uncheck("#show")
    expect(tab.locator("#overlay")).to_be_hidden()


def test_a_model_without_recorded_attention_says_so(visit, url):
    tab = visit(url)
    ready(tab)
    tab.select_option("#model", OTHERS[0])
    expect(tab.locator("#no-attention")).to_be_visible(timeout=WAIT)
    expect(tab.locator("#attention")).to_be_hidden()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=lambda one: str(one["width"]))
def test_times_and_layout(visit, url, digits, viewport):
    scheme = "dark" if viewport is DESKTOP else "light"
    tab = visit(url, viewport, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"])
    ready(tab)
    assert overflow(tab) == []
    classify(tab, digits["val"][300])
    tab.check("#show")
    tab.fill("#runs", "3")
    tab.fill("#threads", "2")
    tab.click("#time")
    expect(tab.locator("#timings")).to_be_visible(timeout=2 * WAIT)
    ready(tab)
    report = state(tab, "report")
    names = ["digits", *OTHERS]
    backends = ["WASM, 1 thread", "WASM, 2 threads", "WebGPU"]
    assert [(row["backend"], row["model"]) for row in report["rows"]] == [(b, name) for b in backends for name in names]
    for row in report["rows"]:
        if row["backend"] == "WebGPU" and "error" in row:  # a machine may have no device for it
            assert "WebGPU" in row["error"]
            continue
        assert row["threads"] == (2 if row["backend"] == "WASM, 2 threads" else 1)
        assert len(row["times"]) == 3
        assert 0 < row["q1"] <= row["median"] <= row["q3"]
        assert row["median"] == pytest.approx(float(np.median(row["times"])))
        assert row["q3"] == pytest.approx(float(np.quantile(row["times"], 0.75)))
        assert row["off"] < 1e-4
        assert row["ratio"] == pytest.approx(row["median"] / report["rows"][0]["median"])
    assert report["device"]["crossOriginIsolated"] is True
    assert tab.locator("#rows tr").count() == len(report["rows"])
    assert tab.locator("#chart svg").count() == len([row for row in report["rows"] if "error" not in row])
    tab.click("#copy")
    expect(tab.locator("#copied")).to_have_text("Copied")
    assert json.loads(tab.evaluate("navigator.clipboard.readText()")) == report
    for width in (viewport["width"], 360, 820):
        tab.set_viewport_size(viewport | {"width": width})
        assert overflow(tab) == []
    tab.set_viewport_size(viewport)
    if folder := os.environ.get("ZOO_SCREENSHOTS"):
        tab.screenshot(path=Path(folder, f"page-{viewport['width']}.png"), full_page=True)


def test_webgpu_computes_the_same(chromium_with_gpu, url):
    tab = chromium_with_gpu.new_page()
    tab.goto(url)
    ready(tab)
    found = tab.evaluate(
        """async () => {
          const [{ Engine }, { state }] = [await import("./engine.js"), await import("./app.js")];
          const model = state.index.models.at(-1).files[0];
          const logits = [];
          for (const backend of ["wasm", "webgpu"]) {
            const engine = new Engine();
            await engine.call("start", { backend, threads: 1, sizes: state.index.runtime.files });
            await engine.call("open", model);
            logits.push(Array.from(await engine.call("check", { file: model.file, ...model.manifest })));
            engine.close();
          }
          return logits;
        }"""
    )
    wasm, webgpu = torch.tensor(found)
    assert float((wasm - webgpu).abs().max() / wasm.std()) < 1e-3
    assert not torch.equal(wasm, webgpu)


@pytest.mark.parametrize(("off", "told"), [("0.0009", False), ("0.5", True), ("NaN", True)])
def test_logits_that_differ_from_the_first_backends_are_told(visit, url, off, told):
    tab = visit(url + "preprocess.js")
    text = tab.evaluate(
        """async (off) => {
          const { fillTable } = await import("./timing.js");
          const body = document.createElement("tbody");
          const times = { median: 2, q1: 1, q3: 3, ratio: 1, off: Number(off), tolerance: 1e-3 };
          fillTable(body, [{ model: "m", precision: "fp32", bytes: 2 ** 20, backend: "b", ...times }]);
          return body.textContent;
        }""",
        off,
    )
    assert text.startswith("mfp32, 1.0 MiBb")
    assert ("logits off by" in text) == told
    assert text.endswith("3.001.00")


def logits_of(path, x):
    """What onnxruntime makes of an image, here."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x})[0])[0]


def test_each_precision_classifies_as_python_does(visit, precise, precise_url, digits):
    tab, index = visit(precise_url), json.loads((precise / "models" / "index.json").read_text())
    ready(tab)
    for model in index["models"]:
        tab.select_option("#model", model["name"])
        shares = {}
        for file in model["files"]:
            path = precise / "models" / file["file"]
            size = f"{file['precision']}, {path.stat().st_size / 2**20:.1f} MiB"
            tab.select_option("#precision", label=size)
            expect(tab.locator("#about")).to_contain_text(f"{model['name']}: ")
            expect(tab.locator("#about")).to_contain_text(size)
            ready(tab)
            manifest = json.loads((precise / "models" / file["manifest"]).read_text())
            told = manifest["input"]
            config = {key: told[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
            config["input_size"] = told["shape"][1:]
            wanted = logits_of(path, reader(config)(digits["val"][0])[None].numpy()).log_softmax(0)
            shares[file["precision"]] = classify(tab, digits["val"][0])
            for found in shares[file["precision"]]:
                off = abs(float(np.log(found["probability"]) - wanted[found["index"]]) / wanted.std())
                # In 8 bits, a difference in a float's last digit may tip a value into the next step.
                assert off < {"fp32": 1e-3, "fp16": 0.01, "int8": 0.1}[file["precision"]]
            note = tab.inner_text("#precision-note")
            assert ("WASM, which has no 16-bit arithmetic" in note) == (file["precision"] == "fp16")
            assert ("maps are always computed in fp32" in note) == (file["precision"] != "fp32" and bool(model["maps"]))
        of = [[one["probability"] for one in shares[precision]] for precision in PRECISIONS]
        assert of[0] != of[1] != of[2], "or one file was run for all"


def test_precisions_are_timed_beside_fp32(visit, precise_url, digits):
    tab = visit(precise_url)
    ready(tab)
    classify(tab, digits["val"][0])
    tab.fill("#runs", "3")
    tab.fill("#threads", "1")
    tab.click("#time")
    expect(tab.locator("#timings")).to_be_visible(timeout=2 * WAIT)
    expect(tab.locator("#to-fp32")).to_be_visible()
    rows = state(tab, "report")["rows"]
    ran = [row for row in rows if "error" not in row]
    assert [(row["model"], row["precision"]) for row in ran[:6]] == [(m, p) for m in OTHERS for p in PRECISIONS]
    medians = {(row["model"], row["backend"], row["precision"]): row["median"] for row in ran}
    shown = tab.locator("#rows tr").all()
    assert len(shown) == len(rows)
    for row, line in zip(rows, shown, strict=True):
        assert f"{row['precision']}, {row['bytes'] / 2**20:.1f} MiB" in line.inner_text()
        if "error" not in row:
            whole = medians[row["model"], row["backend"], "fp32"]
            assert row["ratioToFp32"] == pytest.approx(row["median"] / whole)
            assert line.locator("td:last-child").inner_text() == f"{row['ratioToFp32']:.2f}"
            assert row["off"] <= row["tolerance"] == {"fp32": 1e-3, "fp16": 0.03, "int8": 0.2}[row["precision"]]
    for width in (390, 360, 820, 1200):
        tab.set_viewport_size({"width": width, "height": 844})
        assert overflow(tab) == []
        if folder := os.environ.get("ZOO_SCREENSHOTS"):
            tab.screenshot(path=Path(folder, f"precisions-{width}.png"), full_page=True)


@pytest.mark.parametrize(
    ("gpu", "precision", "lack"),
    [
        ("null", "fp32", "This browser has no WebGPU"),
        ("{ requestAdapter: async () => null }", "fp32", "This browser has WebGPU, but this device cannot use it"),
        ("{ requestAdapter: async () => { throw 0; } }", "int8", "This browser has WebGPU, but this device"),
        ("{ requestAdapter: async () => ({ features: new Set() }) }", "fp32", ""),
        ("{ requestAdapter: async () => ({ features: new Set() }) }", "int8", ""),
        ("{ requestAdapter: async () => ({ features: new Set() }) }", "fp16", "it lacks shader-f16"),
        ("{ requestAdapter: async () => ({ features: new Set(['shader-f16']) }) }", "fp16", ""),
    ],
)
def test_what_a_devices_webgpu_lacks(visit, precise_url, gpu, precision, lack):
    tab = visit(precise_url + "preprocess.js")
    found = tab.evaluate(f"async () => (await import('./gpu.js')).lackOf({gpu}, '{precision}')")
    assert lack in found
    assert bool(found) == bool(lack)


def test_a_gpu_without_16_bits_runs_the_others_and_says_so(chromium_with_gpu, precise, precise_url):
    """SwiftShader has no shader-f16; in 8 bits it rounds other halves than a CPU."""
    tab = chromium_with_gpu.new_page()
    tab.goto(precise_url)
    ready(tab)
    lack = "WebGPU on this device cannot compute in 16 bits (it lacks shader-f16)"
    expect(tab.locator("#gpu-note")).to_have_text(f"{lack}: fp16 models are timed on WASM only.")
    found = tab.evaluate(
        """async () => {
          const [{ Engine }, { state }] = [await import("./engine.js"), await import("./app.js")];
          const engine = new Engine();
          await engine.call("start", { backend: "webgpu", threads: 1, sizes: state.index.runtime.files });
          const found = {};
          for (const file of state.index.models.at(-1).files) {
            try {
              await engine.call("open", file);
              const { input, output } = file.manifest;
              found[file.precision] = Array.from(await engine.call("check", { file: file.file, input, output }));
            } catch (error) {
              found[file.precision] = error.message;
            }
          }
          engine.close();
          return found;
        }"""
    )
    assert found.pop("fp16") == lack
    for file in json.loads((precise / "models" / "index.json").read_text())["models"][-1]["files"]:
        if file["precision"] in found:
            logits = torch.tensor(found[file["precision"]])
            right = logits_of(precise / "models" / file["file"], noise(precise, file))
            rms = float((logits - right).square().mean().sqrt() / right.std())
            assert rms < {"fp32": 1e-4, "int8": 0.05}[file["precision"]]


def noise(site, file):
    """The numbers that the page's worker makes up."""
    shape, seed, values = json.loads((site / "models" / file["manifest"]).read_text())["input"]["shape"], 1, []
    for _ in range(int(np.prod(shape))):
        seed = (seed * 1664525 + 1013904223) % 2**32
        values.append((seed - (seed >= 2**31) * 2**32) / 2**31)
    return np.array(values, dtype=np.float32).reshape(shape)


def test_any_server_of_files_does_with_one_thread(visit, plain, digits):
    tab = visit(plain)
    ready(tab)
    expect(tab.locator("#threads-note")).to_be_visible()
    expect(tab.locator("#threads")).to_be_disabled()
    assert len(classify(tab, digits["val"][0])) == 5
    tab.fill("#runs", "3")
    tab.click("#time")
    expect(tab.locator("#timings")).to_be_visible(timeout=WAIT)
    rows = [row for row in state(tab, "report")["rows"] if "error" not in row]
    assert {row["threads"] for row in rows} == {1}


def test_the_camera(visit, url):
    tab = visit(url, permissions=["camera"])
    ready(tab)
    tab.click("#camera")
    expect(tab.locator("#classes li")).to_have_count(5, timeout=WAIT)
    expect(tab.locator("#camera")).to_have_attribute("aria-pressed", "true")
    tab.click("#camera")
    expect(tab.locator("#camera")).to_have_attribute("aria-pressed", "false")
    assert tab.evaluate("document.getElementById('video').srcObject.active") is False


def test_what_goes_wrong_is_said(visit, url, site, tmp_path, digits):
    (tmp_path / "none.png").write_text("no image")
    tab = visit(url)
    ready(tab)
    tab.set_input_files("#file", tmp_path / "none.png")
    expect(tab.locator("#status")).to_have_text("This browser cannot read none.png as an image")
    classify(tab, digits["val"][0])
    tab.click("#time")
    tab.click("#stop")
    expect(tab.locator("#timing-status")).to_have_text("Stopped")
    expect(tab.locator("#time")).to_be_enabled()
    lost = site / "models" / f"{OTHERS[1]}.onnx"
    lost.rename(tmp_path / "lost")
    try:
        tab.select_option("#model", OTHERS[1])
        expect(tab.locator("#status")).to_have_text(f"Cannot load models/{lost.name}: the server answered 404")
    finally:
        (tmp_path / "lost").rename(lost)
    expect(tab.locator("#model")).to_have_value("digits")  # what is still shown


def test_the_keyboard_reaches_everything(visit, url, digits):
    tab = visit(url)
    ready(tab)
    classify(tab, digits["val"][0])
    tab.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
    assert reached[:7] == ["model", "file", "camera", "show", "runs", "threads", "time"]
