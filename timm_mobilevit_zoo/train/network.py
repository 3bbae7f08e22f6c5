"""What is trained: the student, and the task that it learns by, from labels or from a teacher too."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
)
from torch import nn

from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.models.loading import labels_of, load, load_checkpoint, open_model

__all__ = ["check_names", "create_student", "create_task", "describe"]


def check_names(options: dict[str, Any], train: Callable[..., Any]) -> None:
    """Refuse a model or a teacher that timm does not know, and what is said of a teacher where there is none.

    Args:
        options: The arguments of `train`.
        train: The function, which has their defaults.
    """
    name = options["model"]
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"model={name!r} is not registered; see timm.list_models()")
    name = options["teacher"]
    if not name:
        for key in ("distill", "temperature", "alpha"):
            if options[key] != inspect.signature(train).parameters[key].default:
                raise ValueError(f"{key}={options[key]!r} needs a teacher")
    elif not Path(name).is_dir() and ":" not in name:
        if not timm.is_model(name):
            raise ValueError(f"teacher={name!r} is neither a folder nor registered; see timm.list_models()")
        cfg: Any = timm.get_pretrained_cfg(name)
        if not cfg.has_weights:
            raise ValueError(f"teacher={name!r} has no published weights; train it, and give the run's folder")


def create_student(options: dict[str, Any], num_classes: int) -> Any:
    """Return the network that `train`'s options name, with the weights that they name."""
    args = {key: options[key] for key in ("img_size", "in_chans", "drop_rate", "drop_path_rate")}
    args["num_classes"] = num_classes
    if options["checkpoint"]:
        return load_checkpoint(options["checkpoint"], options["model"], **args)
    pretrained = options["pretrained"] or ":" in options["model"]
    return open_model(options["model"], pretrained=pretrained, trust=options["trust"], **args)


def describe(model: Any, config: dict[str, Any], labels: list[str]) -> None:
    """Make the model's config say what it is trained for, so that the saved folder does."""
    cfg = model.pretrained_cfg
    for key in ("tag", "license", "file", "hf_hub_id", "url", "source", "test_input_size", "label_offset"):
        cfg.pop(key, None)  # they speak of other weights
    stride = model.feature_info[-1]["reduction"] if hasattr(model, "feature_info") else None
    cfg.update(
        num_classes=len(labels),
        input_size=tuple(config["input_size"]),
        pool_size=tuple(math.ceil(side / stride) for side in config["input_size"][1:]) if stride else None,
        **{key: config[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")},
    )


def create_task(student: Any, criterion: nn.Module, labels: list[str], options: dict[str, Any]) -> Any:
    """Return timm's task: classification, or distillation from a teacher that knows the same classes."""
    if not options["teacher"]:
        return ClassificationTask(student, criterion=criterion, verbose=False)
    name = options["teacher"]
    # A published network is fitted to other image channels, as timm does; one that was trained on some keeps them.
    chans = {} if Path(name).is_dir() else {"in_chans": student.in_chans}
    teacher = load(name, trust=options["trust"], **chans)
    if teacher.in_chans != student.in_chans:
        raise ValueError(f"teacher={name!r} sees {teacher.in_chans} image channels, the student {student.in_chans}")
    if teacher.num_classes != student.num_classes:
        raise ValueError(f"teacher={name!r} knows {teacher.num_classes} classes, the data has {student.num_classes}")
    taught = labels_of(teacher) or labels
    if taught != labels:
        raise ValueError(f"teacher={name!r} knows other classes, or in another order: {taught}, not {labels}")
    side, taught_side = (m.pretrained_cfg["input_size"][1:] for m in (student, teacher))
    if teacher.pretrained_cfg.get("fixed_input_size") and tuple(side) != tuple(taught_side):
        raise ValueError(
            f"teacher={name!r} takes images of {' x '.join(map(str, taught_side))} pixels only, the student's have "
            f"{' x '.join(map(str, side))}: set img_size"
        )
    if options["distill"] == "token" and not isinstance(student.get_classifier(), tuple):
        raise ValueError(
            f"distill='token' needs a model with a second classifier, as deit_nano_distilled_patch4_32 and casvit_xs "
            f"have; model={options['model']!r} has none"
        )
    config = data_config(teacher)  # a published network's speaks of three channels
    teacher.pretrained_cfg.update({key: config[key] for key in ("mean", "std")})
    teacher.requires_grad_(False)
    tasks = {"logit": LogitDistillationTask, "token": TokenDistillationTask, "feature": FeatureDistillationTask}
    heat = {} if options["distill"] == "feature" else {"temperature": options["temperature"]}
    return tasks[options["distill"]](
        student, teacher, criterion=criterion, task_loss_weight=1 - options["alpha"], verbose=False, **heat
    )
