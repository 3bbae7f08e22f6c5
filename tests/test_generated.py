"""Nothing that docs/tools/generate.py writes is stale."""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from matplotlib.figure import Figure
from torch import nn
from zoo import EVERY_SIZE, FIRST, KINDS, create, family, image

from timm_mobilevit_zoo.models.probe import matches, probe, seed_weights

ROOT = Path(__file__).resolve().parent.parent


sys.path.append(str(ROOT / "docs" / "tools"))  # what starts a tool as a script has its folder there


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families, generate, distill_digits = map(load, ("families", "generate", "distill_digits"))
benchmarks, growth, frontier = load("benchmarks"), load("growth"), load("frontier")
formats = load("formats")
CONFIGS = sorted((ROOT / "hub_configs").glob("*.json"))
PUBLISHED = {
    "hub": {
        "repo_id": "someone/weights",
        "revision": "0123456789" * 4,
        "sha256": {"config.json": "01" * 32, "model.safetensors": "ab" * 32},
    },
    "probe": {"seed": 0, "weights": "published", "logits": [1.5, -2.25, 3.0]},
}


ALL = generate.variants()


def some():
    """Return variants of two networks: what is written of one is written of all."""
    return [variant for variant in ALL if EVERY_SIZE or variant.partition(".")[0] in KINDS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    (root / "docs").mkdir()
    marks = {generate.PAGE: (generate.BEGIN, generate.END, *generate.TAGS)}
    for page, lines in (marks | dict.fromkeys(families.READMES, (families.BEGIN, families.END))).items():
        (root / page).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "variants", some)
        generate.write(root)
    return root


@pytest.fixture
def root(written, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "variants", some)
    return shutil.copytree(written, tmp_path / "root")


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries, indent=2) + "\n")


def logits_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["probe"]["logits"]


@pytest.mark.slow  # `make check` asks for the same
def test_nothing_is_stale():
    assert generate.check() == []


def test_every_variant_has_one_hub_config():
    assert generate.variants()
    assert len(CONFIGS) == len(generate.variants())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_hub_config_tells_the_model(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    name = config["architecture"]
    assert path.stem in (name, f"{name}.{config['tag']}")
    model = timm.create_model(f"{name}.{config['tag']}")
    assert config["num_classes"] == model.num_classes
    assert config["params"] == sum(p.numel() for p in model.parameters())
    cfg = timm.get_pretrained_cfg(f"{name}.{config['tag']}")
    for field in ("input_size", "mean", "std"):
        assert config[field] == list(getattr(cfg, field))


def test_a_probe_tells_logits_apart(root):
    for path in (root / "hub_configs").iterdir():
        logits = logits_of(path)
        assert len(logits) == 8
        assert np.std(logits) > 0.1
        assert np.abs(logits).max() < 10


def test_a_commit_is_the_one_that_the_docstring_names():
    told = {}
    for path in CONFIGS:
        config = json.loads(path.read_text(encoding="utf-8"))
        told.setdefault(family(config["architecture"]), set()).add(config["source_commit"])
    for module, commits in told.items():
        named = re.findall(r"commit ([0-9a-f]{7})\b", importlib.import_module(module).__doc__)
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits - {None})
        assert {commit[:7] for commit in commits - {None}} == set(named)


def test_a_changed_missing_or_left_over_file_is_named(root):
    assert generate.check(root) == []
    configs = sorted((root / "hub_configs").glob("*.json"))
    configs[0].write_text("{}\n", encoding="utf-8")
    configs[1].unlink()
    (root / "hub_configs" / "gone.json").write_text("{}\n", encoding="utf-8")
    (root / "README.md").write_text(f"{families.BEGIN}\n{families.END}\n", encoding="utf-8")
    stale = {f"hub_configs/{path.name}" for path in configs[:2]} | {"hub_configs/gone.json", "README.md"}
    assert set(generate.check(root)) == stale
    generate.write(root)
    assert generate.check(root) == []


