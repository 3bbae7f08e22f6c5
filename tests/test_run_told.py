"""What a run says of itself: first, meanwhile, last; and runs that are short, have few images, or are made longer."""

import csv
import json
import sys

import pytest
import torch
from PIL import Image
from runs import FAST, QUICK
from safetensors.torch import load_file

from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common import progress as shown
from timm_mobilevit_zoo.common.progress import progress, showing, step
from timm_mobilevit_zoo.predict import load
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.told import warmup_of

ONE = QUICK | {"epochs": 1, "warmup_epochs": 0}


def pictures(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (32, 32), 20 * i).save(root / name / f"{i}.png")
    return str(root)


def words(data, out, *more):
    return ["train", str(data), "-m", FAST, "-o", str(out), "-b", "8", "--workers", "0", "--img-size", "32", *more]


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code, *capsys.readouterr()


# First and last


def test_a_run_says_first_what_it_has_and_last_what_to_type_next(digits, tmp_path, capsys):
    out = tmp_path / "my run"
    code, said, _ = call(capsys, *words(digits, out, "-e", "1", "--seed", "3"))
    assert code == 0
    first, last = said.split("epoch 1/1")
    record = json.loads((out / "run.json").read_text())
    cost = f"{record['gmacs']:.3g}"
    beginning = [
        f"data     {digits}: 48 images to train on, 12 to validate on, 3 classes",
        "classes  0: 16 + 4, 1: 16 + 4, 3: 16 + 4",
        f"model    {FAST}, 0.12 M parameters, {cost} GMACs, from random weights; images of 32 x 32 pixels",
        "epochs   1, warm-up 0 (3 are too many: half of all), 6 updates of the weights in each",
        f"writes   {out}",
    ]
    lines = first.splitlines()
    assert lines.pop(3).startswith(f"device   {'cuda' if torch.cuda.is_available() else 'cpu, 1 thread(s)'}")
    assert lines == beginning
    told = last.splitlines()
    assert told[1].startswith("best epoch 1: top-1 ")
    assert told[3:6] == [
        f"  timm-mobilevit-zoo predict '{out}' IMAGE...",
        f"  timm-mobilevit-zoo export '{out}' --format onnx -o 'my run.onnx'",
        f"  timm-mobilevit-zoo push '{out}' OWNER/NAME --license mit   # or another licence; then with --yes",
    ]
    scope = {}
    exec(told[6].strip(), scope)
    assert scope["model"].num_classes == 3
    assert not scope["model"].training
    assert record["given"] == ["batch_size", "data", "epochs", "img_size", "model", "output", "seed", "workers"]
    assert record["classes"]["3"] == {"train": 16, "val": 4}
    assert record["warmup_epochs"] == 0

    code, said, _ = call(capsys, *words(digits, out, "-e", "1", "--seed", "3", "--resume"))
    assert "resumed  behind epoch 1: nothing is left to train\n" in said


def test_a_network_of_timms_is_not_to_be_pushed_from_here(digits, tmp_path, capsys):
    code, said, _ = call(capsys, *words(digits, tmp_path / "out", "-e", "1", "-m", "test_vit"))
    assert (code, "predict" in said, "push" in said) == (0, True, False)


def test_many_classes_are_told_in_a_line(tmp_path, capsys):
    data = pictures(tmp_path / "data", **{f"c{i:02d}": 2 for i in range(14)})
    train(data, output=str(tmp_path / "out"), **ONE | {"batch_size": 14})
    said = capsys.readouterr().out
    assert "classes  c00: 1 + 1, " in said
    assert "c11: 1 + 1, ... (all in run.json)\n" in said
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["classes"]) == 14


# Meanwhile


def test_a_file_gets_a_line_every_so_often(monkeypatch, capsys):
    times = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(shown, "_clock", lambda: next(times))
    assert list(progress("abcd", "epoch 1", "batches", note=lambda: "loss 1")) == list("abcd")
    told = ["epoch 1: 2 of 4 batches, 31 s, loss 1", "epoch 1: 4 of 4 batches, 62 s, loss 1"]
    assert capsys.readouterr().err.splitlines() == told
    assert list(progress("ab", "epoch 1", "batches", hide=True)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(range(20), "epoch 1", "batches", note=lambda: "loss 1")) == list(range(20))
    assert "epoch 1:   0%|" in capsys.readouterr().err


def test_an_epoch_tells_how_far_it_is_also_in_a_file(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shown, "EVERY", 0.0)
    train(str(digits), output=str(tmp_path / "out"), **ONE)
    told = capsys.readouterr().err
    assert "reading images: 1 of 1 batches of 64, " in told
    assert "epoch 1: 1 of 3 batches, " in told
    assert "images/s" in told
    assert "validation of epoch 1: 1 of 1 batches, " in told


