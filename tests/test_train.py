"""The main job, from a folder of images to a model that timm loads, and what can be wrong with the folder."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import fresh
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import ENOUGH, FAST, MODEL, QUICK
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from zoo import EVERY_SIZE, FIXED, GOLDEN, RECORDED, author_weights

from timm_mobilevit_zoo.common.images import read_image
from timm_mobilevit_zoo.predict import load, predict
from timm_mobilevit_zoo.train import folder as train_folder
from timm_mobilevit_zoo.train import run as train_run
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.data import folder_data
from timm_mobilevit_zoo.train.folder import LAST

WITH_TOKEN = next(name for name in FIXED if timm.get_pretrained_cfg(name).classifier == ("head", "head_dist"))
GOLDEN_OF_MODEL = next(path for path in GOLDEN if path.stem == MODEL)


@pytest.fixture
def copied(digits, tmp_path):
    return Path(shutil.copytree(digits, tmp_path / "data"))


def rows(out):
    with (out / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def quick_options(**options):
    for name, value in {**QUICK, **options}.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-")
        else:
            yield from (flag, *map(str, value)) if isinstance(value, tuple) else (flag, str(value))


def validation_loss(model, digits):
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config({}, model=model))
    paths = sorted((digits / "val").glob("*/*.png"))
    target = torch.tensor(["013".index(path.parent.name) for path in paths])
    with torch.no_grad():
        logits = model(torch.stack([transform(read_image(path, "RGB")) for path in paths]))
    return torch.nn.functional.cross_entropy(logits, target).item()


# A run and what it leaves


def test_images_may_be_wider_than_high(digits, tmp_path):
    out = train(
        str(digits), output=str(tmp_path / "out"), **QUICK | {"epochs": 1, "img_size": (24, 32), "warmup_epochs": 0}
    )
    model = load(out["output"])
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 24, 32)
    assert model.patch_embed.img_size == (24, 32)  # of what is made for one size
    assert len(predict(model, [str(next((digits / "val").glob("*/*.png")))])[0]["classes"]) == 3


def test_a_run_learns_and_leaves_what_timm_loads(run, digits):
    out, best = run
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        LAST,
        "config.json",
        "curve.png",
        "model.safetensors",
        "run.json",
        "summary.csv",
    ]
    table = rows(out)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert best["val_top1"] == max(float(row["val_top1"]) for row in table) > 60  # three classes: 33 by chance
    with Image.open(out / "curve.png") as curve:
        assert curve.size[0] > 600

    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.num_classes == 3
    assert model.pretrained_cfg["label_names"] == ["0", "1", "3"]
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)
    assert model.pretrained_cfg["crop_pct"] == 1.0
    assert "license" not in model.pretrained_cfg
    backbone = timm.create_model(f"local-dir:{out}", pretrained=True, features_only=True).eval()
    assert [level.shape[-1] for level in backbone(torch.rand(1, 3, 32, 32))] == [16, 8, 4, 2, 1]

    images = sorted((digits / "val").glob("*/*.png"))
    results = predict(load(str(out)), [str(path) for path in images], top=2, batch_size=5)
    right = [result["classes"][0]["label"] == path.parent.name for result, path in zip(results, images, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(best["val_top1"])
    assert all(len(result["classes"]) == 2 for result in results)


def test_the_same_seed_gives_the_same_weights(digits, tmp_path):
    for name in ("a", "b"):
        train(str(digits), output=str(tmp_path / name), **QUICK | {"epochs": 1, "workers": 2})
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


OPTIONS = dict(
    model=MODEL,
    epochs=3,
    workers=2,
    mixup=0.2,
    ema=True,
    ema_decay=0.9,
    drop_path_rate=0.1,
    reprob=0.2,
    grad_accum_steps=2,
    clip_grad=1.0,
)


# Kills its process group, workers too, when the second epoch's table is written but has not taken its name.
KILLED = """
import os, signal, sys
from timm_mobilevit_zoo.cli import main

renamed = []