def test_another_probe_is_stale_and_its_last_digits_are_not(root):
    path = sorted((root / "hub_configs").glob("*.json"))[0]
    logits = logits_of(path)
    change(path, probe={"seed": 0, "weights": "seeded by name", "logits": [value * (1 + 2e-5) for value in logits]})
    text = path.read_text(encoding="utf-8")
    assert generate.check(root) == []
    generate.write(root)
    assert path.read_text(encoding="utf-8") == text
    for found in (
        {"seed": 0, "weights": "seeded by name", "logits": [value * 1.001 for value in logits]},
        {"seed": 0, "weights": "seeded by name", "logits": logits[:-1]},
        {"seed": 0, "weights": "seeded by name", "logits": "none"},
        {"seed": 1, "weights": "seeded by name", "logits": logits},
        {"seed": 0, "weights": "published", "logits": logits},
        None,
    ):
        change(path, probe=found)
        assert generate.check(root) == [f"hub_configs/{path.name}"]
    generate.write(root)
    assert logits_of(path) == logits


@pytest.mark.parametrize("name", FIRST)
def test_a_probe_finds_a_changed_network(name):
    size = timm.get_pretrained_cfg(name).input_size
    expected = probe(seed_weights(create(name)), size)
    assert matches(probe(seed_weights(create(name)), size), expected, 1e-6)
    model = create(name)
    activations = (nn.GELU, nn.Hardtanh, nn.ReLU, nn.SiLU)
    where = [key for key, module in model.named_modules() if isinstance(module, activations)]
    parent, _, child = (where or [key for key, module in model.named_modules() if key.endswith("act")])[0].rpartition(
        "."
    )
    setattr(model.get_submodule(parent), child, nn.Hardswish())
    assert not matches(probe(seed_weights(model), size), expected)


def test_what_was_published_is_kept(root):
    path = sorted((root / "hub_configs").glob("*.json"))[0]
    before = json.loads(path.read_text(encoding="utf-8"))
    change(path, **PUBLISHED)
    # The tables name the repository, or count what it holds.
    assert set(generate.check(root)) == {generate.PAGE, families.CARDS, *families.READMES}
    change(path, params=1)
    path.rename(path.with_name("renamed.json"))  # its content says what it is
    generate.write(root)
    assert json.loads(path.read_text(encoding="utf-8")) == before | PUBLISHED
    assert generate.check(root) == []
    link = "[someone/weights](https://huggingface.co/someone/weights)"
    page = (root / generate.PAGE).read_text(encoding="utf-8")
    assert link in page
    assert f"`{before['tag']}`" in page
    assert f"`{before['architecture']}.{before['tag']}`" in (root / families.CARDS).read_text(encoding="utf-8")


def test_pins_of_a_name_that_is_gone_are_not_deleted(root):
    path = sorted((root / "hub_configs").glob("*.json"))[0]
    change(path, architecture="gone", **PUBLISHED)
    with pytest.raises(ValueError, match=r"hub_configs holds pins of gone\.\w+, not registered: delete it by hand"):
        generate.write(root)
    assert path.is_file()


def hub(**entries):
    return PUBLISHED | {"hub": PUBLISHED["hub"] | entries}


def told(**entries):
    return PUBLISHED | {"probe": PUBLISHED["probe"] | entries}


