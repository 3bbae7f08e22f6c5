"""What is trained: the student, and the task that it learns by, from labels or from a teacher too."""

import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import list_optimizers
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
)
from torch import nn

from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.models.loading import labels_of, load, load_checkpoint, open_model
from timm_mobilevit_zoo.models.names import unknown
from timm_mobilevit_zoo_cli.near import did_you_mean

__all__ = ["check_names", "create_student", "create_task", "describe", "not_finite"]


SCHEDULES = ("constant", "cosine", "multistep", "none", "poly", "rsqrt", "step", "tanh", "wsd")


def check_names(options: dict[str, Any]) -> None:
    """Refuse a model, a teacher, an optimiser or a schedule that timm does not know, and a name without weights.

    Args:
        options: The arguments of `train`.
    """
    for key in ("model", "teacher"):
        name = options[key]
        if not name or ":" in name or (key == "teacher" and Path(name).is_dir()):
            continue
        if not timm.is_model(name):
            neither = "is neither a folder nor" if key == "teacher" else "is not"
            raise ValueError(f"{key}={name!r} {neither} {unknown(name)}")
        cfg: Any = timm.get_pretrained_cfg(name)
        if not cfg.has_weights and key == "teacher":
            raise ValueError(f"teacher={name!r} has no published weights; train it, and give the run's folder")
        if not cfg.has_weights and options["pretrained"]:
            raise ValueError(f"model={name!r} has no published weights; train it without `pretrained`")
    if options["opt"].lower().removeprefix("lookahead_") not in list_optimizers():
        meant = did_you_mean(options["opt"], map(str, list_optimizers()))
        raise ValueError(f"opt={options['opt']!r} is not one of timm's optimisers{meant}")
    if options["sched"] not in SCHEDULES:
        meant = did_you_mean(options["sched"], SCHEDULES)
        raise ValueError(f"sched={options['sched']!r} must be one of {', '.join(SCHEDULES)}{meant}")


def not_finite(module: nn.Module) -> list[str]:
    """Return the names of those parameters and saved buffers that hold a NaN or an infinite value."""
    held = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    if not held:
        return []
    flags = torch.stack([torch.isfinite(tensor).all() for tensor in held.values()]).tolist()  # one wait for the device
    return [name for name, finite in zip(held, flags, strict=True) if not finite]


def create_student(options: dict[str, Any], num_classes: int) -> Any:
    """Return the network that `train`'s options name, with the weights that they name."""
    args = {key: options[key] for key in ("img_size", "in_chans", "drop_rate", "drop_path_rate")}
    args["num_classes"] = num_classes
    if options["checkpoint"]:
        student = load_checkpoint(options["checkpoint"], options["model"], **args)
    else:
        pretrained = options["pretrained"] or ":" in options["model"]
        student = open_model(options["model"], pretrained=pretrained, trust=options["trust"], **args)
    key = "checkpoint" if options["checkpoint"] else "model"
    _need_finite(f"{key}={options[key]!r}", student)
    if options["grad_checkpointing"]:
        try:
            student.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"model={options['model']!r} does not support `grad_checkpointing`") from error
    return student


def _need_finite(told: str, network: nn.Module) -> None:
    if odd := not_finite(network):
        raise ValueError(f"{told} has weights that are not finite: {', '.join(odd[:3])}")


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
    try:
        teacher = load(name, trust=options["trust"], **chans)
    except ValueError as error:
        raise ValueError(str(error).replace("model=", "teacher=", 1)) from error
    _need_finite(f"teacher={name!r}", teacher)
    if teacher.in_chans != student.in_chans:
        raise ValueError(f"teacher={name!r} sees {teacher.in_chans} image channels, the student {student.in_chans}")
    if teacher.num_classes != student.num_classes:
        raise ValueError(f"teacher={name!r} knows {teacher.num_classes} classes, the data has {student.num_classes}")
    taught = labels_of(teacher) or labels
    if taught != labels:
        raise ValueError(f"teacher={name!r} has other classes, or another order: {taught}, not {labels}")
    side, taught_side = (m.pretrained_cfg["input_size"][1:] for m in (student, teacher))
    if teacher.pretrained_cfg.get("fixed_input_size") and tuple(side) != tuple(taught_side):
        raise ValueError(
            f"teacher={name!r} takes images of {' x '.join(map(str, taught_side))} pixels only, the student's have "
            f"{' x '.join(map(str, side))}: set `img_size`"
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
