"""Published weights: `pretrained=True` on a name loads the pinned file bit for bit, unless it is told otherwise."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.format import Format, nhwc_to
from zoo import KINDS, both_kinds, close, create, own_image

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.models import pins, places, pretrained
from timm_mobilevit_zoo.models.probe import seed_weights

ROOT = Path(__file__).resolve().parent.parent
REPO, REVISION = "someone/weights", "0123456789" * 4
HUB_ID = f"{REPO}@{REVISION}"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of weights by name; no model starts with such weights."""
    root = tmp_path_factory.mktemp("published")
    for name in KINDS:
        hub.export(seed_weights(create(name)), root / name, card={"license": "mit"})
    return root


def hub_config(name, folder):
    """The hub config that a name has once a folder of its weights is published."""
    files = {path.name: json.loads(path.read_text()) for path in (ROOT / "hub_configs").glob("*.json")}
    tag = timm.get_pretrained_cfg(name).tag
    ((file, config),) = (f for f in files.items() if (f[1]["architecture"], f[1]["tag"]) == (name, tag))
    probe = json.loads((folder / "config.json").read_text())["probe"] | {"weights": "published"}
    section = {"repo_id": REPO, "revision": REVISION, "sha256": hub.check(folder)["sha256"]}
    return file, config | {"hub": section, "probe": probe}


@pytest.fixture
def fetched(name, folders, monkeypatch, tmp_path):
    """Publish a name's weights in this process; each download from its repository is listed."""
    (tmp_path / "hub_configs").mkdir()
    file, config = hub_config(name, folders / name)
    (tmp_path / "hub_configs" / file).write_text(json.dumps(config))
    configs = pins.read_configs(tmp_path / "hub_configs")
    for module in (pins, places):
        monkeypatch.setattr(module, "package_configs", lambda: configs)
    cfg = dataclasses.replace(timm.get_pretrained_cfg(name), hf_hub_id=pins.pins(name, config["tag"]).hf_hub_id)
    for key in (name, f"{name}.{config['tag']}"):
        monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, key, cfg)
    calls = []

    def fetch(repo_id, revision, sha256, *, cache_dir=None):
        assert (repo_id, revision, sha256) == (REPO, REVISION, config["hub"]["sha256"])
        calls.append(cache_dir)
        return folders / name

    monkeypatch.setattr(pretrained, "_fetchers", [fetch])
    return calls


@pytest.fixture
def weights(name, folders):
    return load_file(folders / name / "model.safetensors")


def equal(model, weights, but=()):
    found = model.state_dict()
    assert found.keys() == weights.keys()
    return all(torch.equal(found[key], value) for key, value in weights.items() if not key.startswith(tuple(but)))


def heads(model):
    names = model.pretrained_cfg["classifier"]
    return [f"{name}." for name in ([names] if isinstance(names, str) else names)]


@both_kinds
def test_a_name_loads_bit_for_bit(name, fetched, weights):
    assert not equal(create(name), weights)
    assert equal(create(name, pretrained=True), weights)
    tag = timm.get_pretrained_cfg(name).tag
    assert equal(create(f"{name}.{tag}", pretrained=True), weights)
    assert equal(create(name, pretrained=True, pretrained_cfg=tag, cache_dir="elsewhere"), weights)
    assert equal(create(name, pretrained=True, pretrained_cfg=create(name).pretrained_cfg), weights)
    assert equal(create(name, pretrained=True, pretrained_cfg_overlay={"crop_pct": 1.0}), weights)
    assert fetched == [None, None, "elsewhere", None, None]


@both_kinds
def test_nothing_is_fetched_unasked(name, fetched):
    create(name)
    create(name, features_only=True, pretrained_cfg_overlay={"hf_hub_id": HUB_ID})
    with torch.device("meta"):
        timm.create_model(name)
    assert not fetched


@both_kinds
def test_a_backbone_has_the_features_of_the_model(name, fetched, weights):
    model, x = create(name), own_image(name)
    model.load_state_dict(weights)
    for feature_cls in (None, "getter"):
        backbone = create(name, pretrained=True, features_only=True, feature_cls=feature_cls)
        levels = backbone(x)
        if backbone.output_fmt == Format.NHWC:
            levels = [nhwc_to(level, Format.NCHW) for level in levels]
        expected = model.forward_intermediates(x, backbone.feature_info.out_indices, intermediates_only=True)
        for level, map_ in zip(levels, expected, strict=True):
            close(level, map_)
    assert len(fetched) == 2


@both_kinds
def test_other_classes_keep_the_rest(name, fetched, weights):
    for num_classes in (7, 0):
        model = create(name, pretrained=True, num_classes=num_classes)
        kept = {key: value for key, value in weights.items() if not key.startswith(tuple(heads(model)))}
        found = model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in kept.items())
        assert len(kept) < len(weights)
        assert model(own_image(name)).shape[1] == (num_classes or model.num_features)
    assert len(fetched) == 2


@both_kinds
def test_other_channels_are_adapted(name, fetched, weights):
    model = create(name, pretrained=True, in_chans=1)
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    close(model.state_dict()[first], weights.pop(first).sum(1, keepdim=True))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert len(fetched) == 1


@both_kinds
@pytest.mark.parametrize("source", ["file", "url", "state_dict"])
def test_another_source_wins(name, source, fetched, weights, tmp_path):
    other = create(name).state_dict()
    torch.save(other, tmp_path / "other.pth")
    save_file(other, tmp_path / "other.safetensors")
    value = {
        "file": str(tmp_path / "other.safetensors"),
        "url": (tmp_path / "other.pth").as_uri(),
        "state_dict": dict(other),
    }[source]
    model = create(name, pretrained=True, pretrained_cfg_overlay={source: value}, cache_dir=tmp_path / "cache")
    assert equal(model, other)
    own = create(name).pretrained_cfg | {source: value}
    assert equal(create(name, pretrained=True, pretrained_cfg=own, cache_dir=tmp_path / "cache"), other)
    assert not equal(model, weights)
    assert not fetched


