"""Train or fine-tune a model on images: timm's data pipeline, losses, optimisers and tasks, Accelerate's devices.

A run is one folder: `model.safetensors` and `config.json` of the best epoch (what `timm.create_model('local-dir:...')`
loads), `last.ckpt` to resume from, `summary.csv` and `curve.png`.

Every epoch begins with the random state that its number and the seed give, and a checkpoint closes it; so a run that
was killed and resumed ends with the same weights as one that was not.
"""

import copy
import csv
import hashlib
import inspect
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import Mixup, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
)
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ._data import folder_data, make_loader, named_data
from ._extras import require
from ._files import replacing
from .predict import create, load, weights_from

__all__ = ["train"]

RUN_FILES = ("config.json", "curve.png", "last.ckpt", "model.safetensors", "summary.csv")


def train(
    data: str,
    *,
    model: str,
    output: str = "",
    dataset: str = "",
    train_split: str = "train",
    val_split: str = "validation",
    dataset_download: bool = False,
    num_classes: int | None = None,
    val_fraction: float = 0.2,
    on_broken: Literal["stop", "skip", "trust"] = "stop",
    workers: int = 2,
    img_size: int | None = None,
    in_chans: int = 3,
    crop_pct: float | None = None,
    pretrained: bool = False,
    checkpoint: str = "",
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    grad_checkpointing: bool = False,
    channels_last: bool = True,
    epochs: int = 30,
    batch_size: int = 64,
    grad_accum_steps: int = 1,
    opt: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    clip_grad: float | None = None,
    sched: str = "cosine",
    warmup_epochs: int = 3,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-6,
    augment: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.4,
    auto_augment: str = "",
    reprob: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    smoothing: float = 0.1,
    ema: bool = False,
    ema_decay: float = 0.9998,
    teacher: str = "",
    distill: Literal["logit", "token", "feature"] = "logit",
    temperature: float = 3.0,
    alpha: float = 0.5,
    mixed_precision: Literal["no", "fp16", "bf16"] = "no",
    cpu: bool = False,
    seed: int = 42,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a model on a folder of images, or on a data set that timm names, and leave a folder that timm loads.

    Args:
        data: Image folder: one folder a class, or such folders under train and val; with a named data set, its root.
        model: Registered name, or local-dir:FOLDER or hf-hub:REPOSITORY.
        output: Folder of the run, new or empty unless the run is resumed; runs/MODEL where not given.
        dataset: Name for timm's create_dataset, as torch/cifar10, hfds/NAME, wds/NAME; empty for an image folder.
        train_split: Split to train on, of a named data set.
        val_split: Split to validate on, of a named data set.
        dataset_download: Let a named data set download itself.
        num_classes: Number of classes, for a named data set that does not tell.
        val_fraction: Share of each class held out where the folder has no validation split.
        on_broken: Read all images of a folder first and stop, or leave out, if any is broken; or trust them unread.
        workers: Processes that load images.
        img_size: Side of the square input, in pixels; the model's own where not given.
        in_chans: Image channels: 1 (grey) or 3.
        crop_pct: Share of a validation image's side that is kept; the model's own where not given.
        pretrained: Start from the weights that the name stands for; they may be downloaded.
        checkpoint: Start from this weights file, the authors' or ours; a head of as many classes is kept.
        drop_rate: Dropout before the classifier; the model's own where not given.
        drop_path_rate: Stochastic depth; the model's own where not given.
        grad_checkpointing: Recompute activations in the backward pass, to save memory.
        channels_last: Keep the model and the images in channels-last layout, the faster one for these networks.
        epochs: Passes over the training images.
        batch_size: Images in one step of one process.
        grad_accum_steps: Steps whose gradients are summed before an update.
        opt: timm's name of the optimiser.
        lr: Highest learning rate, as given: no scaling by batch size.
        weight_decay: Weight decay, on weights but not on biases and norms.
        layer_decay: Factor of the learning rate from one layer group to the one before; none where not given.
        clip_grad: Largest norm of the gradient; no limit where not given.
        sched: timm's name of the schedule, stepped at every update.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate that warm-up begins with.
        min_lr: Learning rate that the schedule ends with.
        augment: Augment the training images, as the next options say.
        scale: Smallest and largest share of the image's area that a random crop keeps.
        ratio: Smallest and largest aspect ratio of a random crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of colour jitter.
        auto_augment: timm's policy, as rand-m9-mstd0.5-inc1; empty for none.
        reprob: Probability of random erasing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        smoothing: Label smoothing.
        ema: Average the weights over updates, validate and save the average.
        ema_decay: Decay of that average, an update; it warms up.
        teacher: Registered name (its pretrained weights may be downloaded) or folder of a trained model to learn from.
        distill: What the student matches: the teacher's logits, by a second classifier, or its pooled features.
        temperature: Temperature of the soft labels.
        alpha: Weight of the teacher's loss; the labels' loss has 1 - alpha.
        mixed_precision: Type of the arithmetic, as Accelerate names it.
        cpu: Stay on the CPU where there is an accelerator.
        seed: Seed of weights, order and augmentation.
        resume: Continue the run in the output folder, with the same arguments; one without a whole epoch starts anew.

    Returns:
        The run's folder (`output`) and its best epoch's `epoch`, `val_loss`, `val_top1` and `val_top5` (percent).

    Raises:
        ValueError: For arguments or data that cannot work, before training; or a loss that is not finite.
        FileNotFoundError: For a path that is not there.
        ModuleNotFoundError: Without the extra `train`.
    """
    options = dict(locals())
    accelerate = require("accelerate", "train")
    require("matplotlib", "train")
    _check_options(options)
    if not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):  # an earlier run in this process has left its settings
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=grad_accum_steps,
        dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True),
    )
    out = Path(output or f"runs/{timm.models.safe_model_name(model)}")
    state = _open_run(out, options, accelerator)
    train_set, val_set, labels = named_data(options) if dataset else folder_data(options, accelerator)
    decisive = _comparable(options, labels, (train_set, val_set), accelerator.num_processes)
    if state:
        _refuse_changes(state, decisive)
    total, step = len(train_set) if hasattr(train_set, "__len__") else None, batch_size * accelerator.num_processes
    if total is not None and total < step:
        raise ValueError(f"batch_size={batch_size} means {step} images a step, but there are {total} to train on")

    accelerate.utils.set_seed(seed)
    student = _create_student(options, len(labels))
    config = resolve_data_config({"img_size": img_size, "in_chans": in_chans, "crop_pct": crop_pct}, model=student)
    if in_chans == 1:
        config |= _grey(config)
    _describe(student, config, labels)
    _check_disk(out, student, ema)
    if grad_checkpointing:
        student.set_grad_checkpointing(True)
    if channels_last:
        student.to(memory_format=torch.channels_last)

    mix = None
    if mixup or cutmix:
        mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=len(labels))
    criterion = SoftTargetCrossEntropy() if mix else LabelSmoothingCrossEntropy(smoothing)
    task = _create_task(student, criterion, labels, options)
    if ema:
        task.setup_ema(decay=ema_decay, use_warmup=True)
    optimizer = create_optimizer_v2(
        task.trainable_module, opt=opt, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay
    )
    train_loader = make_loader(train_set, config, options, is_training=True)
    val_loader = make_loader(val_set, config, options, is_training=False)
    if not isinstance(train_set, IterableDataset):  # timm's streaming readers share the work out themselves
        train_loader, val_loader = accelerator.prepare(train_loader, val_loader)
    task.to(accelerator.device)
    task.trainable_module, optimizer = accelerator.prepare(task.trainable_module, optimizer)
    updates = math.ceil(len(train_loader) / grad_accum_steps)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=sched,
        num_epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_lr=warmup_lr,
        min_lr=min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )

    history: list[dict[str, float]] = []
    if state:
        history = state["history"]
        unwrap_model(task.trainable_module).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.step_update(len(history) * updates)
        if ema:
            task.trainable_module_ema.load_state_dict(state["ema"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    for epoch in range(len(history), epochs):
        accelerate.utils.set_seed(seed + 1 + epoch, device_specific=True)
        for loader in (train_loader, train_set):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
        began = time.perf_counter()
        row: dict[str, float] = {"epoch": epoch + 1}
        row |= _train_epoch(
            task, train_loader, optimizer, scheduler, accelerator, epoch, updates, mix, clip_grad, channels_last
        )
        if ema and accelerator.num_processes > 1:  # each process has averaged its own BatchNorm statistics
            for buffer in task.trainable_module_ema.buffers():
                accelerate.utils.broadcast(buffer)
        row |= _evaluate(task.get_eval_model(ema=ema), val_loader, accelerator, channels_last)
        row["seconds"] = round(time.perf_counter() - began, 2)
        history.append(row)
        best = max(history, key=lambda r: r["val_top1"])
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            tqdm.write(
                f"epoch {epoch + 1}/{epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
                f"val top-1 {row['val_top1']:.2f}%  best {best['val_top1']:.2f}%  "
                f"{row['images_per_s']:.0f} images/s  {row['seconds']:.1f} s"
            )
            if best is row:
                _save_folder(unwrap_model(task.get_eval_model(ema=ema)), out, labels)
            _write_summary(out, history)
            snapshot = {
                "options": decisive,
                "history": history,
                "model": unwrap_model(task.trainable_module).state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": task.trainable_module_ema.state_dict() if ema else None,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            }
            with replacing(out / "last.ckpt") as path:
                torch.save(snapshot, path)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    best = max(history, key=lambda r: r["val_top1"])
    return {"output": str(out), **{key: best[key] for key in ("epoch", "val_loss", "val_top1", "val_top5")}}


def _check_options(options: dict[str, Any]) -> None:
    if not options["dataset"] and not Path(options["data"]).is_dir():
        raise FileNotFoundError(f"data={options['data']!r} is not a folder")
    if options["checkpoint"] and not Path(options["checkpoint"]).is_file():
        raise FileNotFoundError(f"checkpoint={options['checkpoint']!r} is not a file")
    name = options["model"]
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"model={name!r} is not registered; see timm.list_models()")
    for key in ("epochs", "batch_size", "grad_accum_steps"):
        if options[key] < 1:
            raise ValueError(f"{key}={options[key]} must be at least 1")
    for key in ("alpha", "smoothing", "hflip", "vflip", "reprob"):
        if not 0 <= options[key] <= 1:
            raise ValueError(f"{key}={options[key]} must lie in 0..1")
    for key in ("val_fraction", "ema_decay"):
        if not 0 < options[key] < 1:
            raise ValueError(f"{key}={options[key]} must lie between 0 and 1")
    for key in ("lr", "temperature", "clip_grad"):
        if options[key] is not None and options[key] <= 0:
            raise ValueError(f"{key}={options[key]} must be above 0")
    for key in ("mixup", "cutmix", "weight_decay", "workers", "warmup_epochs"):
        if options[key] < 0:
            raise ValueError(f"{key}={options[key]} must be at least 0")
    if options["crop_pct"] is not None and not 0 < options["crop_pct"] <= 1:
        raise ValueError(f"crop_pct={options['crop_pct']} must be above 0 and at most 1")
    if not 0 < options["scale"][0] <= options["scale"][1] <= 1:
        raise ValueError(f"scale={options['scale']} must be two shares above 0 and up to 1, the smaller first")
    if not 0 < options["ratio"][0] <= options["ratio"][1]:
        raise ValueError(f"ratio={options['ratio']} must be two ratios above 0, the smaller first")
    if options["num_classes"] is not None and not options["dataset"]:
        raise ValueError(
            f"num_classes={options['num_classes']} is for a named data set; a folder's classes are counted"
        )
    if options["sched"] == "plateau":
        raise ValueError("sched='plateau' does not step at updates; choose cosine, tanh, step, multistep, poly or none")
    if options["img_size"] is not None and options["img_size"] < 1:
        raise ValueError(f"img_size={options['img_size']} must be at least 1")
    if options["in_chans"] not in (1, 3):
        raise ValueError(f"in_chans={options['in_chans']} must be 1 (grey) or 3 (RGB)")
    if options["warmup_epochs"] >= options["epochs"] and options["warmup_epochs"] > 0 and options["epochs"] > 1:
        raise ValueError(f"warmup_epochs={options['warmup_epochs']} must be below epochs={options['epochs']}")
    if (options["mixup"] or options["cutmix"]) and options["batch_size"] % 2:
        raise ValueError(f"batch_size={options['batch_size']} must be even for mixup and cutmix")
    _check_teacher(options)


def _check_teacher(options: dict[str, Any]) -> None:
    name = options["teacher"]
    if not name:
        for key in ("distill", "temperature", "alpha"):
            if options[key] != inspect.signature(train).parameters[key].default:
                raise ValueError(f"{key}={options[key]!r} needs a teacher")
    elif Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise FileNotFoundError(f"teacher={name!r} is no folder that train left: it holds no config.json")
    elif ":" not in name:
        if not timm.is_model(name):
            raise ValueError(f"teacher={name!r} is neither a folder nor registered; see timm.list_models()")
        cfg: Any = timm.get_pretrained_cfg(name)
        if not cfg.has_weights:
            raise ValueError(f"teacher={name!r} has no published weights; train it, and give the run's folder")


def _comparable(options: dict[str, Any], labels: list[str], images: tuple[Any, ...], processes: int) -> dict[str, Any]:
    # What decides the result; a run may move to another folder or another number of loaders.
    free = ("output", "resume", "workers", "cpu", "data")
    pairs = ((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items())
    names = [
        f"{path.parent.name}/{path.name} {target}"
        for part in images
        for path, target in getattr(part, "samples", ())
        if isinstance(path, Path)
    ]
    facts = {
        "labels": labels,
        "images": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        "processes": processes,
    }
    return {key: value for key, value in pairs if key not in free} | facts


def _open_run(out: Path, options: dict[str, Any], accelerator: Any) -> dict[str, Any] | None:
    """Return the state to resume from, or None for a new run in a new or empty folder."""
    last = out / "last.ckpt"
    if not (options["resume"] and last.is_file()):
        # A run that was killed in its first epoch leaves hidden files, and in its last moments some of the run's own.
        own = RUN_FILES if options["resume"] else ()
        held = [path.name for path in out.iterdir()] if out.is_dir() else []
        if out.is_file() or any(not name.startswith(".") and name not in own for name in held):
            need = "holds no last.ckpt" if options["resume"] else "choose another, or resume the run"
            raise ValueError(f"output={str(out)!r} exists and is not an empty folder; {need}")
        accelerator.wait_for_everyone()
        out.mkdir(parents=True, exist_ok=True)
        return None
    state: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True)
    return state


def _refuse_changes(state: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key}={now.get(key)!r} (was {state['options'].get(key)!r})"
        for key in sorted(now.keys() | state["options"].keys())
        if now.get(key) != state["options"].get(key)
    ]
    if changed:
        raise ValueError(f"a resumed run keeps its arguments and data, but these differ: {', '.join(changed)}")


def _create_student(options: dict[str, Any], num_classes: int) -> Any:
    extra = {key: options[key] for key in ("drop_rate", "drop_path_rate")}
    if options["checkpoint"]:
        extra["pretrained_cfg_overlay"] = weights_from(options["checkpoint"], options["model"])
    return create(
        options["model"],
        img_size=options["img_size"],
        pretrained=options["pretrained"] or bool(options["checkpoint"]) or ":" in options["model"],
        num_classes=num_classes,
        in_chans=options["in_chans"],
        **extra,
    )


def _grey(config: dict[str, Any]) -> dict[str, Any]:
    """Return one channel's mean and std, where timm would take three for as many channels."""
    return {key: (sum(config[key]) / len(config[key]),) for key in ("mean", "std")}


def _describe(model: Any, config: dict[str, Any], labels: list[str]) -> None:
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


def _check_disk(out: Path, model: nn.Module, ema: bool) -> None:
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # Weights, two moments and the average in the checkpoint, the weights in the folder; all twice while replaced.
    needed = 2 * weights * (4 + ema + 1) + 2**24
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(f"output={str(out)!r} has {free >> 20} MiB left on its disk; the run needs {needed >> 20} MiB")


def _create_task(student: Any, criterion: nn.Module, labels: list[str], options: dict[str, Any]) -> Any:
    if not options["teacher"]:
        return ClassificationTask(student, criterion=criterion, verbose=False)
    name = options["teacher"]
    # A published network is fitted to other image channels, as timm does; one that was trained on some keeps them.
    teacher = load(name) if Path(name).is_dir() else load(name, in_chans=student.in_chans)
    if teacher.in_chans != student.in_chans:
        raise ValueError(f"teacher={name!r} sees {teacher.in_chans} image channels, the student {student.in_chans}")
    if teacher.num_classes != student.num_classes:
        raise ValueError(f"teacher={name!r} knows {teacher.num_classes} classes, the data has {student.num_classes}")
    taught = list(teacher.pretrained_cfg.get("label_names") or labels)
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
    if student.in_chans == 1:
        teacher.pretrained_cfg.update(_grey(teacher.pretrained_cfg))
    teacher.requires_grad_(False)
    tasks = {"logit": LogitDistillationTask, "token": TokenDistillationTask, "feature": FeatureDistillationTask}
    heat = {} if options["distill"] == "feature" else {"temperature": options["temperature"]}
    return tasks[options["distill"]](
        student, teacher, criterion=criterion, task_loss_weight=1 - options["alpha"], verbose=False, **heat
    )


def _train_epoch(
    task: Any,
    loader: Any,
    optimizer: Any,
    scheduler: Any,
    accelerator: Any,
    epoch: int,
    updates: int,
    mix: Mixup | None,
    clip_grad: float | None,
    channels_last: bool,
) -> dict[str, float]:
    task.train()
    if hasattr(task, "teacher"):
        task.teacher.eval()  # timm 1.0.29's tasks would have it learn BatchNorm statistics and drop out
    update = epoch * updates
    loss_sum = torch.zeros((), device=accelerator.device)
    right = torch.zeros((), device=accelerator.device)
    seen = 0
    began = time.perf_counter()
    show = None if accelerator.is_local_main_process else True
    bar = tqdm(loader, desc=f"epoch {epoch + 1}", unit="batch", disable=show, leave=False)
    for images, target in bar:
        images, target = images.to(accelerator.device), target.to(accelerator.device)
        if mix is not None:
            images, target = mix(images, target)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(task.trainable_module):
            with accelerator.autocast():
                result = task(images, target)
            accelerator.backward(result["loss"])
            if clip_grad is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(task.trainable_module.parameters(), clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            update += 1
            task.update_ema(step=update)
            if scheduler is not None:
                scheduler.step_update(update)
        labels = target.argmax(1) if target.ndim > 1 else target
        loss_sum += result["loss"].detach() * len(images)
        right += (result["output"].argmax(1) == labels).sum()
        seen += len(images)
        if bar.n % 10 == 0 and not bar.disable:
            rate = seen * accelerator.num_processes / (time.perf_counter() - began)
            bar.set_postfix(loss=f"{loss_sum / seen:.4f}", top1=f"{100 * right / seen:.1f}%", images_s=f"{rate:.0f}")
    counts = accelerator.reduce(torch.stack([loss_sum, right, torch.tensor(float(seen), device=loss_sum.device)]))
    loss, top1 = (counts[:2] / counts[2]).tolist()
    if not math.isfinite(loss):
        raise ValueError(f"the loss of epoch {epoch + 1} is {loss}: lower lr, or set clip_grad")
    return {
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": loss,
        "train_top1": 100 * top1,
        "images_per_s": round(counts[2].item() / (time.perf_counter() - began), 1),
    }


@torch.no_grad()  # not inference_mode: older process groups write into what they gather
def _evaluate(model: Any, loader: Any, accelerator: Any, channels_last: bool) -> dict[str, float]:
    model.eval()
    rows: list[Tensor] = []
    show = None if accelerator.is_local_main_process else True
    for images, target in tqdm(loader, desc="validation", unit="batch", disable=show, leave=False):
        images, target = images.to(accelerator.device), target.to(accelerator.device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            logits = model(images).float()
        top5 = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
        loss = nn.functional.cross_entropy(logits, target, reduction="none")
        rows.append(accelerator.gather_for_metrics(torch.stack([loss, top5[:, 0], top5.any(1)], dim=1)))
    loss, top1, top5_share = torch.cat(rows).cpu().double().mean(0).tolist()
    return {"val_loss": loss, "val_top1": 100 * top1, "val_top5": 100 * top5_share}


def _save_folder(model: Any, out: Path, labels: list[str]) -> None:
    for stale in out.glob(".export-*"):  # of a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    weights = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        save_for_hf(weights, folder, model_config={"label_names": labels}, safe_serialization=True)
        for name in ("config.json", "model.safetensors"):
            with replacing(out / name) as part:
                shutil.copyfile(Path(folder) / name, part)


def _write_summary(out: Path, history: list[dict[str, float]]) -> None:
    with replacing(out / "summary.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axis, kind, unit in ((loss, "loss", "loss"), (top1, "top1", "top-1 (%)")):
        axis.plot(epochs, [row[f"train_{kind}"] for row in history], label="training")
        axis.plot(epochs, [row[f"val_{kind}"] for row in history], label="validation")
        axis.set(xlabel="epoch", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(out / "curve.png") as part:
        figure.savefig(part, format="png", dpi=120)
