"""The recipes of docs/recipes say what timm's train.py and timm understand, and docs/scale.md says what they say.

train.py takes its configuration as defaults: an unknown name is ignored, a value of the wrong type met later. It is in
no package, so its arguments are recorded in train_args.json, from commit aa4b585 of timm's repository;
tests/run_recipes.py runs the real one.
"""

import argparse
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import yaml
from run_recipes import ARGS, RECIPES, REPLACED, arguments
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from zoo import FIRST, NAMES, family

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
TRAIN_ARGS = json.loads(ARGS.read_text(encoding="utf-8"))
BUILT_IN = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict}
FILES = sorted(RECIPES.glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def complete(path):
    """All arguments as train.py has them: the recipe's, else its own."""
    return argparse.Namespace(**{name: about["default"] for name, about in TRAIN_ARGS.items()} | read(path))


def problems(settings):
    found = []
    for name, value in settings.items():
        if name not in TRAIN_ARGS:
            found.append(f"train.py has no {name}")
            continue
        about = TRAIN_ARGS[name]
        kind, _, many = about["type"].partition(" ")
        values = value if many and isinstance(value, list) else [value]
        if not values or (many and values is not value) or not all(type(v) is BUILT_IN[kind] for v in values):
            found.append(f"{name} is {value!r}, not {about['type']}")
        elif "choices" in about and value not in about["choices"]:
            found.append(f"{name} is {value!r}, not one of {about['choices']}")
    return found


def global_rate(args, total):
    """The peak learning rate, as train.py computes it (main, `if not args.lr`)."""
    if args.lr:
        return args.lr
    ratio = total / args.lr_base_size
    scale = args.lr_base_scale or ("sqrt" if any(o in args.opt for o in ("ada", "lamb")) else "linear")
    return args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def rows():
    """The page's table of recipes: the cells by the recipe's name."""
    table = re.findall(
        r"^\| \[`(\w+)`\]\(recipes/(\w+)\.yaml\) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert all(name == file for name, file, _ in table)
    return {name: [cell.strip() for cell in cells.split("|")] for name, _, cells in table}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"learning_rate": 0.1}, "train.py has no learning_rate"),
        (yaml.safe_load("min_lr: 1e-5"), "min_lr is '1e-5', not float"),
        ({"mixup": 1}, "mixup is 1, not float"),
        ({"epochs": 300.0}, "epochs is 300.0, not int"),
        ({"epochs": True}, "epochs is True, not int"),
        ({"amp": "yes"}, "amp is 'yes', not bool"),
        ({"opt_betas": 0.9}, "opt_betas is 0.9, not float list"),
        ({"opt_betas": [0.9, "1e-1"]}, "opt_betas is [0.9, '1e-1'], not float list"),
        ({"epochs": [300]}, "epochs is [300], not int"),
        ({"kd_distill_type": "hard"}, "kd_distill_type is 'hard', not one of ['logit', 'feature', 'token']"),
    ],
)
def test_what_train_py_would_swallow_is_seen(settings, problem):
    assert problems(settings) == [problem]


def test_a_script_is_recorded_as_its_parser_has_it(tmp_path):
    script = """
        import argparse
        from timm.utils import ParseKwargs
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr-base", type=float, default=0.1)
        parser.add_argument("--kd-type", default="a", choices=["a", "b"])
        parser.add_argument("--betas", type=float, nargs="+")
        parser.add_argument("--amp", action="store_true")
        parser.add_argument("--more", nargs="*", default={}, action=ParseKwargs)
        """
    (tmp_path / "train.py").write_text("\n".join(line.strip() for line in script.splitlines()))
    assert arguments(tmp_path / "train.py") == {
        "lr_base": {"type": "float", "default": 0.1},
        "kd_type": {"type": "str", "default": "a", "choices": ["a", "b"]},
        "betas": {"type": "float list", "default": None},
        "amp": {"type": "bool", "default": False},
        "more": {"type": "dict", "default": {}},
    }


def test_what_a_run_replaces_are_arguments():
    assert problems(REPLACED) == []


@every_recipe
def test_train_py_knows_all_of_it(path):
    assert problems(read(path)) == []
    offered = re.findall(
        r"^#     (\w+: .*)$", path.read_text(encoding="utf-8"), re.MULTILINE
    )  # in a comment of its head
    assert problems(yaml.safe_load("\n".join(offered)) or {}) == []


@every_recipe
def test_the_model_is_the_smallest_of_the_family_and_has_its_drop_path(path):
    settings = read(path)
    assert settings["model"] in FIRST
    assert family(settings["model"]).rpartition(".")[2] == path.stem
    # The published drop path is each variant's own default (facts.json): said here, it would be said for all.
    assert settings.keys().isdisjoint({"drop_path", "num_classes", "data", "data_dir", "pretrained"})
    assert settings["img_size"] == timm.get_pretrained_cfg(settings["model"]).input_size[-1]