@both_kinds
@pytest.mark.parametrize("hub_id", [REPO, f"{REPO}@main", f"{REPO}@{'1' * 40}", f"other/weights@{REVISION}"])
def test_only_the_pinned_commit_is_pinned(name, hub_id, fetched, monkeypatch):
    asked = []

    def load(model_id, *args, **kwargs):
        asked.append(model_id)
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", load)
    with pytest.raises(OSError, match="no network"):
        create(name, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": hub_id})
    assert asked == [hub_id]
    assert not fetched


@both_kinds
@pytest.mark.parametrize("kwargs", [{}, {"features_only": True}, {"features_only": True, "feature_cls": "getter"}])
def test_a_model_knows_its_repository_and_no_path(name, kwargs, folders, fetched):
    overlay = {"crop_pct": 1.0}
    model = create(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    assert overlay.keys() <= {"crop_pct", "architecture"}  # timm 1.0.29 adds the name
    assert model.pretrained_cfg["hf_hub_id"] == HUB_ID
    assert model.pretrained_cfg is model.default_cfg
    unpublished = create(name, **kwargs).pretrained_cfg
    assert model.pretrained_cfg == unpublished | {"hf_hub_id": HUB_ID, "crop_pct": 1.0}
    assert not [key for key, module in model.named_modules() if str(folders) in repr(vars(module))]


@both_kinds
def test_files_that_do_not_fit_are_refused(name, fetched, folders, weights, monkeypatch, tmp_path):
    weights.pop(next(key for key in weights if not key.startswith(tuple(heads(create(name))))))
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(pretrained, "_fetchers", [lambda *args, **kwargs: tmp_path])
    with pytest.raises(ValueError, match="has changed: its digest is"):
        create(name, pretrained=True)
    monkeypatch.setattr(pretrained, "_read_pinned", lambda path, sha256: load_file(path))
    for kwargs in ({}, {"num_classes": 7}):
        with pytest.raises(ValueError, match=r"the checkpoint does not fit .*: 1 missing"):
            create(name, pretrained=True, **kwargs)


@both_kinds
def test_a_failed_download_loads_nothing(name, fetched, monkeypatch):
    def fetch(*args, **kwargs):
        raise ValueError("model.safetensors: another sha256")

    monkeypatch.setattr(pretrained, "_fetchers", [fetch])
    with pytest.raises(ValueError, match="another sha256"):
        create(name, pretrained=True)


# A fresh process, which reads the hub configs as it imports the package.

FRESH = """
import json, sys
import timm, torch
from safetensors.torch import load_file
import timm_mobilevit_zoo
folders, names = json.loads(sys.argv[1])
assert timm_mobilevit_zoo.__file__.startswith(sys.argv[2]), timm_mobilevit_zoo.__file__
ours = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("timm_mobilevit_zoo.")]
tags = {n: f"{n}.{timm.get_pretrained_cfg(n).tag}" for n in ours}
listed = timm.list_models(pretrained=True)
cfgs = {n: timm.get_pretrained_cfg(n) for n in ours}
placed = [n for n in ours if n not in names and (cfgs[n].url or cfgs[n].hf_hub_id)]
assert sorted(tags[n] for n in {*names, *placed}) == sorted(t for t in tags.values() if t in listed)
assert [n for n in ours if timm.is_model_pretrained(n)] == [n for n in ours if n in names or n in placed]
for name in names:
    assert timm.is_model_pretrained(tags[name])
    found = timm.create_model(name, pretrained=True).state_dict()
    wanted = load_file(f"{folders}/{name}/model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
"""


@pytest.mark.parametrize(
    "layout", ["timm_mobilevit_zoo/hub_configs", pytest.param("hub_configs", marks=pytest.mark.slow)]
)
def test_a_package_with_published_weights(folders, tmp_path, layout):
    package = shutil.copytree(ROOT / "timm_mobilevit_zoo", tmp_path / "timm_mobilevit_zoo")
    shutil.copytree(ROOT / "timm_mobilevit_zoo_cli", tmp_path / "timm_mobilevit_zoo_cli")
    configs = shutil.copytree(ROOT / "hub_configs", tmp_path / layout)
    for path in configs.iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hub": {}}))
    by_digest = {}
    for name in KINDS:
        file, config = hub_config(name, folders / name)
        (configs / file).write_text(json.dumps(config))
        by_digest[config["hub"]["sha256"]["model.safetensors"]] = str(folders / name)
    with (package / "hub" / "remote.py").open("a") as remote:
        remote.write(
            "\n@fetched_by\ndef fetch_here(repo_id, revision, sha256, *, cache_dir=None):\n"
            f"    return Path({by_digest!r}[sha256['model.safetensors']])\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps([str(folders), KINDS]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_a_malformed_hub_config_stops_the_import_by_name(tmp_path):
    shutil.copytree(ROOT / "timm_mobilevit_zoo", tmp_path / "timm_mobilevit_zoo")
    shutil.copytree(ROOT / "timm_mobilevit_zoo_cli", tmp_path / "timm_mobilevit_zoo_cli")
    configs = shutil.copytree(ROOT / "hub_configs", tmp_path / "hub_configs")
    path = sorted(configs.iterdir())[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hub": {"repo_id": REPO, "revision": "main"}}))
    done = subprocess.run(
        [sys.executable, "-c", "import timm_mobilevit_zoo"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert f"ValueError: hub_configs/{path.name}: hub.sha256=None must have" in done.stderr
