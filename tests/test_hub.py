"""Folders of weights: written whole, reloaded bit for bit, and strangers' refused by what is wrong with them."""

import json
import os
import random
import re
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from zoo import FIRST, FIXED, NAMES, create, every_kind

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.hub import Refused
from timm_mobilevit_zoo.hub.card import pushed_card
from timm_mobilevit_zoo.models.pins import HubConfig, Pins
from timm_mobilevit_zoo.models.probe import matches, probe

CARD = {"license": "mit"}
SMALL = min(NAMES, key=lambda name: sum(p.numel() for p in timm.create_model(name).parameters()))
DEAR = max(FIXED, key=lambda name: sum(p.numel() for p in timm.create_model(name).parameters()))
CONVOLUTIONAL = next(name for name in FIRST if any("running_var" in key for key in create(name).state_dict()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folders = {}
    for name in {SMALL, CONVOLUTIONAL}:
        folders[name] = tmp_path_factory.mktemp("exported") / name
        hub.export(create(name, num_classes=3), folders[name], card=CARD)
    return folders


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported[SMALL], tmp_path / "folder")


# Export


@every_kind
def test_export_reloads_bit_for_bit(name, tmp_path):
    model = create(name, num_classes=5, in_chans=1).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = hub.export(model, tmp_path / "folder", card=CARD | {"dataset": "digits", "metrics": {"top-1": 97.5}})
    assert sorted(os.listdir(tmp_path / "folder")) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["folder"]
    assert found == hub.check(tmp_path / "folder")
    assert len({path.stat().st_mode for path in (tmp_path / "folder").iterdir()}) == 1, "all can be read by the same"
    assert found["architecture"] == name
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert again.num_classes == 5
    assert again.in_chans == 1
    assert all(torch.equal(again.state_dict()[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert "num_classes" not in config.get("model_args", {})
    assert config["pretrained_cfg"]["license"] == "mit"
    assert config["pretrained_cfg"]["input_size"][0] == 1
    assert "tag" not in config["pretrained_cfg"]
    assert config["probe"]["seed"] == 0
    assert len(config["probe"]["logits"]) == 5
    assert matches(probe(model, config["pretrained_cfg"]["input_size"]), config["probe"]["logits"])


def test_the_card_tells_what_it_is_given(tmp_path):
    told = {
        "description": "A model for tests.",
        "dataset": "digits",
        "metrics": {"top-1": 97.5},
        "source": "https://example.org/weights",
        "citation": "@misc{digits}",
        "tags": ["tiny"],
    }
    hub.export(create(SMALL), tmp_path / "folder", card=CARD | told)
    card = (tmp_path / "folder" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    for line in ("license: mit", "library_name: timm", "pipeline_tag: image-classification", "- digits", "- tiny"):
        assert line in head.splitlines()
    assert "value: 97.5" in head
    assert "transformers" not in card
    for text in ("import timm_mobilevit_zoo", *[v for v in told.values() if isinstance(v, str)]):
        assert text in body


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({}, r"card\['license'\]=None is not one that the Hub knows, such as mit, apache-2.0"),
        ({"license": "Apache 2"}, r"card\['license'\]='Apache 2' is not one .*; did you mean apache-2.0"),
        ({"license": "other"}, "needs `license_name` and `license_link`"),
        (
            {"license": "other", "license_name": "My own", "license_link": "x"},
            "license_name'\\]='My own' must be a name like",
        ),
        ({"license": "mit", "dataset": 5}, r"card\['dataset'\]=5 must be text"),
        ({"license": "mit", "metrics": {"top-1": "best"}}, r"card\['metrics'\]=.* must give a finite number"),
        ({"license": "mit", "tags": "tiny"}, r"card\['tags'\]='tiny' must be a list"),
        ({"license": "mit", "tags": ["transformers"]}, "without 'transformers'"),
        ({"license": "mit", "licence": "mit"}, "card has no entry licence"),
        ({"license": "mit", 5: 1}, "card has no entry 5"),
        (None, "card=None must be a mapping"),
        (CARD | {"tags": None}, r"card\['tags'\]=None must be a list of names"),
        (CARD | {"metrics": {"top-1": float("nan")}}, r"card\['metrics'\]=.* must give a finite number for each name"),
        (CARD | {"metrics": {"top-1": True}}, r"card\['metrics'\]=.* must give a finite number for each name"),
        (CARD | {"metrics": {1: 97.5}}, r"card\['metrics'\]=.* must give a finite number for each name"),
    ],
)
def test_a_card_needs_a_licence(tmp_path, card, message):
    with pytest.raises(ValueError, match=message):
        hub.export(create(SMALL), tmp_path / "folder", card=card)
    assert not os.listdir(tmp_path)


def test_label_names_stay_where_transformers_finds_them(tmp_path):
    names = ["a", "b", "c"]
    save_for_hf(create(SMALL, num_classes=3), tmp_path / "run", {"label_names": names}, safe_serialization=True)
    trained = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    hub.export(trained, tmp_path / "folder", card=CARD | {"dataset": "My data: 3 letters", "metrics": {"top-1": 50}})
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["label_names"] == names
    assert "label_names" not in config["pretrained_cfg"]
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert again.pretrained_cfg["label_names"] == names
    assert "type: My-data-3-letters" in (tmp_path / "folder" / "README.md").read_text()


def test_a_card_takes_numpys_numbers_and_text(tmp_path):
    told = {"dataset": np.str_("digits"), "metrics": {np.str_("top-1"): np.float64(97.5), "top-5": np.int64(99)}}
    hub.export(create(SMALL), tmp_path / "folder", card=CARD | told)
    text = pushed_card(tmp_path / "folder", "me/mine").decode()
    assert "numpy" not in text
    for line in ("- digits", "type: top-1", "value: 97.5", "value: 99"):
        assert line in text


def test_a_card_edited_by_hand_is_pushed_with_the_repositorys_name(folder):
    path = folder / "README.md"
    example = 'timm.create_model("hf-hub:OWNER/REPOSITORY", pretrained=True)'
    text = path.read_text()
    assert example in text
    teacher = '```python\nteacher = timm.create_model("hf-hub:timm/vit", pretrained=True)\n```\n'
    written = {
        "timm.create_model('hf-hub:OWNER/REPOSITORY', pretrained=True)": "'hf-hub:me/mine'",
        'timm.create_model("hf-hub:OWNER/REPOSITORY", pretrained=True, num_classes=5)': '"hf-hub:me/mine"',
        'timm.create_model("hf-hub:you/yours", pretrained=True)': '"hf-hub:me/mine"',
    }
    for theirs, ours in written.items():
        for prefix, end in (("", "\n"), ("\ufeff", "\r\n")):  # as Windows' editors write
            path.write_bytes((prefix + text.replace(example, theirs) + teacher).replace("\n", end).encode())
            pushed = pushed_card(folder, "me/mine").decode()
            assert pushed.startswith("---\n")
            assert pushed.count("me/mine") == 1
            assert ours in pushed
            assert "hf-hub:timm/vit" in pushed


@pytest.mark.parametrize("place", ["", ".", "link", "dangling", "file", "a\0b", None, "full/.."])
def test_where_a_folder_cannot_be(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(
        "timm_mobilevit_zoo.hub.folder.save_for_hf", lambda *args, **kwargs: pytest.fail("work would be lost")
    )
    with pytest.raises(ValueError, match="folder="):
        hub.export(create(SMALL), place, card=CARD)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "full", "link"]


def test_what_is_no_model_is_told_what_to_do(tmp_path):
    tied = create(SMALL)
    tied.blocks[1].norm1.weight = tied.blocks[0].norm1.weight
    cases = [
        (torch.nn.DataParallel(torch.nn.Linear(1, 1)), "model=Linear is not a timm classifier"),
        (create(SMALL, features_only=True), r"model=Feature\w+Net is not a timm classifier"),
        (torch.nn.Linear(1, 1), "model=Linear is not a timm classifier"),
        (None, "model=NoneType is not a timm classifier"),
        (create(SMALL, device="meta"), "is on the meta device"),
        (tied, r"shares blocks\.1\.norm1\.weight with blocks\.0\.norm1\.weight"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            hub.export(wrong, tmp_path / "folder", card=CARD)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_exported(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full' is not empty"):
        hub.export(create(SMALL), tmp_path / "full", card=CARD)
    with pytest.raises(ValueError, match="model='resnet18' is not one of this package's"):
        hub.export(timm.create_model("resnet18"), tmp_path / "new", card=CARD)
    broken = create(SMALL)
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"head\.bias holds NaN or infinite values"):
        hub.export(broken, tmp_path / "new", card=CARD)
    with pytest.raises(
        ValueError, match=r"depth|missing|unexpected"
    ):  # older timm records no arguments: by its tensors
        hub.export(timm.create_model(SMALL, depth=2), tmp_path / "new", card=CARD)
    half = create(SMALL, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"is F16, not torch\.float32"):
        hub.export(half, tmp_path / "new", card=CARD)
    for factor, message in ((2, r"probe: the weights give \[.*\], config\.json has \[.*\]"), (1e40, "are not finite")):
        other = create(SMALL)  # computes something else than its name and weights say
        other.register_forward_hook(lambda module, inputs, output, factor=factor: output * factor)
        with pytest.raises(ValueError, match=message):
            hub.export(other, tmp_path / "new", card=CARD)
    assert sorted(os.listdir(tmp_path)) == ["full"]


# What is refused


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def inside(entry, **changes):
    def change(folder):
        path = folder / "config.json"
        whole = json.loads(path.read_text())
        whole[entry] = whole.get(entry, {}) | changes
        path.write_text(json.dumps(whole))

    return change


def text(content):
    return lambda folder: (folder / "config.json").write_bytes(content)


def weights(change):
    def rewrite(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def first(tensors):
    return next(key for key, value in tensors.items() if value.is_floating_point() and value.dim() > 1)


def file(name, content=b"x"):
    return lambda folder: (folder / name).write_bytes(content)


def link_out(folder):
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def huge_header(folder):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


HOSTILE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a pickle beside": (file("pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "a pickle below": (lambda f: ((f / "deep").mkdir(), file("deep/a.PKL")(f)), "a.PKL is a pickle"),
    "a link out": (link_out, "model.safetensors is a link that leads out"),
    "a folder for weights": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "model.safetensors is not a regular file",
    ),
    "a vast config": (text(b" " * (9 << 20)), "config.json has more than 8388608 bytes"),
    "text for a config": (text(b"hello"), "config.json is not JSON"),
    "other bytes": (text(b"\xff\xfe\x00"), "config.json is not JSON: UnicodeDecodeError"),
    "deep nesting": (text(b"[" * 200_000), "config.json is not JSON: RecursionError"),
    "a list": (text(b"[]"), "config.json is not an object"),
    "NaN in JSON": (text(b'{"num_classes": NaN}'), "NaN is not a number in JSON"),
    "an entry twice": (text(b'{"num_classes": 3, "num_classes": 4}'), "num_classes given twice"),
    "an unknown entry": (config(auto_map={"AutoModel": "evil.py"}), "unknown entries auto_map"),
    "another architecture": (config(architecture="resnet18"), "architecture='resnet18' is not one of this package's"),
    "no architecture": (config(architecture=None), "architecture='None' is not one of this package's"),
    "a module path": (config(architecture="os.system"), "architecture='os.system' is not one of this package's"),
    "too many classes": (config(num_classes=10**9), "num_classes=1000000000 must be a whole number up to 100000"),
    "true classes": (config(num_classes=True), "num_classes=True must be a whole number"),
    "fewer than none": (config(num_classes=-1), "num_classes=-1 must be"),
    "arguments as a list": (config(model_args=[1]), "model_args is not an object"),
    "a vast network": (inside("model_args", embed_dim=10**6), "model_args: embed_dim cannot be set"),
    "loose loading": (inside("model_args", pretrained_strict=False), "model_args: pretrained_strict cannot be set"),
    "weights from elsewhere": (inside("model_args", pretrained_cfg_overlay={}), "pretrained_cfg_overlay cannot be set"),
    "two class counts": (inside("model_args", num_classes=7), "model_args.num_classes=7 is not num_classes=3"),
    "many channels": (inside("model_args", in_chans=10**6), "model_args.in_chans=1000000 must be 1 to 64"),
    "a vast image": (inside("model_args", img_size=10**6), "model_args.img_size=1000000 must be one or two sides"),
    "a pool that is no name": (inside("model_args", global_pool=[1]), r"model_args.global_pool='\[1\]'"),
    "a pool that is none": (inside("model_args", global_pool="evil"), "cannot be built with"),
    "no settings": (config(pretrained_cfg=None), "pretrained_cfg is missing or no object"),
    "an address": (inside("pretrained_cfg", url="http://127.0.0.1/w"), "pretrained_cfg.url names other weights"),
    "a local file": (inside("pretrained_cfg", file="/etc/passwd"), "pretrained_cfg.file names other weights"),
    "another repository": (inside("pretrained_cfg", hf_hub_id="a/b"), "pretrained_cfg.hf_hub_id names other weights"),
    "unknown settings": (inside("pretrained_cfg", evil=1), "pretrained_cfg: unknown entries evil"),
    "own loading": (inside("pretrained_cfg", custom_load=True), "pretrained_cfg.custom_load=True must be false"),
    "classes in words": (inside("pretrained_cfg", num_classes="ten"), "pretrained_cfg.num_classes=ten must be a whole"),
    "a size of text": (inside("pretrained_cfg", input_size="3x3"), "pretrained_cfg.input_size=3x3 must be channels"),
    "a size that is none": (inside("pretrained_cfg", input_size=5), "pretrained_cfg.input_size=5 must be channels"),
    "a size of nothing": (inside("pretrained_cfg", input_size=[]), "pretrained_cfg.input_size"),
    "a number without end": (text(b'{"num_classes": ' + b"9" * 10000 + b"}"), "config.json is not JSON: ValueError"),
    "a size too large": (inside("pretrained_cfg", input_size=[3, 10**5, 32]), "pretrained_cfg.input_size="),
    "other channels": (inside("pretrained_cfg", input_size=[1, 32, 32]), "has 1 channels, not 3|one a channel"),
    "a mean of text": (inside("pretrained_cfg", mean=["a", "b", "c"]), "pretrained_cfg.mean="),
    "no deviation": (inside("pretrained_cfg", std=[0, 0, 0]), "pretrained_cfg.std="),
    "a crop of nothing": (inside("pretrained_cfg", crop_pct=0), "pretrained_cfg.crop_pct=0 must be 0.01 to 2"),
    "no interpolation": (inside("pretrained_cfg", interpolation="evil"), "interpolation='evil' is not one of"),
    "no crop": (inside("pretrained_cfg", crop_mode="evil"), "crop_mode='evil' is not one of"),
    "layers of another network": (inside("pretrained_cfg", classifier="blocks"), "classifier='blocks' must be 'head'"),
    "layers that are none": (inside("pretrained_cfg", classifier=[1]), r"pretrained_cfg.classifier='\[1\]' must be"),
    "a first layer that is none": (inside("pretrained_cfg", first_conv=5), "pretrained_cfg.first_conv='5' must be"),
    "classes cut off": (inside("pretrained_cfg", label_offset=1), "pretrained_cfg.label_offset='1' must be 0"),
    "a size fixed in words": (inside("pretrained_cfg", fixed_input_size="no"), "fixed_input_size='no' must be true or"),
    "a size of null": (inside("pretrained_cfg", input_size=None), "pretrained_cfg.input_size is null"),
    "hidden labels": (inside("pretrained_cfg", label_names=["a", "b", "\x1b[2J"]), "label_names must be printable"),
    "hidden labels as text": (inside("pretrained_cfg", label_names="abc"), "label_names must be a list or a mapping"),
    "many entries": (config(label_descriptions={str(i): "" for i in range(400_000)} | {"a": 1}), "must be strings"),
    "a link to itself": (lambda f: (f / "loop").symlink_to("loop"), "loop is a link that leads out"),
    "a pickle of joblib": (file("a.joblib"), "a.joblib is a pickle or an archive"),
    "an archive": (file("weights.tar.gz"), "weights.tar.gz is a pickle or an archive"),
    "labels as text": (config(label_names="abc"), "label_names must be a list or a mapping"),
    "too few labels": (config(label_names=["a", "b"]), "label_names has 2 entries, num_classes is 3"),
    "labels that move the cursor": (config(label_names=["a", "b", "\x1b[2J"]), "label_names must be printable"),
    "labels twice": (config(label_names=["a", "a", "b"]), "label_names are not all different"),
    "descriptions as a list": (config(label_descriptions=["a"]), "label_descriptions is not an object"),
    "vast descriptions": (config(label_descriptions={"a": "x" * 4000}), "label_descriptions must be strings"),
    "a probe of text": (config(probe="none"), "probe must have seed and logits, only these"),
    "a probe of more": (inside("probe", image="cat.png"), "probe must have seed and logits, only these"),
    "a probe of less": (config(probe={"seed": 0}), "probe must have seed and logits, only these"),
    "another seed": (inside("probe", seed=1), "probe.seed=1 must be 0, the only one whose image is known"),
    "a seed that is false": (inside("probe", seed=False), "probe.seed=False must be 0"),
    "no logits": (inside("probe", logits=[]), r"probe.logits=\[\] must be 1 to 8 finite numbers"),
    "nine logits": (inside("probe", logits=[0] * 9), r"probe.logits=\[0, .*\] must be 1 to 8 finite numbers"),
    "logits without end": (inside("probe", logits=[0] * 10**6), "probe.logits=.* must be 1 to 8 finite numbers"),
    "logits of text": (inside("probe", logits=["a"]), r"probe.logits=\['a'\] must be 1 to 8 finite numbers"),
    "true logits": (inside("probe", logits=[True]), r"probe.logits=\[True\] must be 1 to 8 finite numbers"),
    "vast logits": (inside("probe", logits=[9**400]), "probe.logits=.* must be 1 to 8 finite numbers"),
    "other logits": (inside("probe", logits=[1, 2, 3]), r"the weights give \[.*\], config.json has \[1, 2, 3\]"),
    "fewer logits": (inside("probe", logits=[1]), r"the weights give \[.*\], config.json has \[1\]"),
    "a truncated file": (truncate, "model.safetensors is not a safetensors file"),
    "a vast header": (huge_header, "model.safetensors is not a safetensors file"),
    "text for weights": (file("model.safetensors", b"hello"), "model.safetensors is not a safetensors file"),
    "a tensor too few": (weights(lambda t: t.pop(first(t)) is None or t), "model.safetensors: 1 missing, as"),
    "a tensor too many": (weights(lambda t: t | {"evil": torch.ones(1)}), "model.safetensors: 1 unexpected, as evil"),
    "a tensor that moves the cursor": (weights(lambda t: t | {"\x1b[2J": torch.ones(1)}), r"1 unexpected, as \?\[2J"),
    "an entry that moves the cursor": (config(**{"\x1b[2J": 1}), r"unknown entries \?\[2J"),
    "another shape": (weights(lambda t: t | {first(t): torch.ones(1)}), r"is \(1,\), not \("),
    "another type": (weights(lambda t: t | {first(t): t[first(t)].half()}), "is F16, not torch.float32"),
    "NaN": (weights(lambda t: t[first(t)].view(-1)[0].fill_(float("nan")) is None or t), "holds NaN or infinite"),
    "infinite": (weights(lambda t: t[first(t)].view(-1)[0].fill_(float("inf")) is None or t), "holds NaN or infinite"),
}


def test_an_exported_folder_passes(exported):
    for name, path in exported.items():
        assert hub.check(path)["architecture"] == name


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused_by_name(folder, case):
    attack, message = HOSTILE[case]
    attack(folder)
    with pytest.raises(Refused, match=message) as refused:
        hub.check(folder)
    assert len(str(refused.value)) < 1000
    assert "\x1b" not in str(refused.value)


def test_negative_variances_are_refused(exported, tmp_path):
    path = shutil.copytree(exported[CONVOLUTIONAL], tmp_path / "folder")
    tensors = load_file(path / "model.safetensors")
    key = next(key for key in tensors if key.endswith("running_var"))
    tensors[key][0] = -1
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(Refused, match=f"{re.escape(key)} holds negative variances"):
        hub.check(path)


def test_a_vast_network_costs_no_memory(folder):
    if sys.platform != "linux":
        pytest.skip("reads the process's size from /proc")
    inside("model_args", img_size=4096)(folder)

    def peak():
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])

    before = peak()
    with pytest.raises(Refused, match=r"pos_embed is|parameters; at most"):
        hub.check(folder)
    assert peak() - before < 200_000, "kB"


def rewrite(folder, change):
    whole = json.loads((folder / "config.json").read_text())
    change(whole)
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("logit", ["1e999", "-1e999"])
def test_infinite_logits_are_refused(folder, logit):
    path = folder / "config.json"
    path.write_text(re.sub(r'("logits": \[\s*)[-.\d]+', rf"\g<1>{logit}", path.read_text()))
    with pytest.raises(Refused, match=r"probe.logits=\[-?inf, .* must be 1 to 8 finite numbers"):
        hub.check(folder)


def test_a_probe_that_is_slightly_off_passes_and_one_that_is_more_does_not(folder):
    logits = json.loads((folder / "config.json").read_text())["probe"]["logits"]
    inside("probe", logits=[value * (1 + 1e-4) for value in logits])(folder)
    hub.check(folder)
    inside("probe", logits=[value * 1.01 for value in logits])(folder)
    with pytest.raises(Refused, match="probe: the weights give"):
        hub.check(folder)


def test_a_folder_without_a_probe_passes(folder):
    rewrite(folder, lambda whole: whole.pop("probe"))
    assert hub.check(folder)["architecture"] == SMALL


@pytest.mark.parametrize("size", [[3, 385, 64], [3, 64, 4096]])
def test_a_probe_of_a_large_image_is_refused_before_it_is_computed(exported, tmp_path, size, monkeypatch):
    path = shutil.copytree(exported[CONVOLUTIONAL], tmp_path / "folder")
    inside("pretrained_cfg", input_size=size)(path)
    monkeypatch.setattr("timm_mobilevit_zoo.hub.checks.probe", lambda *args: pytest.fail("was computed"))
    told = (
        rf"probe is for images up to 384 pixels a side and 20 GMACs, not at input_size=\[{', '.join(map(str, size))}\]"
    )
    with pytest.raises(Refused, match=told):
        hub.check(path)
    rewrite(path, lambda whole: whole.pop("probe"))
    hub.check(path)


def test_a_probe_of_an_image_that_the_network_cannot_take_is_refused(exported, tmp_path):
    path = shutil.copytree(exported[CONVOLUTIONAL], tmp_path / "folder")
    inside("pretrained_cfg", input_size=[3, 1, 1])(path)
    with pytest.raises(Refused, match=r"probe cannot be computed at input_size=\[3, 1, 1\]: "):
        hub.check(path)
    rewrite(path, lambda whole: whole["pretrained_cfg"].pop("input_size"))
    with pytest.raises(Refused, match=r"probe needs pretrained_cfg\.input_size"):
        hub.check(path)


def test_no_probe_where_many_tokens_make_it_dear(tmp_path, monkeypatch):
    hub.export(create(DEAR, img_size=384), tmp_path / "folder", card=CARD)
    assert "probe" not in json.loads((tmp_path / "folder" / "config.json").read_text())
    config(probe={"seed": 0, "logits": [0.0] * 8})(tmp_path / "folder")
    monkeypatch.setattr("timm_mobilevit_zoo.hub.checks.probe", lambda *args: pytest.fail("was computed"))
    with pytest.raises(Refused, match=r"probe is for images .* 20 GMACs, not at input_size=\[3, 384, 384\]"):
        hub.check(tmp_path / "folder")


def test_a_check_draws_no_random_numbers(folder):
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    hub.check(folder)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def test_published_weights_must_give_what_their_hub_config_tells(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    told = {"input_size": config["pretrained_cfg"]["input_size"], "probe": config["probe"] | {"weights": "published"}}
    pins = Pins("someone/weights", "a" * 40, hub.check(folder)["sha256"])
    monkeypatch.setattr(
        "timm_mobilevit_zoo.hub.folder.package_configs", lambda: {(SMALL, "tag"): HubConfig(told, pins)}
    )
    hub.check(folder)
    told["probe"] = told["probe"] | {"logits": [1.0, 2.0, 3.0]}
    message = rf"probe: the weights give \[.*\], the hub config of {SMALL}\.tag has \[1\.0, 2\.0, 3\.0\]"
    with pytest.raises(Refused, match=message):
        hub.check(folder)
    rewrite(folder, lambda whole: whole.pop("probe"))
    with pytest.raises(Refused, match=message):
        hub.check(folder)
    told["input_size"] = [3, 1, 1]  # its logits are those of another image
    hub.check(folder)
    told["input_size"] = config["pretrained_cfg"]["input_size"]
    weights(lambda tensors: tensors[first(tensors)].mul_(1.5) is None or tensors)(folder)
    hub.check(folder)  # other weights


def test_folders_of_timms_own_export_pass(tmp_path):
    save_for_hf(create(SMALL, num_classes=4), tmp_path / "theirs", safe_serialization=True)
    assert hub.check(tmp_path / "theirs")["num_classes"] == 4
    save_for_hf(timm.create_model("test_vit"), tmp_path / "foreign", safe_serialization=True)
    with pytest.raises(Refused, match="architecture='test_vit' is not one of this package's"):
        hub.check(tmp_path / "foreign")
