"""What `train` takes for splits, classes and their names, without training on them."""

import os
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from packaging.version import Version
from PIL import Image
from runs import FAST, QUICK
from safetensors.torch import load_file
from test_images import TURNS, turned
from timm.data import auto_augment

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.predict import load, predict
from timm_mobilevit_zoo.train import data as train_data
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.data import folder_data, make_loader, named_data
from timm_mobilevit_zoo_cli.checks import check
from timm_mobilevit_zoo_cli.signatures import read
from timm_mobilevit_zoo_cli.text import printable

DEFAULTS = read(Path(train_data.__file__).with_name("run.py"), "train").defaults
OPTIONS = DEFAULTS | QUICK | {"on_broken": "trust"}


def pictures(*folders, count=4):
    """Write a few pictures in each folder."""
    for folder in folders:
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 9 * i).save(folder / f"{i}.png")


def read_folder(root, **options):
    return folder_data(OPTIONS | {"data": str(root)} | options, None)


# Splits and classes

SPLITS = [
    ("train", "val"),
    ("Training", "Testing"),
    ("TRAIN", "VAL"),
    ("Train", "Test"),
    ("train_set", "valid_set"),
    ("trainset", "testset"),
    ("train2017", "val2017"),
    ("Train Images", "Dev Images"),
    ("training", "validation"),
    ("train", "Eval"),
    ("images_train", "images_test"),
]


@pytest.mark.parametrize("names", SPLITS, ids="-".join)
def test_splits_are_no_classes(tmp_path, names):
    pictures(*(tmp_path / split / label for split in names for label in "ab"))
    train_set, val_set, labels = read_folder(tmp_path)
    assert labels == ["a", "b"]
    for images, split in zip((train_set, val_set), names, strict=True):
        assert {path.parent.parent.name for path, _ in images.samples} == {split}


def test_a_third_split_is_told(tmp_path, capsys):
    pictures(*(tmp_path / split / label for split in ("Train", "Valid", "TEST") for label in "ab"))
    _, val_set, _ = read_folder(tmp_path)
    assert {path.parent.parent.name for path, _ in val_set.samples} == {"Valid"}
    assert capsys.readouterr().err == f"left out of {tmp_path}: 1 folder 'TEST'\n"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Train", "train"), "several folders for one split, Train, train"),
        (("Testing", "c"), "has one split only, 'Testing'; the other is looked for as train or training"),
        (("TRAIN", "c"), "has one split only, 'TRAIN'; the other is looked for as val or"),
        (("fold1", "fold2"), "fold1, fold2 all hold the same folders, a, b, as splits and folds do"),
        (("2019", "2020", "2021"), "2019, 2020, 2021 all hold the same folders"),
        (("seg_train/seg_train", "seg_test/seg_test"), "seg_test, seg_train all hold the same folders, a, b"),
    ],
)
def test_what_may_be_splits_is_refused(tmp_path, names, message):
    pictures(*(tmp_path / split / label for split in names for label in "ab"))
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_folds_of_nearly_the_same_classes_are_refused(tmp_path):
    pictures(*(tmp_path / "f1" / label for label in "abcd"), *(tmp_path / "f2" / label for label in "abce"))
    pictures(tmp_path / "f1" / "overview", count=1)
    with pytest.raises(ValueError, match="f1, f2 all hold the same folders, a, b, c, as"):
        read_folder(tmp_path)


def test_classes_may_have_folders_of_their_own(tmp_path):
    pictures(*(tmp_path / label / "images" for label in "ab"), tmp_path / "c" / "1", tmp_path / "c" / "2")
    pictures(tmp_path / "a" / "1")
    train_set, val_set, labels = read_folder(tmp_path)
    assert (labels, len(train_set) + len(val_set)) == (["a", "b", "c"], 20)


# What is left out


def test_what_is_left_out_is_told(tmp_path, capsys):
    pictures(tmp_path / "a", tmp_path / "b")
    for name in ("a/1.heic", "a/2.HEIC", "b/notes.txt", "b/plain", "README", "a/Thumbs.db", "b/.DS_Store", "b/._x.png"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "out.png").symlink_to(__file__)
    read_folder(tmp_path)
    told = "2 .heic, 1 .txt, 1 beside the class folders, 1 link to folder within, 1 no ending"
    said = capsys.readouterr().err.splitlines()
    assert said == [f"left out of {tmp_path}: {told}", f"followed out of {tmp_path}: 1 link(s)"]


