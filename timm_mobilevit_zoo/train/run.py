"""A training run, cut along what it is: its arguments, its data, its network, its optimiser, its epochs, its folder.

Every epoch begins with the random state that its number and the seed give, and a checkpoint closes it; so a run that
was killed and resumed ends with the same weights as one that was not.
"""

import inspect
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.common.progress import progress
from timm_mobilevit_zoo_cli.checks import check, plain

from .data import folder_data, make_loader, named_data
from .epoch import Epoch
from .folder import best_of, check_disk, comparable, open_run, refuse_changes, restore, write_epoch
from .network import check_names, create_student, create_task, describe, not_finite
from .told import beginning, epoch_line, facts_of, warmup_of

__all__ = ["Run", "train"]


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
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    crop_pct: float | None = None,
    pretrained: bool = False,
    checkpoint: str = "",
    trust: bool = False,
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
    """Train a model on a folder of images, or on one of timm's data sets, and write a folder that timm loads.

    Args:
        data: Folder with one folder of images per class, or such folders under train and val; or a data set's root.
        model: Registered name, or local-dir:FOLDER or hf-hub:REPOSITORY.
        output: Folder of the run, new or empty unless the run is resumed; runs/MODEL if not given.
        dataset: Name for timm's create_dataset, such as torch/cifar10, hfds/NAME, wds/NAME; empty for an image folder.
        train_split: Split of a named data set to train on.
        val_split: Split of a named data set to validate on.
        dataset_download: Let a named data set download itself.
        num_classes: Number of classes, for a named data set that does not state it.
        val_fraction: Share of each class held out if the folder has no validation split; 0 for no validation.
        on_broken: First read all images of a folder, and stop at broken ones or skip them; or trust them unread.
        workers: Processes that load images.
        img_size: Side of the square input, or its height and width, in pixels; the model's own if not given.
        in_chans: Image channels: 1 (grey) or 3.
        crop_pct: Share of a validation image's side that is kept; the model's own if not given.
        pretrained: Start from the published weights of the name, which may be downloaded.
        checkpoint: Start from this file of weights, the authors' or ours; its head is kept if the class count matches.
        trust: Load the folder of the model or the teacher without checking its contents.
        drop_rate: Dropout before the classifier; the model's own if not given.
        drop_path_rate: Stochastic depth; the model's own if not given.
        grad_checkpointing: Recompute activations in the backward pass, to save memory.
        channels_last: Use the channels-last memory layout, which is faster for these networks.
        epochs: Passes over the training images.
        batch_size: Images in one step of one process.
        grad_accum_steps: Steps whose gradients are summed before an update.
        opt: timm's name for the optimiser.
        lr: Highest learning rate; it is not scaled by the batch size.
        weight_decay: Weight decay, on weights but not on biases and norms.
        layer_decay: Factor of the learning rate from one layer group to the one before; none if not given.
        clip_grad: Largest norm of the gradient; no limit if not given.
        sched: timm's name for the schedule, stepped at every update; none keeps the rate after the warm-up.
        warmup_epochs: Epochs of linear warm-up; half of all epochs if there are no more than this.
        warmup_lr: Learning rate that warm-up begins with.
        min_lr: Learning rate that the schedule ends with.
        augment: Augment the training images, as set by the options that follow.
        scale: Smallest and largest share of the image's area that a random crop keeps.
        ratio: Smallest and largest aspect ratio of a random crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of colour jitter.
        auto_augment: timm's policy, such as rand-m9-mstd0.5-inc1; empty for none.
        reprob: Probability of random erasing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        smoothing: Label smoothing.
        ema: Average the weights over updates, validate and save the average.
        ema_decay: Decay of this average at each update; it warms up.
        teacher: Registered name (its pretrained weights may be downloaded) or folder of a trained model to learn from.
        distill: What the student matches: the teacher's logits, by a second classifier, or its pooled features.
        temperature: Temperature of the soft labels.
        alpha: Weight of the teacher's loss; the labels' loss has 1 - alpha.
        mixed_precision: Type of the arithmetic, as Accelerate names it.
        cpu: Stay on the CPU even if there is an accelerator.
        seed: Seed of weights, order and augmentation.
        resume: Continue the run in the output folder, with the same arguments; without a complete epoch it starts anew.
            With sched constant, multistep, none or step it may have more epochs than before.

    Returns:
        The run's folder (`output`) and its best epoch's `epoch`, `val_loss`, `val_top1` and `val_top5` (percent): the
        earliest with the highest `val_top1`. Without validation it is the last epoch, and these are None.

    Raises:
        ValueError: For arguments or data that cannot work, and for a folder that another run holds, before training; or
            for a loss, output or weight that is not finite; the folder then stays as the previous epoch left it.
        FileNotFoundError: For a path that does not exist.
        ModuleNotFoundError: Without the extra `train`.
    """
    options = plain(dict(locals()))
    with ExitStack() as held:
        return Run(options, held).train()