def watch(event, args):
    if event == "os.rename" and os.path.basename(args[1]) == "summary.csv":
        renamed.append(args)
        if len(renamed) == 2:
            os.killpg(0, signal.SIGKILL)

sys.addaudithook(watch)
main()
"""


def test_a_killed_run_resumes_to_the_same_result(digits, tmp_path):
    # Each in a process of its own, as users' are: equal bits need equal settings of torch, and other tests change them.
    def start(output, program=("-m", "timm_mobilevit_zoo"), **options):
        asked = ["train", str(digits), "--output", str(output), *quick_options(**OPTIONS, **options)]
        return fresh.run([*program, *asked], cwd=tmp_path, timeout=280)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = start(whole)
    assert done.returncode == 0, done.stderr
    done = start(killed, ["-c", KILLED])
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = torch.load(killed / LAST, weights_only=True)
    assert len(state["history"]) == 2, "killed between the second epoch's checkpoint and its table"
    done = start(killed, resume=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/" not in done.stdout + done.stderr, "it went on behind the second epoch"

    timings = {"seconds", "images_per_s"}
    ours, theirs = ([{key: row[key] for key in row.keys() - timings} for row in rows(out)] for out in (whole, killed))
    assert ours == theirs
    a, b = (torch.load(out / LAST, weights_only=True) for out in (whole, killed))
    for part in ("model", "ema"):
        assert [key for key in a[part] if not torch.equal(a[part][key], b[part][key])] == []
    a, b = (load_file(out / "model.safetensors") for out in (whole, killed))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_finished_run_resumes_to_itself(run, digits):
    out, best = run
    before = (out / "model.safetensors").read_bytes()
    assert train(str(digits), output=str(out), **QUICK | ENOUGH, resume=True) == best
    assert (out / "model.safetensors").read_bytes() == before


def test_two_processes_under_accelerate(digits, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Accelerate's own --cpu starts one process; --multi_gpu starts as many as told, and our --cpu keeps them off GPUs.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    options = quick_options(model=MODEL, cpu=True, batch_size=8, ema=True, ema_decay=0.5)
    done = subprocess.run(
        [*launch, "-m", "timm_mobilevit_zoo", "train", str(digits), "-o", str(tmp_path / "out"), *options],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == done.stdout.count("2 processes on cpu") == 1, "one process reports"
    assert done.stdout.count("best epoch") == done.stdout.count("next, for example:") == 1
    best = max(rows(tmp_path / "out"), key=lambda row: float(row["val_top1"]))
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert validation_loss(model, digits) == pytest.approx(float(best["val_loss"]), rel=1e-4)
    state = torch.load(tmp_path / "out" / LAST, weights_only=True)
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {2 * 48 // (2 * 8)}, "the two processes share the 48 images of an epoch"


def test_one_channel_and_a_held_out_split(digits, tmp_path):
    train(
        str(digits / "train"),
        output=str(tmp_path / "out"),
        **QUICK | {"model": MODEL, "epochs": 1, "in_chans": 1, "val_fraction": 0.25},
    )
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert model.in_chans == 1
    assert model(torch.rand(1, 1, 40, 40)).shape == (1, 3)
    results = predict(model, [str(next((digits / "val" / "3").iterdir()))])
    assert "classes" in results[0]


def test_start_from_a_trained_folder(run, digits, tmp_path):
    out, best = run
    tuned = train(
        str(digits), output=str(tmp_path / "out"), **QUICK | {"model": f"local-dir:{out}", "epochs": 1, "lr": 1e-6}
    )
    assert tuned["val_top1"] >= best["val_top1"] - 10


def test_a_data_set_that_timm_names(digits, tmp_path):
    train(
        str(digits),
        output=str(tmp_path / "out"),
        **QUICK | {"epochs": 1, "dataset": "torch/image_folder", "val_split": "val"},
    )
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).pretrained_cfg["label_names"] == list(
        "013"
    )


@pytest.mark.slow
def test_a_teacher_alone_can_teach(run, digits, tmp_path):
    out, _ = run
    options = QUICK | ENOUGH | {"teacher": str(out)}
    best = train(str(digits), output=str(tmp_path / "out"), **options, alpha=1.0)  # the labels have no weight
    assert best["val_top1"] > 60


def test_matching_features_changes_what_is_learnt(run, digits, tmp_path):
    out, _ = run
    weights = []
    for alpha in (0.0, 0.5):
        options = QUICK | {"model": MODEL, "epochs": 1, "ema": True, "ema_decay": 0.5}
        options |= {"teacher": str(out), "distill": "feature"}
        train(str(digits), output=str(tmp_path / f"{alpha}"), **options, alpha=alpha)
        weights.append(load_file(tmp_path / f"{alpha}" / "model.safetensors"))
    assert weights[0].keys() == timm.create_model(MODEL, num_classes=3).state_dict().keys()
    assert not torch.equal(weights[0]["stem.layers.0.weight"], weights[1]["stem.layers.0.weight"])


def test_a_distillation_token_learns_from_the_teacher(run, digits, tmp_path):
    out, _ = run
    weights = []
    for alpha in (0.0, 0.5):
        options = QUICK | {"model": WITH_TOKEN, "epochs": 1, "teacher": str(out), "distill": "token"}
        train(str(digits), output=str(tmp_path / f"{alpha}"), **options, alpha=alpha)
        weights.append(load_file(tmp_path / f"{alpha}" / "model.safetensors"))
    start = timm.create_model(WITH_TOKEN, num_classes=3)
    assert weights[0].keys() == start.state_dict().keys()
    assert weights[0]["head_dist.bias"].abs().max() == 0, "without the teacher's loss its head learns nothing"
    assert weights[1]["head_dist.bias"].abs().max() > 0
    assert predict(load(str(tmp_path / "0.5")), [str(next((digits / "val" / "0").iterdir()))])[0]["classes"]


@pytest.mark.parametrize(
    "changes", [{"mixed_precision": "bf16"}, {"sched": "step"}, {"sched": "none"}, {"layer_decay": 0.7}]
)
def test_other_ways_to_train(digits, tmp_path, changes):
    best = train(str(digits), output=str(tmp_path / "out"), **QUICK | {"epochs": 2, "cpu": True} | changes)
    assert best["val_loss"] < 5


def test_start_from_a_checkpoint(run, digits, tmp_path):
    out, best = run
    options = QUICK | {"model": MODEL, "epochs": 1, "lr": 1e-8, "warmup_epochs": 0, "min_lr": 0.0}
    kept = train(str(digits), output=str(tmp_path / "ours"), **options, checkpoint=str(out / "model.safetensors"))
    assert kept["val_top1"] >= best["val_top1"] - 10, "its head, of as many classes, is kept"
    save_file(author_weights(GOLDEN_OF_MODEL), tmp_path / "authors.safetensors")
    train(str(digits), output=str(tmp_path / "theirs"), **options, checkpoint=str(tmp_path / "authors.safetensors"))
    ours = load_file(tmp_path / "theirs" / "model.safetensors")["stem.layers.0.weight"]
    theirs = author_weights(GOLDEN_OF_MODEL)["patch_embed.conv1.conv.0.weight"]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_images_of_every_kind(digits, tmp_path):
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    kinds = (("webp", "RGB"), ("bmp", "L"), ("tiff", "CMYK"), ("gif", "P"))
    for path, (suffix, mode) in zip(sorted((data / "train" / "0").iterdir()), kinds, strict=False):
        Image.open(path).convert(mode).save(path.with_suffix("." + suffix))
        path.unlink()
    (data / "train" / "0" / "notes.txt").write_text("no image")
    (data / "train" / "0" / "again").symlink_to(data / "train" / "0")
    train(str(data), output=str(tmp_path / "out"), **QUICK | {"epochs": 1, "batch_size": 48})  # all 48 are found, once
    grey = Image.fromarray(np.full((4, 4), 30000, np.uint16))
    grey.save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", "RGB").getpixel((0, 0)) == (116, 116, 116)


# What can be wrong


def fails(match, data, tmp_path, error=ValueError, **options):
    with pytest.raises(error, match=match):
        train(str(data), output=str(tmp_path / "never"), **QUICK | options)
    assert not (tmp_path / "never" / LAST).exists()


def test_a_path_that_is_not_there(tmp_path):
    fails("nowhere' is not a folder", tmp_path / "nowhere", tmp_path, FileNotFoundError)


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "data").mkdir()
    fails("has no class folders", tmp_path / "data", tmp_path)


def test_a_class_without_images(copied, tmp_path):
    (copied / "train" / "7").mkdir()
    fails("classes without images: 7", copied, tmp_path)


def test_a_single_class(copied, tmp_path):
    for split in ("train", "val"):
        for digit in "13":
            shutil.rmtree(copied / split / digit)
    fails("has one class, '0'", copied, tmp_path)


def test_a_validation_class_that_training_lacks(copied, tmp_path):
    shutil.rmtree(copied / "train" / "1")
    fails("that .* lacks: 1", copied, tmp_path)


def test_a_validation_split_that_lacks_a_class_keeps_the_others_in_place(copied):
    shutil.rmtree(copied / "val" / "0")
    options = {"data": str(copied), "in_chans": 3, "on_broken": "trust"}
    train_set, val_set, labels = folder_data(options, None)
    assert labels == ["0", "1", "3"]
    for images in (train_set, val_set):
        assert {labels[target] for path, target in images.samples if path.parent.name != labels[target]} == set()
    assert {target for _, target in val_set.samples} == {1, 2}


@pytest.mark.slow
def test_accuracy_counts_the_classes_that_validation_has(copied, tmp_path):
    shutil.rmtree(copied / "val" / "0")
    best = train(str(copied), output=str(tmp_path / "out"), **QUICK | ENOUGH)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}").num_classes == 3
    assert best["val_top1"] > 60, "1 and 3 would count as 0 and 1"


def test_one_split_only(copied, tmp_path):
    shutil.rmtree(copied / "val")
    fails("has one split only", copied, tmp_path)


def test_too_few_images_for_a_step(digits, tmp_path):
    fails("batch_size=64 means 64 images a step, but there are 48", digits, tmp_path, batch_size=64)


def test_too_little_disk(digits, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})()
    monkeypatch.setattr(train_folder.shutil, "disk_usage", lambda path: usage)
    fails(r"1 MiB left on its disk; the run needs \d\d\d MiB", digits, tmp_path, model=MODEL)


def test_a_broken_image_stops_the_run_before_training_or_is_left_out(copied, tmp_path, capsys):
    victims = sorted((copied / "train" / "3").iterdir())[:2]
    victims[0].write_text("not an image")
    victims[1].write_bytes(victims[1].read_bytes()[:70])
    fails(f"2 image.s. are broken(.|\n)*{victims[0].name}(.|\n)*{victims[1].name}", copied, tmp_path)
    train(str(copied), output=str(tmp_path / "out"), **QUICK | {"epochs": 1, "on_broken": "skip", "batch_size": 46})
    told = capsys.readouterr().err
    assert all(f"skipped: {path} cannot be read: " in told for path in victims)
    with pytest.raises(ValueError, match=r"\.png cannot be read: "):
        train(str(copied), output=str(tmp_path / "trusted"), **QUICK | {"on_broken": "trust"})


def test_a_loss_that_is_not_finite_stops_the_run(digits, tmp_path):
    fails("the loss of epoch 1 is (nan|inf): lower `lr`", digits, tmp_path, lr=1e30, warmup_epochs=0, opt="sgd")


def test_an_output_that_holds_something_is_not_overwritten(run, digits, tmp_path):
    out, _ = run
    before = (out / LAST).read_bytes()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        train(str(digits), output=str(out), **QUICK)
    assert (out / LAST).read_bytes() == before
    with pytest.raises(ValueError, match=r"these differ: epochs=9 \(was 6\), lr=0\.5 \(was 0\.001\)"):
        train(str(digits), output=str(out), **QUICK | ENOUGH | {"epochs": 9, "lr": 0.5}, resume=True)
    (tmp_path / "never").mkdir()
    (tmp_path / "never" / "notes.txt").touch()
    fails("holds no checkpoints/last.ckpt", digits, tmp_path, resume=True)


def test_resuming_before_the_first_epoch_ended_starts_anew(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / FAST / ".export-killed").mkdir(parents=True)
    (tmp_path / "runs" / FAST / "model.safetensors").touch()  # killed between the folder and the checkpoint
    best = train(str(digits), **QUICK | {"epochs": 1}, resume=True)
    assert best["output"] == os.path.join("runs", FAST)  # where no output is given
    assert (tmp_path / best["output"] / LAST).is_file()
    assert not list((tmp_path / best["output"]).glob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "cloformer_xxl"}, "model='cloformer_xxl' is not a model of timm's .*; did you mean cloformer_xxs"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"in_chans": 2}, "in_chans=2 must be 1"),
        ({"alpha": 2.0}, r"alpha=2.0 must lie in 0\.\.1"),
        ({"mixup": 0.2, "batch_size": 15}, "batch_size=15 must be even for `mixup`"),
        ({"val_fraction": 1.0}, "val_fraction=1.0 must be at least 0 and below 1"),
        ({"sched": "plateau"}, "sched='plateau' does not step"),
        ({"mixup": -1.0}, "mixup=-1.0 must be at least 0"),
        ({"scale": (0.5, 0.1)}, "scale=.* the smaller first"),
        ({"crop_pct": 0.0}, "crop_pct=0.0 must be above 0"),
        ({"num_classes": 7}, "num_classes=7 needs `dataset`"),
        ({"in_chans": None}, "in_chans=None must be 1"),
    ],
)
def test_wrong_options_are_named(digits, tmp_path, options, message):
    fails(message, digits, tmp_path, **options)


def test_a_teacher_of_other_classes(run, copied, tmp_path):
    out, _ = run
    for split in ("train", "val"):
        (copied / split / "0").rename(copied / split / "4")
    fails("has other classes, or another order", copied, tmp_path, teacher=str(out))
    for split in ("train", "val"):
        shutil.rmtree(copied / split / "4")
    fails("knows 3 classes, the data has 2", copied, tmp_path, teacher=str(out))


@pytest.mark.parametrize("distill", ["logit", "token", "feature"])
def test_the_teacher_is_not_trained(run, digits, tmp_path, monkeypatch, distill):
    out, _ = run
    tasks, create_task = [], train_run.create_task
    monkeypatch.setattr(train_run, "create_task", lambda *args: tasks.append(create_task(*args)) or tasks[0])
    options = QUICK | {"model": WITH_TOKEN if distill == "token" else MODEL, "epochs": 1, "img_size": 32}
    train(str(digits), output=str(tmp_path / "out"), **options, teacher=str(out), distill=distill)
    teacher = tasks[0].teacher
    assert not any(module.training for module in teacher.modules())
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in teacher.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distill": "token"}, ValueError, "distill='token' needs `teacher`"),
        ({"temperature": 4.0}, ValueError, "temperature=4.0 needs `teacher`"),
        ({"alpha": 0.9}, ValueError, "alpha=0.9 needs `teacher`"),
        ({"teacher": "nosuchmodel"}, ValueError, "teacher='nosuchmodel' is neither a folder nor a model of timm's"),
        ({"teacher": MODEL}, ValueError, f"teacher='{MODEL}' has no published weights"),
        ({"teacher": "."}, FileNotFoundError, "teacher='.' is not a folder that train left"),
    ],
)
def test_a_teacher_that_cannot_teach(digits, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    fails(message, digits, tmp_path, error, **options)


def test_a_teacher_of_other_channels(digits, tmp_path):
    teacher = timm.create_model(MODEL, num_classes=3, in_chans=1)
    teacher.pretrained_cfg |= {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    save_for_hf(teacher, tmp_path / "teacher", model_config={"label_names": list("013")}, safe_serialization=True)
    fails("sees 1 image channels, the student 3", digits, tmp_path, teacher=str(tmp_path / "teacher"))


def test_a_trained_folder_at_another_size(digits, tmp_path):
    options = QUICK | {"model": WITH_TOKEN, "epochs": 1}
    train(str(digits), output=str(tmp_path / "small"), **options)
    options |= {"model": f"local-dir:{tmp_path / 'small'}", "img_size": 48}
    train(str(digits), output=str(tmp_path / "large"), **options)
    model = timm.create_model(f"local-dir:{tmp_path / 'large'}", pretrained=True)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 48, 48)
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    fails("img_size=3 is smaller than a patch of .* 4 pixels", digits, tmp_path, **options | {"img_size": 3})


@pytest.mark.parametrize("path", GOLDEN if EVERY_SIZE else RECORDED[:2], ids=lambda path: path.stem)
@pytest.mark.parametrize("classes", [3, 4])
def test_a_head_in_a_tutorials_layout(digits, tmp_path, path, classes):
    theirs = author_weights(path)
    names = [key for key, value in theirs.items() if len(value.shape) == 2 and value.shape[0] in (10, 1000)]
    heads = {name.rpartition(".")[0] for name in names}
    head = {key: theirs[key][:classes].clone() for key in theirs if key.rpartition(".")[0] in heads}
    save_file(theirs | head, tmp_path / "theirs.safetensors")
    options = QUICK | {
        "model": path.stem,
        "epochs": 1,
        "lr": 1e-8,
        "warmup_epochs": 0,
        "min_lr": 0.0,
    }
    train(str(digits), output=str(tmp_path / "out"), **options, checkpoint=str(tmp_path / "theirs.safetensors"))
    ours = load_file(tmp_path / "out" / "model.safetensors")["head.weight"]
    assert torch.allclose(ours, theirs[names[0]][:3], atol=1e-4) == (classes == 3)


def test_a_checkpoint_that_is_none(digits, tmp_path):
    picture = next((digits / "val" / "0").iterdir())
    fails("checkpoint=.* cannot be read as weights", digits, tmp_path, checkpoint=str(picture))


def test_a_student_without_token(run, digits, tmp_path):
    out, _ = run
    fails(
        f"distill='token' needs a model .* model='{FAST}' has none",
        digits,
        tmp_path,
        teacher=str(out),
        distill="token",
    )


def test_a_teacher_of_one_size(digits, tmp_path):
    teacher = timm.create_model(WITH_TOKEN, num_classes=3, img_size=48)
    teacher.pretrained_cfg["input_size"] = (3, 48, 48)
    save_for_hf(teacher, tmp_path / "teacher", model_config={"label_names": list("013")}, safe_serialization=True)
    message = "takes images of 48 x 48 pixels only, the student's have 32 x 32: set `img_size`"
    fails(message, digits, tmp_path, teacher=str(tmp_path / "teacher"))
    train(
        str(digits),
        output=str(tmp_path / "out"),
        **QUICK | {"img_size": 48, "epochs": 1},
        teacher=str(tmp_path / "teacher"),
    )


def test_data_that_changed_is_not_resumed(copied, tmp_path):
    train(str(copied), output=str(tmp_path / "out"), **QUICK | {"epochs": 1})
    for split in ("train", "val"):
        (copied / split / "0").rename(copied / split / "4")
    with pytest.raises(ValueError, match=r"these differ: images=.*labels="):
        train(str(copied), output=str(tmp_path / "out"), **QUICK | {"epochs": 1}, resume=True)


def test_named_data_sets(digits, tmp_path):
    fails("must begin with torch/", digits, tmp_path, dataset="cifar10")
    fails("val_split='nope' has other classes", digits, tmp_path, dataset="torch/image_folder", val_split="nope")


def test_no_validation_image_is_left(copied, tmp_path):
    for path in (copied / "val").glob("*/*.png"):
        path.write_text("broken")
    fails("is left without an image", copied, tmp_path, on_broken="skip")