COMMIT, DIGEST = "must be a commit of 40 hex digits", "must be a digest of 64 hex digits"
MALFORMED = {
    "no object": ({"hub": "someone/weights"}, "hub=someone/weights must have repo_id, revision and sha256"),
    "another entry": (hub(branch="main"), r"hub=\{.*'branch'.* must have repo_id, revision and sha256, only these"),
    "no owner": (hub(repo_id="weights"), "hub.repo_id='weights' must be a repository, 'owner/name'"),
    "an address": (hub(repo_id="https://hf.co/a/b"), "hub.repo_id='https://hf.co/a/b' must be a repository"),
    "a way up": (hub(repo_id="../weights"), "hub.repo_id='../weights' must be a repository"),
    "no repository": (hub(repo_id=None), "hub.repo_id=None must be a repository"),
    "a branch": (hub(revision="main"), f"hub.revision='main' {COMMIT}"),
    "a short commit": (hub(revision="0123456"), f"hub.revision='0123456' {COMMIT}"),
    "capital digits": (hub(revision="A" * 40), f"hub.revision='A+' {COMMIT}"),
    "a line more": (hub(revision="a" * 40 + "\n"), rf"hub.revision='a+\\n' {COMMIT}"),
    "no commit": (hub(revision=None), f"hub.revision=None {COMMIT}"),
    "no digests": (hub(sha256=None), "hub.sha256=None must have a digest of config.json and of model.safetensors"),
    "one digest": (hub(sha256={"model.safetensors": "a" * 64}), "hub.sha256=.* must have a digest of config.json and"),
    "a short digest": (
        hub(sha256={"config.json": "a" * 64, "model.safetensors": "b" * 63}),
        rf"hub.sha256\['model.safetensors'\]='b+' {DIGEST}",
    ),
    "a digest that is none": (
        hub(sha256={"config.json": 1, "model.safetensors": "b" * 64}),
        rf"hub.sha256\['config.json'\]=1 {DIGEST}",
    ),
    "no probe": (PUBLISHED | {"probe": None}, "probe.weights=None must be 'published'"),
    "the probe of seeds": (told(weights="seeded by name"), "probe.weights='seeded by name' must be 'published'"),
    "another seed": (told(seed=1), "probe.seed=1 must be 0"),
    "no logits": (told(logits=[]), r"probe.logits=\[\] must be 1 to 8 finite numbers"),
    "an entry more": (told(extra=1), "probe must have seed and logits, only these"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pins_are_refused_by_name(root, case):
    path = sorted((root / "hub_configs").glob("*.json"))[0]
    entries, message = MALFORMED[case]
    change(path, **entries)
    with pytest.raises(ValueError, match=f"^hub_configs/{path.name}: {message}"):
        generate.check(root)


def test_files_that_might_hold_pins_are_not_passed_over(root):
    path, other = sorted((root / "hub_configs").glob("*.json"))[:2]
    change(path, **PUBLISHED)
    shutil.copy(path, other)
    with pytest.raises(
        ValueError, match=f"^hub_configs/{other.name}: architecture='.*', tag='.*' are those of another"
    ):
        generate.check(root)
    for text, message in (("<<<<<<< HEAD", "is not JSON: .*"), ("[]", "is not a JSON object")):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"^hub_configs/{other.name} {message}"):
            generate.check(root)


@pytest.mark.parametrize("path", distill_digits.PAGES, ids=lambda path: path.parent.name)
def test_the_tables_of_distillation_are_what_was_measured(path):
    assert path.read_text(encoding="utf-8") == distill_digits.page(path)


def test_every_way_to_learn_was_measured_with_every_seed():
    assert all(len(found) == 3 for (student, _), found in distill_digits.groups().items() if student != "teacher")
    ways = sum(len(ways) for _, _, ways in distill_digits.STUDENTS)
    assert len(distill_digits.groups()) == ways + 1


@pytest.fixture
def measured(tmp_path):
    """A copy of the page on benchmarks with all measurements, pictures and text."""
    shutil.copytree(ROOT / benchmarks.FOLDER, tmp_path / benchmarks.FOLDER)
    shutil.copy(ROOT / benchmarks.PAGE, tmp_path / benchmarks.PAGE)
    return tmp_path


def test_the_benchmarks_are_what_was_measured():
    assert benchmarks.check() == []


def test_what_was_measured_anew_makes_page_and_picture_stale(measured, monkeypatch):
    empty = {name: (lambda *runs: Figure(), sources) for name, (_, sources) in benchmarks.FIGURES.items()}
    monkeypatch.setattr(benchmarks, "FIGURES", empty)  # to draw them takes seconds
    for name in ("frontier", "growth"):
        path = measured / benchmarks.FOLDER / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows[0]["ms"]["median"] *= 1.5
        path.write_text(json.dumps(rows), encoding="utf-8")
    (measured / benchmarks.FOLDER / "more.json").write_text("[]", encoding="utf-8")
    more = f"{benchmarks.FOLDER}/more.json"
    pictures = [f"{benchmarks.FOLDER}/{name}.png" for name in ("frontier", "growth")]
    assert benchmarks.check(measured) == [benchmarks.PAGE, *pictures, more]
    benchmarks.write(measured)
    assert benchmarks.check(measured) == [more]
    path.unlink()
    benchmarks.write(measured)
    assert "Not measured yet." in (measured / benchmarks.PAGE).read_text(encoding="utf-8")
    page = measured / benchmarks.PAGE
    page.write_text(page.read_text(encoding="utf-8").replace("<!-- growth:end -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the lines <!-- growth:begin --> and <!-- growth:end -->"):
        benchmarks.check(measured)


def test_the_frontier_is_of_what_is_measured_and_claimed():
    names = ("cloformer_xxs", "casvit_xs", "mobilevitv3_xxs", "repvit_m1_0", "mobilevit_wide_xxs")
    row = benchmarks.measured("growth", ROOT)[0] | {"img_size": 224, "error": None}
    rows = [row | {"model": name, "ms": {"median": ms}} for name, ms in zip(names, (10, 9, 5, 30, 7), strict=True)]
    again = [row | {"model": name, "ms": {"median": 20.0}} for name in ("cloformer_xxs", "casvit_xs", "cloformer_s")]
    theirs = {"repvit_m1_0": {"top1": 80.1, "img_size": 224}}
    found = frontier.points([rows, again], "eager", theirs)
    assert [(one.name, one.time) for one in found] == [
        ("mobilevitv3_xxs", 0.5),
        ("casvit_xs", 0.9),
        ("cloformer_s", 1.0),
        ("cloformer_xxs", 1.0),
        ("repvit_m1_0", 3.0),
    ], "each as a part of its run; nobody claims an accuracy of the tutorials' MobileViT"
    assert [one.is_claim for one in found] == [True] * 4 + [False]
    assert [one.name for one in frontier.frontier(found)] == ["casvit_xs", "cloformer_s"], "at 224 px"
    assert frontier.points([again[1:]], "eager", theirs) == [], "without the measure there is nothing to compare"


def test_the_pictures_name_every_network():
    runs = [benchmarks.measured(name, ROOT) for name in benchmarks.FIGURES["frontier"][1]]
    theirs = json.loads((ROOT / benchmarks.FOLDER / "timm_top1.json").read_text(encoding="utf-8"))["models"]
    for name, told in theirs.items():
        assert timm.get_pretrained_cfg(name).tag == told["tag"], "the weights that the name loads"
    figure = frontier.frontier_figure(*runs)
    for axis, way in zip(figure.axes, frontier.WAYS, strict=True):
        named = {text.get_text().split()[0] for text in axis.texts}
        assert named == {one.name for one in frontier.points(runs, way, theirs)}
        boxes = [text.get_window_extent().extents for text in axis.texts]
        assert not any(frontier._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    drawn = frontier.growth_figure(benchmarks.measured("growth", ROOT))
    for axis in drawn.axes:
        styles = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axis.lines]
        assert len(set(styles)) == len(styles) == len(axis.get_legend().get_texts())


def test_tables_that_are_wide_are_folded():
    page = (ROOT / benchmarks.PAGE).read_text(encoding="utf-8")
    shown = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) < 120
    for page in (generate.PAGE, benchmarks.PAGE):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count("<details") == text.count("</details>") > 0
        assert text.count('<details markdown="1">\n<summary>') == text.count("<details"), "or mkdocs shows pipes"
    columns = [line.count("|") - 1 for line in (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()]
    assert max(columns) <= 7


def test_a_busy_machine_is_told():
    (row, *_), note = benchmarks.measured("growth", ROOT), "these numbers are not reliable"
    assert note in benchmarks.caption([row | {"others": 2 * benchmarks.BUSY}], "growth")
    assert note not in benchmarks.caption([row | {"others": 0.0}], "growth")


def test_exponents_are_fitted():
    sizes = (128, 256, 512)
    assert benchmarks.exponent(sizes, [7 * (side * side) ** 1.5 for side in sizes]) == pytest.approx(1.5)
    rows = [
        row | {"img_size": side, "ms": {"median": ms}, "gmacs": side**2, "error": None}
        for row in benchmarks.measured("growth", ROOT)[:1]
        for side, ms in ((128, 1.0), (256, 4.0), (512, 64.0))
    ]
    line = benchmarks.growth_table(rows, "img_size").splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["1.0", "4.0", "64.0", "1.50", "2.00", "1.00"]
    rows[1] |= {"error": "wrong result"}
    line = benchmarks.growth_table(rows, "img_size").splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["1.0", "error", "64.0", "1.50", "1.50", "1.00"]


@pytest.mark.parametrize("size", [128, 512])
def test_the_pooled_branch_grows_with_the_square_of_the_pixels(size):
    places = (size // 4) ** 2
    # Two blocks, two products of 8 channels each: N queries by N / 64 keys.
    assert benchmarks.attention_gmacs(size)["stage1"] * 1e9 == pytest.approx(2 * 2 * 8 * places**2 / 64)


def test_the_share_of_the_memorys_limit():
    row = {"error": None, "machine": {"copy_gib_s": 1000}, "moved_mib": 1024, "ms": {"median": 4.0}}
    assert benchmarks.bandwidth_share(row) == pytest.approx(0.25)
    assert benchmarks.bandwidth_share(row | {"moved_mib": None}) is None


@pytest.mark.parametrize("name", ["wide_windows", "first_wide", "first_local", "halved", "pooled_branch"])
def test_networks_for_large_images_work(name):
    network = getattr(growth, name)().eval()
    assert network(image()).shape == (2, 8 if name == "pooled_branch" else 1000)
    if "wide" in name:
        network.load_state_dict(create("cloformer_xxs").state_dict())


def test_the_table_of_formats():
    assert formats.page() == formats.PAGE.read_text(encoding="utf-8")
    rows = [row for row in formats.tried("executorch") if not row["failed"]]
    assert rows
    parted = {row["name"] for row in rows if row["xnnpack"] != {"regions": 1, "left": {}}}
    # XNNPACK takes networks whole, but elu and nearest neighbours, which RecNeXt's linear attention has, it leaves.
    assert parted == {"recnext_a0", "recnext_t"}


def test_the_table_of_formats_tells_why_there_is_none(monkeypatch):
    reasons = {}
    monkeypatch.setitem(formats.KNOWN, "no such", "https://example.com/1")
    assert formats._cell({"failed": "ncnn has no such layer"}, "ncnn", reasons) == "no (1)"
    assert reasons == {"`ncnn`: ncnn has no such layer; https://example.com/1": 1}
    right = {"failed": None, "checks": {"random": {"error": 2e-6}}}
    left = {"xnnpack": {"regions": 2, "left": {"aten.mul.Scalar": 3}}}
    assert formats._cell(right | {"dynamic": {"failed": "x"}}, "onnx", reasons) == "2e-06, no (2)"
    assert formats._cell(right | left, "executorch", reasons) == "2e-06, 2 regions, 3 operators left"
