"""From a run to a published model: the run's own folder is checked, gets its card and is pushed as it stands."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from local_hub import LocalHub, client
from runs import FAST, MODEL, QUICK
from safetensors.torch import load_file
from timm.models import save_for_hf

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.convert import convert
from timm_mobilevit_zoo.hub import Refused
from timm_mobilevit_zoo.hub.folder import read_content
from timm_mobilevit_zoo.hub.record import add_card
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.probe import matches, probe
from timm_mobilevit_zoo.models.saving import RATES
from timm_mobilevit_zoo.predict import load
from timm_mobilevit_zoo.train import folder as train_folder
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.folder import LAST

ONE = QUICK | {"epochs": 1, "warmup_epochs": 0}
TOKEN = "hf_token_of_me_to_write"


@pytest.fixture
def left(run, tmp_path):
    return Path(shutil.copytree(run[0], tmp_path / "left"))


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code, *capsys.readouterr()


def card_of(folder, **words):
    content = read_content(folder, our_models())
    add_card(folder, content.config, content.found, {"license": "mit", **words})
    return (folder / "README.md").read_text()


# The folder


def test_the_folder_of_a_run_is_one_to_publish(left, capsys):
    found = hub.check(left)
    assert (found["architecture"], found["num_classes"]) == (MODEL, 3)
    config = json.loads((left / "config.json").read_text())
    odd = config.get("model_args", {}).keys() & (RATES | {"num_classes"})
    assert not odd, "no rates of training, and no second number of classes, at which transformers fails"
    assert not {"license", "tag"} & config["pretrained_cfg"].keys()
    assert matches(probe(load(str(left)), (3, 32, 32)), config["probe"]["logits"])
    code, out, _ = call(capsys, "check", left)
    assert code == 0
    for line in ("checkpoints: left aside; nothing is loaded from there, and nothing pushed", "README.md: missing;"):
        assert line in out


def test_only_the_runs_own_folder_of_checkpoints_is_left_aside(left):
    shutil.copy(left / LAST, left / "last.ckpt")
    with pytest.raises(Refused, match=r"last\.ckpt is a pickle .*; what a run resumes from belongs in checkpoints/"):
        hub.check(left)
    (left / "last.ckpt").unlink()
    shutil.copytree(left / "checkpoints", left / "deep" / "checkpoints")
    with pytest.raises(Refused, match=r"last\.ckpt is a pickle"):
        hub.check(left)
    shutil.rmtree(left / "deep")
    shutil.move(left / "checkpoints", left.parent / "elsewhere")
    (left / "checkpoints").symlink_to(left.parent / "elsewhere")
    with pytest.raises(Refused, match="checkpoints is a link that leads out"):
        hub.check(left)


def test_a_network_of_timms_is_left_as_timm_writes_it(digits, tmp_path):
    train(str(digits), output=str(tmp_path / "out"), **ONE | {"model": "test_vit", "img_size": None})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "probe" not in config
    assert load(str(tmp_path / "out")).num_classes == 3


# The card


def test_the_card_tells_what_the_run_recorded(left, run, tmp_path):
    text = card_of(left, dataset="digits")
    head, body = text.removeprefix("---\n").split("---\n", 1)
    assert "license: mit" in head
    assert f"value: {run[1]['val_top1']:.2f}".rstrip("0") in head
    for line in (
        "- 3 classes, images of 32 x 32 pixels",
        "- Classes: 0, 1, 3",
        "| images | 48 to train on, 12 to validate on |",
        "| started from | random weights |",
        f"| epoch of these weights | {run[1]['epoch']} of 6, the best by top-1 on the validation images |",
        "| batch size | 8 |",
        "| warmup epochs | 1 |",
        "| scale | 0.8 1.0 |",
    ):
        assert line in body.splitlines()
    assert str(run[0].parent) not in text, "where things lie is their owner's business"


def test_a_card_that_is_there_is_not_contradicted(left):
    text = card_of(left)
    assert card_of(left) == text
    (left / "README.md").write_text(edited := text + "\nMore of it.\n")
    assert card_of(left) == edited, "the licence is the one that it states"
    for words in ({"license": "apache-2.0"}, {"dataset": "digits"}):
        with pytest.raises(Refused, match=r"README\.md is there already, and may say otherwise than license='"):
            card_of(left, **words)


def test_names_of_classes_are_no_markdown(tmp_path):
    names = ["a|b", "`c`", "<b>&"]
    model = timm.create_model(FAST, num_classes=3)
    hub.export(model, tmp_path / "out", card={"license": "mit", "training": {"x": "y|z"}}, label_names=names)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- Classes: a\\|b, 'c', \\<b\\>&amp;" in text.splitlines()
    assert "| x | y\\|z |" in text.splitlines()
    with pytest.raises(ValueError, match=r"card\['training'\]={'x': 1} must give text for each name"):
        hub.export(model, tmp_path / "no", card={"license": "mit", "training": {"x": 1}})


def test_a_record_of_other_weights_or_of_none_is_refused(left):
    record = left / "run.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"sha256": "0" * 64}))
    with pytest.raises(Refused, match=r"run\.json speaks of other weights than model\.safetensors: remove it"):
        card_of(left)
    for odd in ("[]", "{", json.dumps({"best": {}}), json.dumps(told | {"options": {}})):
        record.write_text(odd)
        with pytest.raises(Refused, match=r"run\.json is not what train writes: "):
            card_of(left)
    record.unlink()
    assert "## Training" not in card_of(left)


def test_a_push_asks_for_a_licence_before_anything_else(left, capsys):
    code, out, err = call(capsys, "push", left, "me/mine")
    assert (code, out) == (2, "")
    assert "has no README.md, its model card; --license, as mit or apache-2.0, has one written" in err
    card_of(left)
    code, _, err = call(capsys, "push", left, "me/mine", "--dataset", "digits")
    assert (code, "--dataset digits goes with --license" in err) == (2, True)
    (left / "README.md").unlink()
    with pytest.raises(ValueError, match=r"has no README\.md, its model card"):
        hub.push(left, "me/mine", token="hf_unused")


def test_a_run_is_pushed_and_pulled(left, tmp_path):
    code = """
