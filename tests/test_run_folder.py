"""A run's folder: who holds it, what a killed run leaves, what may be resumed, and no number but finite ones."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from runs import FAST, QUICK
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import IterableDataset

from timm_mobilevit_zoo.common import files
from timm_mobilevit_zoo.common.files import appearing, digests, holding, replacing, replacing_all, sweep
from timm_mobilevit_zoo.predict import load, predict
from timm_mobilevit_zoo.train import folder as train_folder
from timm_mobilevit_zoo.train import run as train_run
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.epoch import Epoch
from timm_mobilevit_zoo.train.folder import LAST
from timm_mobilevit_zoo.train.network import not_finite

ONE = QUICK | {"epochs": 1, "warmup_epochs": 0}


class Killed(BaseException):
    """What a test raises where a process would end."""


def digest(path):
    return digests(path)["sha256"]


def seen(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Files that belong together


def steps_killed(monkeypatch, work):
    """Do some work again and again, killed at its first step, its second and so on, until it gets to its end."""
    at = 0
    while True:
        left = [at]

        def step(real, left=left):
            def stops(*args, **kwargs):
                left[0] -= 1
                if left[0] == -1:
                    raise Killed
                return real(*args, **kwargs)

            return stops

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rename"):
                patch.setattr(Path, name, step(getattr(Path, name)))
            try:
                work()
                killed = False
            except Killed:
                killed = True
        yield killed
        if not killed:
            return
        at += 1


def test_files_that_belong_together_are_of_one_writing_wherever_it_is_killed(tmp_path, monkeypatch):
    names = ("weights", "config", "table")

    def write(what):
        with replacing_all(*(tmp_path / name for name in names)) as parts:
            for part in parts:
                part.write_text(what)

    count = 0
    write("old")
    for killed in steps_killed(monkeypatch, lambda: write("new")):
        held = seen(tmp_path)
        assert set(held) <= set(names), "nothing half-written stays"
        assert len(set(held.values())) == 1
        assert "weights" in held, "the first is never missing"
        count += killed
        if killed:
            write("old")
    assert count >= 5
    assert seen(tmp_path) == dict.fromkeys(names, b"new")


def test_a_companion_that_is_the_same_is_left_alone(tmp_path, monkeypatch):
    unlinked = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: unlinked.append(path.name))
    for what in ("old", "new"):
        unlinked.clear()
        with replacing_all(tmp_path / "weights", tmp_path / "config") as (weights, config):
            weights.write_text(what)
            config.write_text("same")
    assert "config" not in unlinked


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = files.socket.gethostname()
    dead = [f".a.{ended.pid}-0@{host}.part", f".b.{os.getpid()}-10000000@{host}.part"]
    alive = [f".a.{os.getppid()}-0@{host}.part", f".a.{ended.pid}-0@another.part", ".a.part", "a.part"]
    for name in dead + alive:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{ended.pid}-1@{host}.part" / "in").mkdir(parents=True)
    with replacing(tmp_path / "c") as part, appearing(tmp_path / "d") as new:
        part.touch()
        assert sorted(os.listdir(tmp_path)) == sorted([*alive, part.name, new.parent.name])
        with replacing(tmp_path / "c") as other:  # another thread's
            assert other != part
            (new.parent / "beside").touch()
            other.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*alive, "c", "d"])
    sweep(tmp_path, everyone=True)  # of a folder that is held
    assert sorted(os.listdir(tmp_path)) == sorted([".a.part", "a.part", "c", "d"])


# Who holds a folder

HOLD = """
import os, runpy, sys
from pathlib import Path
with runpy.run_path(sys.argv[1])["holding"](Path(sys.argv[2])):
    if not os.fork():  # a worker, which outlives who forked it
        print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_folder_is_held_until_its_process_ends_in_any_way(tmp_path):
    command = [sys.executable, "-c", HOLD, files.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on "), holding(tmp_path):
            pass
        process.kill()
        process.wait()
        with holding(tmp_path):  # the worker still waits for the end of its input
            pass
        process.stdin.close()
    assert os.listdir(tmp_path) == []


def test_a_folder_is_held_against_other_threads_and_again_afterwards(tmp_path):
    for _ in range(2):
        with holding(tmp_path), pytest.raises(BlockingIOError), holding(tmp_path):
            pass
    (tmp_path / ".lock").write_text("process 1 on nowhere")  # of a machine that lost its power
    with holding(tmp_path):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_before_its_work(digits, tmp_path, resume, monkeypatch):
    monkeypatch.setattr(train_run, "folder_data", lambda *args: pytest.fail("it read images"))
    (tmp_path / "out").mkdir()
    with holding(tmp_path / "out"):
        (tmp_path / "out" / ".export-live").mkdir()
        with pytest.raises(
            ValueError, match=f"output='.*out' is the folder of a run in progress: process {os.getpid()} on"
        ):
            train(str(digits), output=str(tmp_path / "out"), **ONE, resume=resume)
        assert sorted(os.listdir(tmp_path / "out")) == [".export-live", ".lock"]


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(digits, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output='.*run' cannot be written to: .*Not a directory"):
        train(str(digits), output=str(tmp_path / "file" / "run"), **ONE)
    opened = os.open

    def refuses(path, *args, **kwargs):
        if os.path.basename(path) == ".lock":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(ValueError, match=r"output='.*closed' cannot be written to: .*Permission denied"):
        train(str(digits), output=str(tmp_path / "closed"), **ONE)


# A folder that a run was killed in


def network(seed):
    torch.manual_seed(seed)
    return timm.create_model(FAST, num_classes=2)


def state_of(*top1, weights=()):
    keys = ("lr", "train_loss", "train_top1", "images_per_s", "val_loss", "val_top5", "seconds")
    history = [dict.fromkeys(keys, 1.0) | {"epoch": i, "val_top1": best} for i, best in enumerate(top1, 1)]
    return {"options": {}, "history": history, "weights": list(weights), "facts": {"gmacs": 0.01}}


def test_a_run_killed_at_any_rename_is_of_one_epoch_and_is_made_whole(tmp_path, monkeypatch):
    out, labels = tmp_path / "out", ["a", "b"]
    networks = {1: network(1), 2: network(2)}
    bias = {i: one.state_dict()["patch_embed.proj.bias"] for i, one in networks.items()}

    def fresh():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        train_folder.write_epoch(out, ["old", "labels"], (state := state_of(50.0)), networks[1])
        return state

    def epoch():
        train_folder.write_epoch(out, labels, state_of(50.0, 60.0, weights=first["weights"]), networks[2])

    monkeypatch.setattr(train_folder, "_draw_curve", lambda history, path: path.write_text(f"{len(history)}"))
    first, killed_at = fresh(), 0
    for killed in steps_killed(monkeypatch, epoch):
        held = load_file(out / "model.safetensors")["patch_embed.proj.bias"]
        now = next(i for i in bias if torch.equal(bias[i], held))
        if (out / "config.json").exists():
            told = json.loads((out / "config.json").read_text())["label_names"]
            assert told == (["old", "labels"], labels)[now - 1]
        if (out / "summary.csv").exists():
            assert len((out / "summary.csv").read_text().splitlines()) == 1 + now
        if (out / "run.json").exists():
            assert json.loads((out / "run.json").read_text())["epochs"] == now
        if (out / "curve.png").exists():
            assert (out / "curve.png").read_text() == f"{now}"
        state = train_folder._read_state(out / LAST)
        train_folder.restore(out, labels, state, networks[len(state["history"])])
        assert seen(out).keys() == {"config.json", "curve.png", LAST, "model.safetensors", "run.json", "summary.csv"}
        assert digest(out / "model.safetensors") == state["weights"][0]
        assert len((out / "summary.csv").read_text().splitlines()) == 1 + len(state["history"])
        if killed:
            first, killed_at = fresh(), killed_at + 1
    assert killed_at >= 7
    assert now == 2


def test_weights_that_are_not_the_runs_are_never_replaced(digits, tmp_path):
    out = tmp_path / "out"
    train(str(digits), output=str(out), **QUICK)
    finished = seen(out)

    def resumed(**options):
        return train(str(digits), output=str(out), **QUICK | options, resume=True)

    last = (out / LAST).read_bytes()
    (out / LAST).unlink()
    with pytest.raises(ValueError, match=r"is not an empty folder; it holds no checkpoints/last\.ckpt to resume"):
        resumed(epochs=1)
    assert seen(out) == {name: held for name, held in finished.items() if name != LAST}

    (out / LAST).write_bytes(last)
    save_file(network(3).state_dict(), out / "model.safetensors")
    other = digest(out / "model.safetensors")
    with pytest.raises(ValueError, match="has others in their place, which are not replaced"):
        resumed()
    assert digest(out / "model.safetensors") == other


def test_a_damaged_checkpoint_is_told_by_name(digits, tmp_path):
    out = tmp_path / "out"
    train(str(digits), output=str(out), **ONE)
    whole = (out / LAST).read_bytes()
    assert torch.load(out / LAST, weights_only=True)["history"], "the digest is a zip file's comment"
    for at in (0, len(whole) // 3, len(whole) - 70, len(whole) - 1):
        odd = bytearray(whole)
        odd[at] ^= 4
        for held in (bytes(odd), whole[:at]):
            (out / LAST).write_bytes(held)
            with pytest.raises(ValueError, match=r"last\.ckpt' is damaged"):
                train(str(digits), output=str(out), **ONE, resume=True)


@pytest.mark.parametrize("on_broken", ["stop", "trust"])
def test_images_that_changed_under_their_names_are_not_resumed(digits, tmp_path, on_broken):
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    options = ONE | {"output": str(tmp_path / "out"), "on_broken": on_broken}
    train(str(data), **options)
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    train(str(moved), **options, resume=True)
    a, b = (next((moved / "train" / name).iterdir()) for name in "01")
    held = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(held)
    with pytest.raises(ValueError, match=r"these differ: images='\w+' \(was '\w+'\)"):
        train(str(moved), **options, resume=True)


def test_an_image_whose_name_is_no_text_is_named(digits, tmp_path):
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    try:
        shutil.copy(next((data / "train" / "0").iterdir()), os.fsencode(data / "train" / "0") + b"/\xff.png")
    except OSError:
        pytest.skip("this disk takes no such name")
    with pytest.raises(ValueError, match=r"\.png' has a name that is not UTF-8"):
        train(str(data), output=str(tmp_path / "out"), **ONE)


def test_numbers_paths_and_arrays_of_other_libraries_resume(digits, tmp_path, capsys):
    save_file(timm.create_model(FAST, num_classes=3).state_dict(), tmp_path / "c.safetensors")
    options = ONE | {
        "lr": np.logspace(-4, -2, 3)[1],
        "batch_size": np.int64(16),
        "checkpoint": tmp_path / "c.safetensors",
        "scale": np.array([0.5, 1.0]),
        "ratio": [1, torch.tensor(1.5)],
        "hflip": np.float32(0.5),
        "ema": np.bool_(True),
    }
    best = train(digits, output=tmp_path / "out", **options)
    again = options | {"checkpoint": str(tmp_path / "c.safetensors"), "scale": (0.5, 1.0), "ratio": (1, 1.5)}
    capsys.readouterr()
    assert train(str(digits), output=str(tmp_path / "out"), **again, resume=True) == best
    assert "resumed with" not in capsys.readouterr().err
    train(str(digits), output=str(tmp_path / "out"), **again | {"workers": 1}, resume=True)
    assert "resumed with workers=1 (was 0)" in capsys.readouterr().err


# No number but finite ones


def test_weights_that_are_not_finite_after_the_last_step(digits, tmp_path):
    options = QUICK | {"batch_size": 48, "opt": "sgd", "warmup_lr": 1e-6, "lr": 1e30}  # one step an epoch
    with pytest.raises(ValueError, match=r"after epoch 1 .* not finite.*: lower `lr`"):
        train(str(digits), output=str(tmp_path / "out"), **options | {"warmup_epochs": 0})
    assert not list((tmp_path / "out").iterdir())


def spoil(monkeypatch, epoch, value, where):
    """Have an epoch, from 0, spoil something of the run at its end."""
    real = Epoch.train

    def spoils(self):
        row = real(self)
        if self.number == epoch:
            where(self.run.task, value)
        return row

    monkeypatch.setattr(Epoch, "train", spoils)


def weight(task, value):
    task.trainable_module.head.weight.data[0, 0] = value


def average(task, value):
    task.trainable_module_ema.module.head.weight.data[0, 0] = value


def output(task, value):
    task.trainable_module.register_forward_hook(lambda module, args, out: out if module.training else out + value)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (weight, float("inf"), r"after epoch 2 weights are not finite \(head.weight\)"),
        (average, float("nan"), r"after epoch 2 weights are not finite \(module.head.weight\)"),
        (output, torch.tensor([0.0, 0.0, float("nan")]), "after epoch 2 the network's outputs for 12 of 12 validation"),
        (output, torch.tensor([float("-inf"), 0.0, 0.0]), "after epoch 2 the network's outputs for 12 of 12"),
    ],
)
def test_what_is_not_finite_leaves_the_best_weights_before(digits, tmp_path, monkeypatch, where, value, told):
    spoil(monkeypatch, 1, value, where)
    ema = {"ema": True} if where is average else {}
    with pytest.raises(ValueError, match=told):
        train(str(digits), output=str(tmp_path / "out"), **QUICK, **ema)
    state = torch.load(tmp_path / "out" / LAST, weights_only=True)
    assert len(state["history"]) == 1
    assert state["weights"] == [digest(tmp_path / "out" / "model.safetensors")]


def test_weights_to_start_from_are_finite(digits, tmp_path):
    odd = timm.create_model(FAST, num_classes=3)
    odd.pretrained_cfg["input_size"] = (3, 32, 32)
    odd.blocks[0].norm1.weight.data[0] = float("nan")
    save_for_hf(odd, tmp_path / "odd", model_config={"label_names": list("013")}, safe_serialization=True)
    loaded = r"='.*' has weights that are not finite: blocks.0.norm1.weight"
    checked = r"='.*' is refused: blocks.0.norm1.weight holds NaN"
    cases = {
        "teacher": {"teacher": str(tmp_path / "odd")},
        "checkpoint": {"checkpoint": str(tmp_path / "odd" / "model.safetensors")},
        "model": {"model": f"local-dir:{tmp_path / 'odd'}"},
    }
    for name, options in cases.items():
        for trust in (False, True):
            told = loaded if trust or name == "checkpoint" else checked
            with pytest.raises(ValueError, match=name + told):
                train(str(digits), output=str(tmp_path / name), **ONE | options, trust=trust)


def test_which_tensors_are_finite():
    norm = nn.Sequential(nn.BatchNorm2d(2))
    assert not_finite(norm) == []
    average = ModelEmaV3(norm)
    norm[0].running_var[1] = float("inf")
    assert not_finite(norm) == ["0.running_var"]
    assert not_finite(nn.DataParallel(norm)) == ["module.0.running_var"]
    assert not_finite(torch.compile(norm)) == ["_orig_mod.0.running_var"]
    assert not_finite(average) == []
    assert not_finite(nn.ReLU()) == []


def test_a_prediction_that_is_not_finite_is_none(digits, tmp_path, capsys):
    from timm_mobilevit_zoo.cli import main

    model = timm.create_model(FAST, num_classes=3)
    model.head.bias.data[1] = float("inf")
    save_for_hf(model, tmp_path / "odd", safe_serialization=True)
    image = str(next((digits / "val" / "0").iterdir()))
    (result,) = predict(load(str(tmp_path / "odd"), trust=True), [image])
    assert result == {"image": image, "error": f"{image}: the network's output is not finite, so it tells no class"}
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--trust", str(tmp_path / "odd"), image])
    assert exit_.value.code == 1
    assert "the network's output is not finite" in capsys.readouterr().out


def test_the_earliest_of_equally_good_epochs_is_the_best():
    assert train_folder.best_of(state_of(50.0, 70.0, 70.0)["history"])["epoch"] == 2


# Rates and updates


class Stream(IterableDataset):
    """Six images that only come in turn, as a data set does that is read from a network."""

    transform = None

    def __len__(self):
        return 6

    def __iter__(self):
        from PIL import Image

        for i in range(6):
            yield self.transform(Image.new("RGB", (32, 32), (40 * i, 0, 0))), i % 2


def test_gradients_of_a_streamed_set_are_used_by_the_end_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train_run, "named_data", lambda options: (Stream(), Stream(), ["a", "b"]))
    options = QUICK | {"dataset": "wds/none", "batch_size": 2, "grad_accum_steps": 2, "augment": False}
    options = {key: options[key] for key in options.keys() - {"hflip", "scale"}}
    train(str(tmp_path), output=str(tmp_path / "out"), **options)
    state = torch.load(tmp_path / "out" / LAST, weights_only=True)
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {4}, "three batches an epoch are two updates"


