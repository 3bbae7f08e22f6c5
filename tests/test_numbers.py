"""Which numbers options take, and which options would change nothing: told at once, by name."""

import math
from fractions import Fraction
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from runs import FAST

from timm_mobilevit_zoo.bench import bench
from timm_mobilevit_zoo.train import train
from timm_mobilevit_zoo.train.demo import demo, write_digits
from timm_mobilevit_zoo_cli.checks import check, check_port
from timm_mobilevit_zoo_cli.effects import _TRAIN
from timm_mobilevit_zoo_cli.numbers import NUMBERS, check_numbers, plain
from timm_mobilevit_zoo_cli.parser import SERVE, SOURCES

DEFAULTS = SOURCES["train"].read().defaults


def numeric(kind):
    """Tell whether an annotation is of numbers, and whether of whole ones; None for other kinds."""
    kinds = {kind, *(one for one in get_args(kind) if get_origin(kind) is not Literal)}
    return int in kinds if kinds & {int, float} else None


OPTIONS = [
    (f"{command} {argument.name}", argument)
    for command, source in {**SOURCES, "serve": SERVE}.items()
    for argument in source.read().arguments
    if numeric(argument.kind) is not None
]


@pytest.mark.parametrize("argument", [one for _, one in OPTIONS], ids=[name for name, _ in OPTIONS])
def test_every_number_has_its_limits(argument):
    name, rule = argument.name, NUMBERS[argument.name]
    assert rule.whole == numeric(argument.kind)
    if not argument.required:
        check_numbers({name: argument.default})
    several = isinstance(argument.default, tuple)
    bad = [math.nan, math.inf, -math.inf, -1, True, "1", *([1.5, rule.high + 1] if rule.whole else [])]
    for value in (*bad, *([] if rule.optional else [None])):
        with pytest.raises(ValueError, match=f"^{name}=.* must "):
            check_numbers({name: (value,) if several else value})
    for value in (rule.low, rule.high):
        excluded = rule.above if value == rule.low else rule.below
        if math.isfinite(value) and not excluded:
            check_numbers({name: type(rule.low)(value)})
            check_numbers({name: np.int64(value) if rule.whole else np.float32(value)})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 10000}, "workers=10000 must be at most 256"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
        ({"seed": 2**32 - 3}, "seed=4294967293 must be at most 2147483647"),
        ({"epochs": 3.0}, r"epochs=3\.0 must be a whole number"),
        ({"min_lr": -1.0}, r"min_lr=-1\.0 must be at least 0"),
        ({"lr": math.inf}, "lr=inf must be above 0 and finite"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate=1\.5 must be at least 0 and below 1"),
        ({"layer_decay": 0.0}, r"layer_decay=0\.0 must be above 0 and at most 1"),
        ({"ratio": (1.0, math.nan)}, r"ratio=1\.0 nan must be above 0 and finite each"),
        ({"scale": (0.1, 0.5, 1.0)}, "scale=.* must be two numbers"),
        ({"scale": 0.5}, "scale=0.5 must be two numbers"),
        ({"distill": "none"}, "distill='none' must be one of logit, token, feature"),
        ({"opt": "adamx"}, "opt='adamx' is not one of timm's optimisers"),
        ({"sched": "cosin"}, "sched='cosin' must be one of constant, cosine"),
        ({"pretrained": True}, f"model='{FAST}' has no published weights; train it without `pretrained`"),
    ],
)
def test_training_names_a_wrong_number_or_word(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        train(str(tmp_path), model=FAST, output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_functions_check_their_numbers_too(tmp_path):
    with pytest.raises(ValueError, match=r"seconds=inf must be above 0 and finite"):
        bench([FAST], seconds=math.inf)
    with pytest.raises(ValueError, match="port=65536 must be from 0 to 65535"):
        check_port(65536)
    for wrong in ({"epochs": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            demo(output=str(tmp_path / "demo"), **wrong)
    with pytest.raises(ValueError, match="val_every=1 must be at least 2"):
        write_digits(tmp_path / "demo", val_every=1)
    assert not (tmp_path / "demo").exists()


# An option of `train`, what it needs, and what is said without that.
NO_EFFECT = [
    ({"temperature": 2.0, "teacher": "t", "distill": "feature"}, {"distill": "logit"}, "has no effect on features"),
    *[
        ({name: value}, {"teacher": "t"}, "needs `teacher`")
        for name, value in {"distill": "token", "temperature": 2.0, "alpha": 0.1}.items()
    ],
    ({"ema_decay": 0.9}, {"ema": True}, "needs `ema=True`"),
    *[
        ({name: value, "augment": False}, {"augment": True}, "needs `augment=True`")
        for name, value in {
            "scale": [0.5, 1.0],
            "ratio": (1.0, 1.0),
            "hflip": 0.0,
            "vflip": 0.5,
            "color_jitter": 0.0,
            "auto_augment": "rand-m9",
            "reprob": 0.1,
        }.items()
    ],
    ({"color_jitter": 0.2, "auto_augment": "rand-m9"}, {"auto_augment": "3a"}, "has no effect beside `auto_augment`"),
    ({"warmup_lr": 1e-5, "warmup_epochs": 0}, {"warmup_epochs": 1}, "needs `warmup_epochs`"),
    *[
        ({"min_lr": 1e-5, "sched": sched}, {"sched": "cosine"}, "needs a schedule that goes down to it")
        for sched in ("none", "constant", "step", "multistep")
    ],
    *[
        ({name: value}, {"dataset": "torch/cifar10"}, "needs `dataset`")
        for name, value in {"num_classes": 3, "train_split": "a", "val_split": "b", "dataset_download": True}.items()
    ],
    *[
        ({name: value, "dataset": "torch/cifar10"}, {"dataset": ""}, "is for a folder of images")
        for name, value in {"val_fraction": 0.5, "on_broken": "skip"}.items()
    ],
    (
        {"pretrained": True, "checkpoint": __file__},
        {"checkpoint": ""},
        "and `checkpoint` are both weights to start from",
    ),
]


@pytest.mark.parametrize(("options", "needed", "told"), NO_EFFECT, ids=lambda value: str(value)[:40])
def test_an_option_without_effect_is_refused(tmp_path, options, needed, told):
    given = DEFAULTS | {"data": str(tmp_path), "model": FAST} | options
    with pytest.raises(ValueError, match=f"^{next(iter(options))}=.* {told}"):
        check("train", given)
    check("train", given | needed)


def test_every_rule_of_effects_is_tried(tmp_path):
    tried = {(next(iter(options)), told) for options, _, told in NO_EFFECT}
    rules = {(name, told) for names, _, told in _TRAIN for name in names}
    left = {rule for rule in rules if not any(rule[0] == name and told in rule[1] for name, told in tried)}
    assert left == {("val_fraction", "is for a folder without images for validation")}
    given = DEFAULTS | {"data": str(tmp_path), "model": FAST, "val_fraction": 0.3}
    check("train", given)
    (tmp_path / "valid").mkdir()
    with pytest.raises(ValueError, match=r"val_fraction=0.3 is for a folder without images"):
        check("train", given)


def test_arguments_become_pythons_own(tmp_path):
    given = {"a": np.float64(0.5), "b": [np.int64(2), torch.tensor(3)], "c": tmp_path, "d": np.array([1.0, 2.0])}
    given |= {"e": np.bool_(True), "f": None, "g": "x", "h": np.str_("y"), "i": Fraction(1, 2), "j": {"k": np.uint8(1)}}
    found = plain(given)
    expected = {"a": 0.5, "b": (2, 3), "c": str(tmp_path), "d": (1.0, 2.0), "e": True, "f": None, "g": "x", "h": "y"}
    assert found == expected | {"i": 0.5, "j": {"k": 1}}
    assert [type(value) for value in found.values()] == [
        float,
        tuple,
        str,
        tuple,
        bool,
        type(None),
        str,
        str,
        float,
        dict,
    ]
    assert {type(value) for value in (*found["b"], *found["d"], *found["j"].values())} == {int, float}