def test_a_class_of_other_files_says_which(tmp_path):
    pictures(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").touch()
    with pytest.raises(ValueError, match=r"classes without images: b \(1 .heic left out\)"):
        read_folder(tmp_path)


def test_a_link_makes_no_second_class(tmp_path):
    pictures(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a' and .*b' are one folder, by a link"):
        read_folder(tmp_path)


def test_a_pipe_among_the_pictures_is_left_out(tmp_path, capsys):
    import accelerate

    pictures(tmp_path / "a", tmp_path / "b")
    os.mkfifo(tmp_path / "a" / "x.png")
    options = OPTIONS | {"data": str(tmp_path), "on_broken": "skip", "workers": 0}
    train_set, val_set, _ = folder_data(options, accelerate.Accelerator(cpu=True))
    assert len(train_set) + len(val_set) == 8
    assert "x.png cannot be read: it is not a regular file" in capsys.readouterr().err


# Names of classes

NAMES = {
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Hindi": "क्\u200dष",
    "Japanese": "全\u3000角",
    "emoji": "👩\u200d🚒",
    "a heart": "❤\ufe0f",
    "a space": "pain\u00a0perdu",
}
REFUSED = {
    "escape": "\x1b[2J",
    "line end": "a\nb",
    "override": "a\u202eb",
    "isolate": "a\u2067b",
    "mark": "a\u200fb",
    "nothing to see": "a\u200bb",
    "a separator": "a\u2028b",
    "only joiners": "\u200d\u200c",
    "only space": "\u00a0",
    "half a character": "a\udcff",
}


def test_classes_are_called_as_languages_need(tmp_path, capsys):
    pictures(*(tmp_path / "data" / name for name in NAMES.values()))
    train(str(tmp_path / "data"), output=str(tmp_path / "run"), **QUICK | {"epochs": 1})
    network = load(str(tmp_path / "run"))
    names = sorted(NAMES.values())
    assert network.pretrained_cfg["label_names"] == names
    hub.export(network, tmp_path / "folder", card={"license": "mit"})
    assert hub.check(tmp_path / "folder")["num_classes"] == len(names)
    shown = {
        entry["label"] for entry in predict(network, [str(tmp_path / "data" / names[0] / "0.png")], top=6)[0]["classes"]
    }
    assert shown == set(names)
    assert all(printable(name) == name for name in names)


@pytest.mark.parametrize("kind", REFUSED)
def test_names_that_nobody_can_read_are_refused(tmp_path, kind):
    pictures(tmp_path / "a")
    (tmp_path / REFUSED[kind]).mkdir()
    with pytest.raises(
        ValueError, match="has a class folder whose name cannot be a label: label_names must be pri"
    ) as error:
        read_folder(tmp_path)
    assert ascii(REFUSED[kind]) in str(error.value)
    assert printable(str(error.value)) == str(error.value)


def test_names_that_only_unicode_tells_apart(tmp_path):
    pictures(tmp_path / "caf\u00e9", tmp_path / "cafe\u0301")
    with pytest.raises(ValueError, match="label_names are not all different: 'café' is there twice"):
        read_folder(tmp_path)


def test_file_systems_may_disagree_about_unicode(tmp_path):
    pictures(tmp_path / "train" / "a", tmp_path / "val" / "a")
    pictures(tmp_path / "train" / "caf\u00e9", tmp_path / "val" / "cafe\u0301")
    assert read_folder(tmp_path)[2] == ["a", "caf\u00e9"]


# Data sets that timm names


@pytest.mark.parametrize("channels", [1, 3])
def test_named_sets_of_grey_pictures(tmp_path, channels):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        pixels = np.full((4, 28, 28), 255, np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 4) + bytes(range(4)))
    options = OPTIONS | {"data": str(tmp_path), "dataset": "torch/mnist", "in_chans": channels, "batch_size": 2}
    config = data_config(timm.create_model(FAST, in_chans=channels), img_size=32) | {"crop_pct": 1.0}
    for images, is_training in zip(named_data(options), (True, False), strict=False):
        batch, _ = next(iter(make_loader(images, config, options, is_training)))
        assert batch.shape == (2, channels, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_named_sets_of_mixed_pictures(tmp_path, channels):
    for split in ("train", "validation"):
        for label, modes in (("a", ("L", "RGBA", "P")), ("b", ("1", "CMYK", "LA"))):
            (tmp_path / split / label).mkdir(parents=True)
            for mode in modes:
                ending = "tiff" if mode == "CMYK" else "png"
                Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(mode).save(
                    tmp_path / split / label / f"{mode}.{ending}"
                )
    options = OPTIONS | {"data": str(tmp_path), "dataset": "torch/image_folder", "in_chans": channels, "batch_size": 6}
    val_set = named_data(options)[1]
    config = data_config(timm.create_model(FAST, in_chans=channels), img_size=32) | {"mean": (0.0,), "std": (1.0,)}
    batch, _ = next(iter(make_loader(val_set, config, options, False)))
    assert batch.shape == (6, channels, 32, 32)
    clear = [i for i, (path, _) in enumerate(val_set.samples) if Path(path).stem in ("RGBA", "LA")]
    assert (batch[clear] == 1).all(), "what is transparent lies on white"


@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_learnt_from_upright(tmp_path, orientation):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            turned(tmp_path / split / name, orientation)
    config = data_config(timm.create_model(FAST), img_size=32)
    named = {"dataset": "torch/image_folder", "data": str(tmp_path), "train_split": "train", "val_split": "val"}
    for sets in (read_folder(tmp_path), named_data(OPTIONS | named)):
        for images, is_training in zip(sets, (True, False), strict=False):
            make_loader(images, config, OPTIONS | {"batch_size": 2, "augment": False}, is_training)
            first, second, *_ = (images[i][0] for i in range(len(images)))
            assert np.array_equal(first, second)


# Augmentation by a policy

POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand-m7-mstd0.5-inc1",
    "rand-mstd1-tweights",
    "augmix-m5-w4-d2",
    "original-mstd0.5",
    "v0",
    "v0r",
    "3a",
]


def test_the_policies_that_the_documentation_names_are_tried():
    recipes = [yaml.safe_load(path.read_text()) for path in Path("docs/recipes").glob("*.yaml")]
    named = {recipe["aa"] for recipe in recipes if recipe.get("aa")}
    named |= set(re.findall(r"rand-[\w.-]+", Path(train_data.__file__).with_name("run.py").read_text()))
    assert named
    assert named <= set(POLICIES)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_run_with_every_pillow(tmp_path, policy, channels):
    pictures(tmp_path / "a", tmp_path / "b")
    options = OPTIONS | {"data": str(tmp_path), "auto_augment": policy, "in_chans": channels}
    check("train", options | {"output": ""})
    images, _, _ = folder_data(options, None)
    config = data_config(timm.create_model(FAST, in_chans=channels), img_size=32)
    if policy.startswith("augmix") and channels == 1 and Version(timm.__version__) < Version("1.0.30"):
        with pytest.raises(
            ValueError, match=r"auto_augment='augmix-m5-w4-d2' fails with timm .* and images of 1 channel"
        ):
            make_loader(images, config, options, True)
        return
    make_loader(images, config, options, True)
    stages = images.transform.transforms[1].transforms
    found = next(stage for stage in stages if type(stage).__module__ == auto_augment.__name__)
    picture = Image.linear_gradient("L").convert("L" if channels == 1 else "RGB")
    random.seed(0)
    for op in getattr(found, "ops", None) or [op for ops in found.policy for op in ops]:
        op.prob, op.magnitude_std = 1.0, 0
        for op.magnitude in (0, 1, 9, 10):
            assert op(picture).size == picture.size, op
    assert found(picture).mode == picture.mode


@pytest.mark.parametrize(
    "policy", ["foo", "v1", "rand-x9", "rand-m9-", "random", "rand-m9999", "augmix-w0", "rand-tall"]
)
def test_a_policy_that_timm_does_not_have_is_refused_at_the_start(tmp_path, policy):
    with pytest.raises(
        ValueError,
        match=f"auto_augment='{policy}' is not one of timm's policies; give one such as rand-m9-mstd0.5-inc1",
    ):
        check("train", OPTIONS | {"data": str(tmp_path), "output": "", "auto_augment": policy})


# Grey


@pytest.mark.parametrize("model", [FAST, "test_resnet"])
def test_a_grey_run_says_so_everywhere(tmp_path, model):
    pictures(tmp_path / "data" / "a", tmp_path / "data" / "b")
    options = QUICK | {"model": model, "epochs": 1, "batch_size": 4, "in_chans": 1, "warmup_epochs": 0}
    train(str(tmp_path / "data"), output=str(tmp_path / "run"), **options)
    network = load(str(tmp_path / "run"))
    config = data_config(network)
    assert (network.in_chans, config["input_size"]) == (1, (1, 32, 32))
    assert len(config["mean"]) == len(config["std"]) == 1
    first = load_file(tmp_path / "run" / "model.safetensors")[network.pretrained_cfg["first_conv"] + ".weight"]
    assert first.shape[1] == 1
    assert torch.isfinite(network(torch.rand(1, 1, 32, 32))).all()