@pytest.mark.parametrize("sched", ["none", "cosine"])
def test_layers_learn_at_rates_of_their_own_and_the_table_has_the_highest(digits, tmp_path, monkeypatch, sched):
    rates, real = [], Epoch.train

    def watched(self):
        rates.append([group["lr"] for group in self.run.optimizer.param_groups])
        return real(self)

    monkeypatch.setattr(Epoch, "train", watched)
    options = QUICK | {"sched": sched, "layer_decay": 0.5, "epochs": 3, "warmup_lr": 1e-5}
    train(str(digits), output=str(tmp_path / "out"), **options)
    assert max(rates[0]) == pytest.approx(1e-5), "the warm-up"
    assert all(max(epoch) > 4 * min(epoch) for epoch in rates)
    with (tmp_path / "out" / "summary.csv").open() as file:
        told = [float(row["lr"]) for row in csv.DictReader(file)]
    assert told[:2] == pytest.approx([max(epoch) for epoch in rates[1:]])
    if sched == "none":
        assert told == pytest.approx([1e-3] * 3)


def test_one_of_several_processes_says_what_was_best(monkeypatch, capsys, tmp_path):
    import accelerate

    from timm_mobilevit_zoo_cli.commands import COMMANDS

    (tmp_path / "config.json").write_text('{"architecture": "cloformer_xxs"}')
    best = {"epoch": 1, "val_top1": 1.0, "val_loss": 1.0, "output": str(tmp_path)}
    monkeypatch.setattr("timm_mobilevit_zoo.train.train", lambda: best)
    for main in (True, False):
        monkeypatch.setattr(accelerate.PartialState, "is_main_process", property(lambda state, main=main: main))
        assert COMMANDS["train"]() == 0
        said = capsys.readouterr().out
        assert ("best epoch 1" in said) == ("predict" in said) == main


def test_only_the_main_process_takes_the_folder(tmp_path):
    class Other:
        is_main_process = False

    with contextlib.ExitStack() as held, holding(tmp_path):
        assert train_folder.open_run(tmp_path, {"resume": False}, Other(), held) is None