def test_steps_are_told_where_they_are_asked_for(capsys):
    step("a")
    with showing():
        step("b")
    step("c")
    assert capsys.readouterr().err == "b ...\n"


# Short runs


@pytest.mark.parametrize(
    ("epochs", "warmup", "kept"), [(1, 3, 0), (2, 3, 1), (3, 3, 1), (4, 3, 3), (2, 1, 1), (1, 0, 0)]
)
def test_a_warm_up_that_is_too_long_is_half_of_the_run(epochs, warmup, kept):
    assert warmup_of({"epochs": epochs, "warmup_epochs": warmup}) == kept


def test_a_run_of_two_epochs_reaches_its_rate(digits, tmp_path):
    train(str(digits), output=str(tmp_path / "out"), **QUICK | {"warmup_epochs": 3, "sched": "none"})
    with (tmp_path / "out" / "summary.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == pytest.approx([1e-3, 1e-3])


# Few images


def test_one_image_of_a_class_stays_in_training_and_is_told(tmp_path, capsys):
    data = pictures(tmp_path / "data", a=9, b=1, c=2)
    train(data, output=str(tmp_path / "out"), **ONE | {"batch_size": 4})
    told = capsys.readouterr()
    assert "classes with one image keep it for training, without validation: b\n" in told.err
    assert "classes  a: 7 + 2, b: 1 + 0, c: 1 + 1\n" in told.out


def test_classes_of_one_image_each_say_how_to_train(tmp_path):
    data = pictures(tmp_path / "data", a=1, b=1)
    with pytest.raises(ValueError, match=r"no class with two images, .*; --val-fraction 0 \(val_fraction=0\) trains"):
        train(data, output=str(tmp_path / "out"), **ONE | {"batch_size": 2})


def test_a_run_without_validation_keeps_its_last_epoch(tmp_path, capsys):
    data = pictures(tmp_path / "data", a=4, b=1)
    out = tmp_path / "out"
    code, said, err = call(capsys, *words(data, out, "-b", "4", "-e", "2", "--val-fraction", "0"))
    assert code == 0, err
    assert "5 images to train on, 0 to validate on" in said
    assert "epoch 2/2  loss " in said
    assert "no validation" in said
    assert "epoch 2 is kept, without validation\n" in said
    with (out / "summary.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    best = train(data, output=str(tmp_path / "again"), **QUICK | {"batch_size": 4, "val_fraction": 0})
    assert best == {"output": str(tmp_path / "again"), "epoch": 2, "val_loss": None, "val_top1": None, "val_top5": None}
    state = torch.load(tmp_path / "again" / "checkpoints" / "last.ckpt", weights_only=True)
    saved = load(str(tmp_path / "again")).state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in state["model"].items()), "the last"


# Longer runs


def test_a_run_is_made_longer_where_its_schedule_allows(digits, tmp_path):
    steady = QUICK | {"sched": "none", "warmup_epochs": 0}
    train(str(digits), output=str(tmp_path / "a"), **steady | {"epochs": 1})
    train(str(digits), output=str(tmp_path / "a"), **steady, resume=True)
    train(str(digits), output=str(tmp_path / "b"), **steady)
    a, b = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ValueError, match=r"these differ: epochs=1 \(was 2\)$"):
        train(str(digits), output=str(tmp_path / "a"), **steady | {"epochs": 1}, resume=True)
    with pytest.raises(ValueError, match=r"epochs=3 \(was 2\), lr=1.0 \(was 0.001\)$"):
        train(str(digits), output=str(tmp_path / "a"), **steady | {"epochs": 3, "lr": 1.0}, resume=True)


def test_a_run_that_has_planned_its_rates_says_how_to_go_on(digits, tmp_path):
    train(str(digits), output=str(tmp_path / "a"), **ONE)
    told = r"epochs=2 \(was 1\); sched='cosine' has planned its rates for 1 epoch\(s\): to go on from the weights, "
    with pytest.raises(ValueError, match=told + "train with --model local-dir:RUN, the folder of this run, and anoth"):
        train(str(digits), output=str(tmp_path / "a"), **ONE | {"epochs": 2}, resume=True)
    train(str(digits), output=str(tmp_path / "b"), **ONE | {"model": f"local-dir:{tmp_path / 'a'}", "lr": 1e-12})
    a, b = (load_file(tmp_path / name / "model.safetensors")["head.weight"] for name in "ab")
    assert torch.allclose(a, b, atol=1e-5)
    warm = QUICK | {"sched": "none", "warmup_epochs": 3, "epochs": 1}
    train(str(digits), output=str(tmp_path / "c"), **warm)
    with pytest.raises(ValueError, match=r"its warm-up had 0 epoch\(s\), and would have 3: to go on from the weights"):
        train(str(digits), output=str(tmp_path / "c"), **warm | {"epochs": 4}, resume=True)