import json, sys
from timm_mobilevit_zoo import hub
planned = hub.push(sys.argv[1], "me/digits", license="mit", dataset="digits")
pushed = hub.push(sys.argv[1], "me/digits", dry_run=False)
pulled = hub.pull("me/digits", output=sys.argv[2])
print(json.dumps([planned["card"], pushed["card"], sorted(pushed["files"]), pulled["sha256"]]))
"""
    with LocalHub(tmp_path / "hub", {TOKEN: ("me", "write")}) as local:
        done = client(["-c", code, str(left), str(tmp_path / "pulled")], local, tmp_path / "home", token=TOKEN)
        assert done.returncode == 0, done.stderr
        assert local.files("me/digits").keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    card, again, files, sha256 = json.loads(done.stdout.splitlines()[-1])
    assert (card, again) == (str(left / "README.md"), None)
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert sha256 == hub.check(left)["sha256"], "as it stands"
    assert load(str(tmp_path / "pulled")).pretrained_cfg["label_names"] == ["0", "1", "3"]


def test_a_card_of_earlier_weights_is_set_aside(digits, tmp_path, capsys):
    out = tmp_path / "out"
    options = QUICK | {"sched": "none", "warmup_epochs": 0, "val_fraction": 0.0}
    train(str(digits / "train"), output=str(out), **options | {"epochs": 1})
    text = card_of(out)
    train(str(digits / "train"), output=str(out), **options, resume=True)
    assert (out / "README.old.md").read_text() == text
    assert not (out / "README.md").exists()
    assert "README.md spoke of an earlier epoch's weights; it is README.old.md now" in capsys.readouterr().err
    assert "| epoch of these weights | 2 of 2, the last, without validation |" in card_of(out)


# Convert, beside a config


@pytest.mark.parametrize("file", ["model.safetensors", LAST])
def test_labels_and_preprocessing_come_along(left, tmp_path, file, capsys):
    words = ["convert", left / file, "-m", MODEL, "-o", tmp_path / "new", "--license", "mit"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert f"wrote {tmp_path / 'new'}: {MODEL}, 3 classes (0, 1, 3), images of 32 x 32 pixels" in out
    ours, theirs = (load(str(folder)) for folder in (left, tmp_path / "new"))
    for key in ("label_names", "input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    card = (tmp_path / "new" / "README.md").read_text()
    assert ("## Training" in card) == (file != LAST), "the last epoch's weights have no accuracy that is known"


def test_a_size_that_a_network_is_made_for_comes_along(tmp_path):
    network = timm.create_model(FAST, num_classes=2, img_size=48)
    network.pretrained_cfg["input_size"] = (3, 48, 48)
    save_for_hf(network, tmp_path / "run", safe_serialization=True)
    convert(str(tmp_path / "run" / "model.safetensors"), model=FAST, output=str(tmp_path / "out"), license="mit")
    assert tuple(load(str(tmp_path / "out")).pretrained_cfg["input_size"]) == (3, 48, 48)


def test_a_config_beside_that_does_not_fit_is_refused(left, tmp_path):
    file, config = left / "model.safetensors", left / "config.json"

    def refuses(message, model=MODEL):
        with pytest.raises(ValueError, match=message):
            convert(str(file), model=model, output=str(tmp_path / "out"), license="mit")
        assert not (tmp_path / "out").exists()

    refuses(rf"model='{FAST}' is not that of checkpoint=.*: the config.json beside it says '{MODEL}'", FAST)
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"num_classes": 10**9}))
    refuses(r"checkpoint=.*: config.json beside it is refused: num_classes=1000000000 .*; without it, in a folder")
    config.write_text(json.dumps(whole | {"num_classes": 2, "label_names": ["a", "b"]}))
    refuses(r"checkpoint=.* has 3 classes, the config.json beside it names 2")
    config.write_text("{")
    refuses("config.json beside it is refused")
    config.write_text(json.dumps({"model_type": "vit"}))  # another library's
    convert(str(file), model=MODEL, output=str(tmp_path / "out"), license="mit")
    assert load(str(tmp_path / "out")).pretrained_cfg["input_size"][1] == 224


# A folder of an earlier layout


def test_a_run_of_an_older_layout_is_resumed(digits, tmp_path):
    out = tmp_path / "out"
    best = train(str(digits), output=str(out), **ONE)
    state = torch.load(out / LAST, weights_only=True)
    del state["facts"]
    train_folder._write_state(out / LAST, state)
    (out / LAST).replace(out / "last.ckpt")
    (out / LAST).parent.rmdir()
    (out / "run.json").unlink()
    before = load_file(out / "model.safetensors")
    assert train(str(digits), output=str(out), **ONE, resume=True) == best
    assert (out / LAST).is_file()
    assert not (out / "last.ckpt").exists()
    assert all(torch.equal(value, before[key]) for key, value in load_file(out / "model.safetensors").items())
    assert hub.check(out)["architecture"] == FAST
    assert json.loads((out / "run.json").read_text())["epochs"] == 1