@every_recipe
def test_the_source_is_named(path):
    head = path.read_text(encoding="utf-8").partition("\nmodel:")[0]
    assert re.search(r"^# Source: (?s:.*)https://", head, re.MULTILINE)
    assert re.search(r"commit [0-9a-f]{7}\b|arxiv\.org/abs/", head)
    assert "\n# Not in train.py: " in head


@every_recipe
def test_timm_builds_the_optimizer_and_the_schedule(path):
    args = complete(path)
    args.lr = global_rate(args, 1024)
    optimizer = create_optimizer_v2(nn.Linear(2, 2), **optimizer_kwargs(args))
    assert type(optimizer).__name__.lower() == args.opt
    assert {group["weight_decay"] for group in optimizer.param_groups} == {args.weight_decay, 0.0}
    for group in optimizer.param_groups:
        assert group["lr"] == args.lr
        assert list(group["betas"]) == (args.opt_betas or [0.9, 0.999])
        assert group["eps"] == (args.opt_eps or 1e-8)

    steps = 10
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=steps)
    rates = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        scheduler.step_update(epoch * steps)
        rates.append(optimizer.param_groups[0]["lr"])
    assert epochs == int(rows()[path.stem][1])
    assert max(rates) == pytest.approx(args.lr, rel=0.02)
    warm = args.warmup_epochs
    assert rates.index(max(rates)) == warm
    if warm:
        assert rates[0] == pytest.approx(args.warmup_lr)
        ramp = [after - before for before, after in pairwise(rates[: warm + 1])]
        assert max(ramp) < 1.1 * (args.lr - args.warmup_lr) / warm
    if args.sched == "cosine":
        assert rates == [*rates[:warm], *sorted(rates[warm:], reverse=True)]
        assert rates[-1] == pytest.approx(args.min_lr, abs=2e-4 * args.lr)
        middle = (warm if args.warmup_prefix else 0) + args.epochs // 2
        assert rates[middle] == pytest.approx((args.lr + args.min_lr) / 2, rel=0.01)
    else:
        assert set(rates) == {args.lr}


@every_recipe
def test_timm_builds_the_augmentation(path):
    args = complete(path)
    for size in args.train_img_sizes or [args.img_size]:
        transform = create_transform(
            (3, size, size),
            is_training=True,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            interpolation=args.train_interpolation,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
        )
        kinds = [type(step).__name__ for step in transform.transforms]
        assert ("RandAugment" in kinds) == (args.aa is not None)
        assert ("RandomErasing" in kinds) == (args.reprob > 0)
        assert "ColorJitter" not in kinds or not args.aa  # timm leaves the jitter to RandAugment
    if args.aa:
        augment = next(step for step in transform.transforms if isinstance(step, RandAugment))
        assert {op.magnitude for op in augment.ops} == {float(re.search(r"-m(\d+)", args.aa)[1])}
    evaluation = create_transform((3, 64, 64), interpolation=args.interpolation or "bicubic", crop_pct=args.crop_pct)
    assert evaluation.transforms[0].size == math.floor(64 / (args.crop_pct or 0.875))
    if args.mixup or args.cutmix:
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=10,
        )
        _, targets = mixup(torch.rand(4, 3, 16, 16), torch.arange(4))
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


@every_recipe
def test_the_sizes_have_about_as_many_pixels_a_batch_or_no_fewer_images(path):
    args = complete(path)
    if not args.train_img_sizes:
        assert args.train_batch_sizes is None
        return
    assert len(args.train_img_sizes) == len(args.train_batch_sizes)
    batches = dict(zip(args.train_img_sizes, args.train_batch_sizes, strict=True))
    assert batches[args.img_size] == args.batch_size
    for size, batch in batches.items():
        pixels = args.batch_size * args.img_size**2 // size**2
        assert batch in (pixels, max(args.batch_size, 8 * round(pixels / 8)))


@every_recipe
def test_the_page_has_the_recipes_figures(path):
    settings, args = read(path), complete(path)
    model, _, batch, total, rate, _ = rows()[path.stem]
    gpus, images, accumulated = map(int, batch.split(" x "))
    assert model == f"`{settings['model']}`"
    assert (images, accumulated) == (args.batch_size, args.grad_accum_steps)
    assert int(total.replace(",", "")) == gpus * images * accumulated
    assert float(rate) == pytest.approx(global_rate(args, gpus * images * accumulated))
    assert re.search(
        rf"^batch_size: {images}  # on (each of )?{gpus} GPU", path.read_text(encoding="utf-8"), re.MULTILINE
    )


def test_the_page_names_every_family():
    assert list(rows()) == [path.stem for path in FILES]
    without = re.findall(r"^- `(\w+)`: ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    families = {family(name).rpartition(".")[2] for name in NAMES}
    assert sorted([*rows(), *without]) == sorted(families)
