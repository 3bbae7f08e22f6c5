"""What is loaded is what was looked at: folders, whoever wrote them, and files of weights as trainers leave them."""

import argparse
import json
import os
import pathlib
import random
import shutil
import threading
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hub import CONVOLUTIONAL, SMALL
from timm.models import save_for_hf
from timm.utils import freeze
from zoo import create

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common.files import open_regular
from timm_mobilevit_zoo.convert import convert, read_checkpoint
from timm_mobilevit_zoo.hub import folder as hub_folder
from timm_mobilevit_zoo.models import loading
from timm_mobilevit_zoo.models.copies import unwrapped
from timm_mobilevit_zoo.models.loading import label_list, load, load_checkpoint, open_model
from timm_mobilevit_zoo.predict import predict

NAMES = [SMALL, "resnet18"]  # ours and timm's
CARD = {"license": "mit"}


def saved(name, path, **config):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    save_for_hf(model, path, config or None, safe_serialization=True)
    return model


def change(path, **entries):
    config = json.loads((path / "config.json").read_text())
    config["pretrained_cfg"] |= entries.pop("pretrained_cfg", {})
    (path / "config.json").write_text(json.dumps(config | entries))


def same(model, weights):
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


# Folders


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_timm_wrote_is_loaded_as_timm_loads_it(name, tmp_path, monkeypatch):
    model = saved(name, tmp_path / "run", label_names=["a", "b", "c"])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"of the run")
    for place in (tmp_path / "run", str(tmp_path / "run"), f"local-dir:{tmp_path / 'run'}"):
        ours = load(place)
        assert same(ours, model.state_dict())
        assert not ours.training
        assert type(ours) is type(theirs)
        skipped = {"file", "source"}
        told = {key: value for key, value in theirs.pretrained_cfg.items() if key not in skipped}
        assert json.loads(json.dumps(ours.pretrained_cfg)) == json.loads(json.dumps(told)), "and no tensors"
    assert load(tmp_path / "run", num_classes=7).num_classes == 7
    grey = open_model(f"local-dir:{tmp_path / 'run'}", in_chans=1, drop_rate=0.1)
    assert grey.training
    assert grey.in_chans == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_strangers_folder_is_checked_and_trusted_on_purpose(name, tmp_path):
    model = saved(name, tmp_path / "run")
    config = (tmp_path / "run" / "config.json").read_text()
    for entries, message in (
        ({"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}, "pretrained_cfg.url names other weights"),
        ({"model_args": {"pretrained_strict": False}}, "pretrained_strict cannot be set"),
        ({"label_names": ["a", "b", "\x1b[2J"]}, "label_names must be printable"),
        ({"num_classes": 10**9}, "num_classes=1000000000 must be a whole number up to"),
    ):
        (tmp_path / "run" / "config.json").write_text(config)
        change(tmp_path / "run", **entries)
        with pytest.raises(ValueError, match=rf"model=.* is refused: .*{message}.*`trust=True`"):
            load(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(config)
    change(tmp_path / "run", label_names=["a", "b", "\x1b[2J"])
    assert same(load(tmp_path / "run", trust=True), model.state_dict())
    weights = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "config.json").write_text(config)
    for key, value in (("head.bias", None), ("fc.bias", None)):
        if key in weights:
            value = weights[key] * float("nan")
            save_file(weights | {key: value}, tmp_path / "run" / "model.safetensors")
            with pytest.raises(ValueError, match=f"{key} holds NaN"):
                load(tmp_path / "run")


def test_commands_check_folders_unless_told_otherwise(tmp_path, capsys):
    saved(SMALL, tmp_path / "run", label_names=["a", "b", "\x1b[2J"])
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    image, folder = str(tmp_path / "a.png"), str(tmp_path / "run")
    commands = [
        (["predict", folder, image], 0),
        (["maps", folder, image, "-o", str(tmp_path / "maps.png")], 0),
        (["export", folder, "--format", "onnx", "-o", str(tmp_path / "a.onnx")], None),
        (["page", folder, "-o", str(tmp_path / "page"), "--runtime", "nowhere"], None),
    ]
    for words, status in commands:
        if words[0] != "page":
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 2
            err = capsys.readouterr().err
            assert "is refused: label_names must be printable" in err
            assert "--trust" in err
        if status is not None:
            with pytest.raises(SystemExit) as ended:
                main([*words, "--trust"])
            assert ended.value.code == status
            assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("ask", ["load", "hub"])
def test_both_files_are_read_once(tmp_path, monkeypatch, ask):
    hub.export(create(SMALL, num_classes=3), tmp_path / "theirs", card=CARD)
    reads = []

    def counted(path):
        reads.append(path.name)
        return open_regular(path)

    monkeypatch.setattr("timm_mobilevit_zoo.hub.reading.open_regular", counted)
    real = hub_folder.check_probe

    def late(*args):  # everything has been checked by now
        shutil.rmtree(tmp_path / "theirs")
        return real(*args)

    monkeypatch.setattr(hub_folder, "check_probe", late)
    if ask == "load":
        assert load(tmp_path / "theirs").num_classes == 3
    else:
        digests = hub_folder.digests
        sha256 = {name: digests(tmp_path / "theirs" / name)["sha256"] for name in ("config.json", "model.safetensors")}
        monkeypatch.setattr(hub.transfer, "fetch_checked", lambda *args, **kwargs: (tmp_path / "theirs", sha256))
        assert hub.load("me/mine", revision="0" * 40).num_classes == 3
    assert sorted(reads) == ["config.json", "model.safetensors"]


def test_what_changes_after_the_digests_were_compared_is_refused(tmp_path, monkeypatch):
    hub.export(create(SMALL, num_classes=3), tmp_path / "theirs", card=CARD)
    wanted = {"config.json": "0" * 64, "model.safetensors": "0" * 64}
    monkeypatch.setattr(hub.transfer, "fetch_checked", lambda *args, **kwargs: (tmp_path / "theirs", wanted))
    for ask in (hub.load, hub.pull):
        with pytest.raises(hub.Refused, match="has changed since its digests were compared"):
            ask("me/mine", revision="0" * 40)
    with pytest.raises(hub.Refused, match="has changed since"):
        hub.pull("me/mine", revision="0" * 40, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_in_folders(tmp_path):
    hub.export(create(SMALL, num_classes=3), tmp_path / "theirs", card=CARD)
    (tmp_path / "theirs" / "/".join("a" * 32)).mkdir(parents=True)
    assert hub.check(tmp_path / "theirs")["num_classes"] == 3
    (tmp_path / "theirs" / "/".join("a" * 33)).mkdir()
    with pytest.raises(hub.Refused, match="lies in more than 32 folders"):
        hub.check(tmp_path / "theirs")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="is not a regular file"), open_regular(path):
            pass
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_checkpoint(tmp_path / "pipe")
    hub.export(create(SMALL, num_classes=3), tmp_path / "theirs", card=CARD)
    for name in ("config.json", "model.safetensors"):
        shutil.copytree(tmp_path / "theirs", tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        with pytest.raises(hub.Refused, match=f"{name} is not a regular file"):
            hub.check(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError)):
            load(tmp_path / name)


def test_a_header_as_large_as_weights(tmp_path):
    hub.export(create(SMALL, num_classes=3), tmp_path / "theirs", card=CARD)
    entry = {f"{'x' * 100}{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(9000)}
    header = json.dumps(entry).encode()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(hub.Refused, match=r"is not a safetensors file: its header has [\d,]+ bytes|has more than"):
        hub.check(tmp_path / "theirs")


# Checkpoints


def beside(weights):
    return {
        "state_dict": {f"model.{key}": value for key, value in weights.items()},
        "hyper_parameters": {"args": argparse.Namespace(lr=1), "root": pathlib.Path("data"), "n": np.float64(2)},
        "scores": np.arange(3.0),
        "best": np.float32(0.5),
        "epoch": np.int64(3),
    }


FORMS = {
    "bare": lambda w: w,
    "beside much": beside,
    "averaged": lambda w: {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in w.items()}},
    "wrapped twice": lambda w: {f"_orig_mod.module.{key}": value for key, value in w.items()},
    "in a trainer": lambda w: {"model_state_dict": {f"net.backbone.{key}": v for key, v in w.items()}, "epoch": 3},
    "in a student": lambda w: {"student": {f"student.{key}": value for key, value in w.items()}},
    "without counters": lambda w: {key: value for key, value in w.items() if "num_batches" not in key},
    "the average": lambda w: {"state_dict": {key: 0 * value for key, value in w.items()}, "state_dict_ema": w},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_a_file_gives_the_same_weights(name, tmp_path):
    torch.manual_seed(0)
    weights = timm.create_model(name, num_classes=3).state_dict()
    x = torch.rand(1, *timm.get_pretrained_cfg(name).input_size)
    for form, make in FORMS.items():
        torch.save(make(weights), tmp_path / "file.pth")
        found = load_checkpoint(str(tmp_path / "file.pth"), name)
        assert same(found, weights), form
        assert "state_dict" not in found.pretrained_cfg
        if form not in ("bare", "beside much"):
            continue
        other = load_checkpoint(tmp_path / "file.pth", name, num_classes=5)
        assert other.num_classes == 5
        assert other.eval()(x).shape == (1, 5)
        kept = [key for key in weights if "head" not in key and not key.startswith("fc.")]
        assert all(torch.equal(other.state_dict()[key], weights[key]) for key in kept), form


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [3, 5])
def test_what_does_not_fit_is_refused_in_a_line(name, classes, tmp_path):
    weights = timm.create_model(name, num_classes=3).state_dict()
    wrong = [
        dict(list(weights.items())[: len(weights) // 2]),
        {f"nowhere.{key}": value for key, value in weights.items()},
        weights | {"stray\x1b[2J": torch.ones(1)},
        {key: torch.zeros(()) for key in weights},
        {key: value[:0] for key, value in weights.items() if value.ndim},
        {f"{key}.{'long' * 2000}": value for key, value in weights.items()},
    ]
    for tensors in wrong:
        torch.save(tensors, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=r"checkpoint='.*' does not fit") as refused:
            load_checkpoint(str(tmp_path / "file.pth"), name, num_classes=classes)
        assert len(str(refused.value)) < 1000
        assert str(refused.value).isprintable()


def test_a_checkpoint_goes_with_a_name(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint=.* goes with a registered name; model='local-dir:x' has its own"):
        load_checkpoint(str(tmp_path), "local-dir:x")


ODD = {
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t > 0,
    "8-bit": lambda t: t.to(torch.float8_e4m3fn),
    "whole": lambda t: t.to(torch.int32),
    "finer": lambda t: t.double() + 1e-12,
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "without values": lambda t: t.to("meta"),
    "one number": lambda t: t.flatten()[:1].view([1] * t.ndim).expand(*[10**4] * t.ndim),
}


@pytest.mark.parametrize("kind", ODD)
def test_types_that_would_not_be_bit_for_bit_are_refused(kind, tmp_path):
    weights = create(SMALL, num_classes=3).state_dict()
    key = next(key for key, value in weights.items() if value.ndim == 2)
    try:
        torch.save(weights | {key: ODD[kind](weights[key])}, tmp_path / "file.pth")
    except RuntimeError as error:
        pytest.skip(f"not to be saved: {error}")
    with pytest.raises(ValueError, match=rf"does not fit .*({key}|mean tensors of)|cannot be read as weights"):
        convert(str(tmp_path / "file.pth"), model=SMALL, output=str(tmp_path / "out"), license="mit")
    for exact in (torch.float16, torch.float64):
        coarse = {name: value.half().float() for name, value in weights.items()}
        torch.save({name: value.to(exact) for name, value in coarse.items()}, tmp_path / "file.pth")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert(str(tmp_path / "file.pth"), model=SMALL, output=str(tmp_path / "out"), license="mit")
        assert same(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), coarse)


def test_whatever_bytes_a_file_has_the_error_is_ours(tmp_path):
    weights = create(SMALL, num_classes=3).state_dict()
    torch.save(weights, tmp_path / "whole.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "whole.safetensors")
    chance = random.Random(0)
    for whole in sorted(tmp_path.iterdir()):
        data = whole.read_bytes()
        for attempt in range(8):
            changed = bytearray(data[: chance.randrange(len(data))] if attempt % 2 == 0 else data)
            for _ in range(attempt):
                changed[chance.randrange(min(len(changed), 4000))] = chance.randrange(256)
            path = tmp_path / f"changed{whole.suffix}"
            path.write_bytes(changed)
            with suppress(ValueError):
                convert(str(path), model=SMALL, output=str(tmp_path / "out"), license="mit")
                shutil.rmtree(tmp_path / "out")
            path.unlink()
            assert not (tmp_path / "out").exists()


def test_an_archive_with_a_lie_about_its_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    with pytest.raises(ValueError, match="unpacks to 10,000,000 bytes"):
        load_checkpoint(str(tmp_path / "bomb.pth"), "resnet18")


def test_what_other_pickles_may_hold_stays_as_it_is(tmp_path):
    weights = create(SMALL).state_dict()
    torch.save({"model": weights, "args": argparse.Namespace(lr=1), "n": np.float64(2)}, tmp_path / "file.pth")
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        before = set(torch.serialization.get_safe_globals())
        failed = []

        def read():
            try:
                assert read_checkpoint(tmp_path / "file.pth").keys() == weights.keys()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


# Export


LABELS = {
    "list": ["a", "b", "c"],
    "tuple": ("a", "b", "c"),
    "by index": {0: "a", 1: "b", 2: "c"},
    "by index, unsorted": {2: "c", 0: "a", 1: "b"},
    "by index, as JSON has it": {"0": "a", "1": "b", "2": "c"},
    "by name": {"b": 1, "a": 0, "c": np.int64(2)},
    "array": np.array(["a", "b", "c"]),
}


@pytest.mark.parametrize("form", LABELS)
def test_label_names_in_every_form(form, tmp_path):
    assert label_list(LABELS[form], 3) == ["a", "b", "c"]
    model = create(SMALL, num_classes=3)
    model.pretrained_cfg["label_names"] = LABELS[form]
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (found,) = predict(model, [str(tmp_path / "a.png")])
    assert sorted(one["label"] for one in found["classes"]) == ["a", "b", "c"]
    hub.export(model, tmp_path / "set", card=CARD)
    hub.export(create(SMALL, num_classes=3), tmp_path / "given", card=CARD, label_names=LABELS[form])
    for path in (tmp_path / "set", tmp_path / "given"):
        assert json.loads((path / "config.json").read_text())["label_names"] == ["a", "b", "c"]
        assert load(path).pretrained_cfg["label_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "label_names has 2 entries, num_classes is 3"),
        ("abc", "label_names must be a list or a mapping"),
        ({"a", "b", "c"}, "label_names must be a list or a mapping, not a set"),
        ({0: "a", 3: "b"}, "label_names has the index '3', num_classes is 3"),
        ({"a": 0, "b": -1}, "label_names has the index '-1'"),
        ({"a": 0, "b": 0, "c": 1}, "label_names has an index twice"),
        ({0.5: "a"}, "label_names has the index '0.5'"),
        (5, "label_names must be a list or a mapping"),
        (np.zeros(3), "label_names must be printable strings"),
    ],
)
def test_label_names_that_are_none(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        hub.export(create(SMALL, num_classes=3), tmp_path / "out", card=CARD, label_names=names)
    assert not list(tmp_path.iterdir())


def test_label_names_with_gaps_are_called_by_their_index():
    assert label_list({0: "a", "2": "c"}, 4) == ["a", "1", "c", "3"]


def test_the_network_inside_its_wrappers_is_exported(tmp_path):
    model = create(SMALL, num_classes=3)
    wrapped = {
        "parallel": torch.nn.DataParallel(model),
        "compiled": torch.compile(model),
        "both": torch.compile(torch.nn.DataParallel(model)),
        "average": torch.optim.swa_utils.AveragedModel(model),
    }
    for name, outer in wrapped.items():
        inner = unwrapped(outer)
        assert type(inner) is type(model)
        hub.export(outer, tmp_path / name, card=CARD)
        assert same(load(tmp_path / name), model.state_dict()), name
    assert unwrapped(model) is model


def test_other_heads_and_parametrisations(tmp_path):
    model = create(SMALL, num_classes=3)
    model.pretrained_cfg["label_names"] = ["a", "b", "c", "d", "e"]
    model.head = torch.nn.Linear(model.num_features, 5)
    assert hub.export(model, tmp_path / "linear", card=CARD)["num_classes"] == 5
    again = load(tmp_path / "linear")
    assert same(again, model.state_dict())
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c", "d", "e"]
    model.head = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(model.num_features, 5))
    with pytest.raises(
        ValueError, match="has a Sequential for its head, head; its name alone rebuilds one linear layer"
    ):
        hub.export(model, tmp_path / "sequential", card=CARD)
    normed = create(SMALL, num_classes=3)
    torch.nn.utils.parametrizations.weight_norm(normed.head)
    expected = normed.head.weight.detach().clone()
    hub.export(normed, tmp_path / "normed", card=CARD)
    assert torch.equal(load(tmp_path / "normed").head.weight, expected)
    assert torch.nn.utils.parametrize.is_parametrized(normed.head), "the model is not changed"


def test_frozen_norms_are_loaded_and_exported(tmp_path):
    model = timm.create_model(CONVOLUTIONAL, num_classes=3)
    freeze(model, ["stem"])
    save_for_hf(model, tmp_path / "frozen", safe_serialization=True)
    assert not any(key.startswith("stem") and "num_batches" in key for key in model.state_dict())
    found = load(tmp_path / "frozen")
    assert all(torch.equal(found.state_dict()[key], value) for key, value in model.state_dict().items())
    assert hub.export(model.eval(), tmp_path / "out", card=CARD)["num_classes"] == 3
    assert loading.labels_of(found) is None
