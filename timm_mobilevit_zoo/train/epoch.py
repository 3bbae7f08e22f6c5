"""One epoch of a run."""

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timm_mobilevit_zoo.common.progress import progress

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Epoch"]


class Epoch:
    """One pass over the training images, with what is counted meanwhile.

    Args:
        run: What it is an epoch of.
        number: Which one, from 0.
    """

    def __init__(self, run: "Run", number: int) -> None:
        self.run, self.number = run, number
        self.update = number * run.updates
        self.loss_sum = torch.zeros((), device=run.accelerator.device)
        self.right = torch.zeros((), device=run.accelerator.device)
        self.odd = torch.zeros((), device=run.accelerator.device)  # outputs that are not finite
        self.seen = 0

    def train(self) -> dict[str, float]:
        """Train, and return what the table has of it.

        Raises:
            ValueError: For a loss or an output that is not finite.
        """
        run, accelerator = self.run, self.run.accelerator
        run.task.train()
        if hasattr(run.task, "teacher"):
            run.task.teacher.eval()  # timm 1.0.29's tasks would have it learn BatchNorm statistics and drop out
        began = time.perf_counter()

        def note() -> str:
            rate = self.seen * accelerator.num_processes / (time.perf_counter() - began)
            top1 = 100 * self.right / self.seen
            return f"loss {self.loss_sum / self.seen:.4f}, top-1 {top1:.1f}%, {rate:.0f} images/s"

        hide = not accelerator.is_local_main_process
        for batch in progress(run.train_loader, f"epoch {self.number + 1}", "batches", note=note, hide=hide):
            self._step(*run.moved(batch, run.mix))
        seen = torch.tensor(float(self.seen), device=self.loss_sum.device)
        counts = accelerator.reduce(torch.stack([self.loss_sum, self.right, seen, self.odd]))
        loss, top1 = (counts[:2] / counts[2]).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {self.number + 1} is {loss}: lower `lr`, or set `clip_grad`")
        if counts[3]:
            raise ValueError(
                f"the network's outputs in epoch {self.number + 1} are not all finite: lower `lr`, or set `clip_grad`"
            )
        return {
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "train_loss": loss,
            "train_top1": 100 * top1,
            "images_per_s": round(counts[2].item() / (time.perf_counter() - began), 1),
        }

    def _step(self, images: Tensor, target: Tensor) -> None:
        run, accelerator, clip_grad = self.run, self.run.accelerator, self.run.options["clip_grad"]
        with accelerator.accumulate(run.task.trainable_module):
            with accelerator.autocast():
                result = run.task(images, target)
            accelerator.backward(result["loss"])
            if clip_grad is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(run.task.trainable_module.parameters(), clip_grad)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.update += 1
            run.task.update_ema(step=self.update)
            run.scheduler.step_update(self.update)
        labels = target.argmax(1) if target.ndim > 1 else target
        self.loss_sum += result["loss"].detach() * len(images)
        self.right += (result["output"].argmax(1) == labels).sum()
        self.odd += (~torch.isfinite(result["output"])).sum()
        self.seen += len(images)