class Run:
    """One run, as the arguments of `train` say: its data, its network and task, its optimiser, its epochs.

    Args:
        options: The arguments, as `plain` makes them.
        held: What lets go of the run's folder.

    Attributes:
        options: The arguments.
        out: The run's folder.
        history: For each whole epoch what the table has of it.
        config: timm's data config, of the images that the network takes.
        updates: Of the weights, in an epoch.
    """

    def __init__(self, options: dict[str, Any], held: ExitStack) -> None:
        self.options = options
        self.accelerate = require("accelerate", "train")
        require("matplotlib", "train")
        check("train", options)
        check_names(options)
        self.accelerator = self._start()
        self.out = Path(options["output"] or f"runs/{timm.models.safe_model_name(options['model'])}")
        self.history: list[dict[str, float]] = []
        self.weights: list[str] = []  # sha256 of the best epoch's file and of the one before
        self.state = open_run(self.out, options, self.accelerator, held)
        self._read_data()
        self.accelerate.utils.set_seed(options["seed"])
        self._create_network()
        self._create_optimizer()
        if self.state:
            self._resume(self.state)
        if self.accelerator.is_main_process:
            for line in beginning(self, self.facts):
                tqdm.write(line)

    def _start(self) -> Any:
        """Return Accelerate's `Accelerator`."""
        library, distributed = self.accelerate, torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            # An earlier run in this process has left its settings.
            library.state.AcceleratorState._reset_state(reset_partial_state=True)
            library.state.GradientState._reset_state()
        return library.Accelerator(
            cpu=self.options["cpu"],
            mixed_precision=self.options["mixed_precision"],
            gradient_accumulation_steps=self.options["grad_accum_steps"],
            dataloader_config=library.DataLoaderConfiguration(use_seedable_sampler=True),
        )

    def _read_data(self) -> None:
        options, accelerator = self.options, self.accelerator
        named = options["dataset"]
        self.train_set, self.val_set, self.labels = named_data(options) if named else folder_data(options, accelerator)
        self.validates = bool(named) or len(self.val_set) > 0
        self.decisive = comparable(options, self.labels, (self.train_set, self.val_set), accelerator)
        if self.state:
            refuse_changes(self.state, self.decisive, (warmup_of(self.state["options"]), warmup_of(options)))
        total = len(self.train_set) if hasattr(self.train_set, "__len__") else None
        step = options["batch_size"] * accelerator.num_processes
        if total is not None and total < step:
            raise ValueError(
                f"batch_size={options['batch_size']} means {step} images a step, but there are {total} to train on"
            )

    def _create_network(self) -> None:
        """Create the network, what it is trained for told in its config, and the task around it."""
        options, labels = self.options, self.labels
        student = self.student = create_student(options, len(labels))
        wanted = {key: options[key] for key in ("img_size", "in_chans", "crop_pct")}
        self.config = data_config(student, **wanted)
        describe(student, self.config, labels)
        check_disk(self.out, student, options["ema"])
        if options["channels_last"]:
            student.to(memory_format=torch.channels_last)
        smoothing, self.mix = options["smoothing"], None
        if options["mixup"] or options["cutmix"]:
            self.mix = Mixup(options["mixup"], options["cutmix"], label_smoothing=smoothing, num_classes=len(labels))
        criterion = SoftTargetCrossEntropy() if self.mix else LabelSmoothingCrossEntropy(smoothing)
        self.task = create_task(student, criterion, labels, options)
        if options["ema"]:
            self.task.setup_ema(decay=options["ema_decay"], use_warmup=True)
        defaults = {name: one.default for name, one in inspect.signature(train).parameters.items()}
        self.facts = facts_of(self, [name for name, value in options.items() if value != defaults[name]])

    def _create_optimizer(self) -> None:
        """Create the optimiser, the loaders, and the schedule, which counts their batches."""
        options, accelerator, task = self.options, self.accelerator, self.task
        rates = {key: options[key] for key in ("opt", "lr", "weight_decay", "layer_decay")}
        optimizer = create_optimizer_v2(task.trainable_module, **rates)
        self.train_loader = make_loader(self.train_set, self.config, options, True)
        self.val_loader = make_loader(self.val_set, self.config, options, False) if self.validates else []
        if isinstance(self.train_set, IterableDataset):  # timm's streaming readers share the work out themselves
            # Not to share out, only to know which batch is the last: gradients are summed within an epoch.
            prepare = self.accelerate.data_loader.prepare_data_loader
            self.train_loader = prepare(self.train_loader, num_processes=1, process_index=0)
        else:
            self.train_loader = accelerator.prepare(self.train_loader)
            self.val_loader = accelerator.prepare(self.val_loader) if self.validates else []
        task.to(accelerator.device)
        task.trainable_module, self.optimizer = accelerator.prepare(task.trainable_module, optimizer)
        self.updates = math.ceil(len(self.train_loader) / options["grad_accum_steps"])
        kept = ("sched", "warmup_lr", "min_lr")
        # Without a schedule timm would neither warm up nor have layers learn at rates of their own.
        none = {"sched": "step", "decay_rate": 1.0} if options["sched"] == "none" else {}
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            num_epochs=options["epochs"],
            step_on_epochs=False,
            updates_per_epoch=self.updates,
            warmup_epochs=warmup_of(options),
            **{key: options[key] for key in kept} | none,
        )

    def _resume(self, state: dict[str, Any]) -> None:
        self.history, state["facts"] = state["history"], self.facts
        unwrap_model(self.task.trainable_module).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.step_update(len(self.history) * self.updates)
        if self.options["ema"]:
            self.task.trainable_module_ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            restore(self.out, self.labels, state, unwrap_model(self.task.get_eval_model(ema=self.options["ema"])))
            if state["workers"] != self.options["workers"]:
                sys.stderr.write(
                    f"resumed with workers={self.options['workers']} (was {state['workers']}): the images are "
                    "augmented in another way than those of a run that was never stopped\n"
                )
        self.weights, self.state = state["weights"], None

    def train(self) -> dict[str, Any]:
        """Train the epochs that are left, and return what `train` does."""
        for epoch in range(len(self.history), self.options["epochs"]):
            self.accelerate.utils.set_seed(self.options["seed"] + 1 + epoch, device_specific=True)
            for loader in (self.train_loader, self.train_set):
                if hasattr(loader, "set_epoch"):
                    loader.set_epoch(epoch)
            began = time.perf_counter()
            row = {"epoch": epoch + 1, **Epoch(self, epoch).train()}
            self._check_weights(epoch)
            row |= self._evaluate(epoch) if self.validates else {}
            row["seconds"] = round(time.perf_counter() - began, 2)
            self.history.append(row)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._write(row)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        best = best_of(self.history)
        return {
            "output": str(self.out),
            **{key: best.get(key) for key in ("epoch", "val_loss", "val_top1", "val_top5")},
        }

    def _check_weights(self, epoch: int) -> None:
        """Refuse weights, of the network or of the average, that an epoch's last update left other than finite."""
        task = self.task
        found = not_finite(unwrap_model(task.trainable_module))
        if self.options["ema"]:
            found += not_finite(task.trainable_module_ema)
        count = self.accelerator.reduce(torch.tensor(float(len(found)), device=self.accelerator.device))
        if count:
            names = ", ".join(found[:3])
            raise ValueError(
                f"after epoch {epoch + 1} weights are not finite ({names or 'in another process'}): lower `lr`, or set "
                "`clip_grad`"
            )

    @torch.no_grad()  # not inference_mode: older process groups write into what they gather
    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Return loss and accuracy on the validation images, of the average where there is one.

        Raises:
            ValueError: For an output or a loss that is not finite.
        """
        accelerator, task, ema = self.accelerator, self.task, self.options["ema"]
        if ema and accelerator.num_processes > 1:  # each process has averaged its own BatchNorm statistics
            for buffer in task.trainable_module_ema.buffers():
                self.accelerate.utils.broadcast(buffer)
        model = task.get_eval_model(ema=ema).eval()
        rows: list[Tensor] = []
        hide = not accelerator.is_local_main_process
        for batch in progress(self.val_loader, f"validation of epoch {epoch + 1}", "batches", hide=hide):
            images, target = self.moved(batch)
            with accelerator.autocast():
                logits = model(images).float()
            top5 = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
            loss = nn.functional.cross_entropy(logits, target, reduction="none")
            finite = torch.isfinite(logits).all(1) & torch.isfinite(loss)
            rows.append(accelerator.gather_for_metrics(torch.stack([loss, top5[:, 0], top5.any(1), finite], dim=1)))
        table = torch.cat(rows).cpu().double()
        odd = len(table) - int(table[:, 3].sum())
        if odd:
            raise ValueError(
                f"after epoch {epoch + 1} the network's outputs for {odd} of {len(table)} validation images are not "
                "finite: lower `lr`, or set `clip_grad`"
            )
        loss, top1, top5_share = table[:, :3].mean(0).tolist()
        return {"val_loss": loss, "val_top1": 100 * top1, "val_top5": 100 * top5_share}

    def moved(self, batch: Any, mix: Mixup | None = None) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device, mixed where that is asked, the images laid out as the network is."""
        images, target = (tensor.to(self.accelerator.device) for tensor in batch)
        if mix is not None:
            images, target = mix(images, target)
        if self.options["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, target

    def _write(self, row: dict[str, float]) -> None:
        """Tell of the epoch that has ended, and write what the folder has of it."""
        task, accelerator, best, ema = self.task, self.accelerator, best_of(self.history), self.options["ema"]
        tqdm.write(epoch_line(row, self.options["epochs"], best))
        snapshot = {
            "options": self.decisive,
            "workers": self.options["workers"],
            "history": self.history,
            "facts": self.facts,
            "weights": self.weights,
            "model": unwrap_model(task.trainable_module).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": task.trainable_module_ema.state_dict() if ema else None,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }
        network = unwrap_model(task.get_eval_model(ema=ema)) if best is row else None
        write_epoch(self.out, self.labels, snapshot, network)
        self.weights = snapshot["weights"]
