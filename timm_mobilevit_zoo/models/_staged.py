"""The timm side of a four-stage model: everything that timm asks of it, written once.

A family builds its parts and hands them to `StagedModel.__init__`; it defines no other method. The order of the
children (stem, stage1 ... stage4, norm, global_pool, head_drop, head) is the order of execution, and each level of the
pyramid is a direct child with a plain name: timm's feature wrappers cut the network there without renaming anything, so
a classifier's state dict loads into its `features_only` form key by key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models._features import feature_take_indices  # the package's only private timm import
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ._args import STRIDES, check_args
from ._blocks import init_linear, is_exporting

__all__ = ["Stage", "StagedModel", "Stem"]


@torch.fx.wrap  # a leaf for every fx tracer, timm's and torchvision's alike: it branches on sizes
def _check_image(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    if torch.jit.is_tracing():
        return x
    if x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions; a batch of images (B, {in_chans}, H, W) has 4")
    if x.shape[1] != in_chans:
        raise ValueError(f"x has {x.shape[1]} channels; this model was built with in_chans={in_chans}")
    if x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(f"x is {x.shape[2]} x {x.shape[3]} pixels; each side needs at least {min_size}")
    if x.device.type != "cpu":
        return x
    if not torch.jit.is_scripting():  # noqa: SIM102, alone it keeps TorchScript out of what follows
        if is_exporting():
            return x
    return x.contiguous(memory_format=torch.channels_last)


class Stem(nn.Module):
    """First layers of a network, behind a check of the image. `(B, in_chans, H, W) -> (B, C, H', W')`.

    On a CPU the image is laid out in torch's `channels_last`, and so the maps behind it are: convolutions want it
    there, the depthwise ones above all, and no family was slower for it (docs/benchmarks.md). On a GPU, where neither
    wins always, and in what torch exports, the caller's layout stays.

    Args:
        layers: The layers.
        in_chans: Channels that an image must have.
        min_size: Shortest side that an image may have, in pixels.

    Raises:
        ValueError: In `forward`, for an image of another rank, of other channels or smaller than `min_size`.
    """

    def __init__(self, layers: nn.Module, in_chans: int, min_size: int = STRIDES[0]) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.min_size = min_size
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(_check_image(x, self.in_chans, self.min_size))


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    norms: list[Any] = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, seen in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)


@torch.jit.ignore
def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return checkpoint(block, x, use_reentrant=False)
    # Or else the second pass would update BatchNorm's running statistics again, as timm's `checkpoint_seq` does.
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block)))


class Stage(nn.Module):
    """One level of the pyramid: what brings the map to this resolution, then the blocks that work there.

    Args:
        downsample: Halves the map and sets its channels; `nn.Identity()` where the stem already did.
        blocks: Layers that keep the map's size. Gradient checkpointing recomputes them one by one, and BatchNorm counts
            a batch once all the same; under torch.compile, torch 2.4 counts it twice.
        norm: What the level ends with, on the way to the next; None for nothing.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm if norm is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = _checkpoint(block, x)
            return self.norm(x)
        return self.norm(self.blocks(x))


class StagedModel(nn.Module):
    """A stem, four stages at strides 4, 8, 16, 32, a norm, a pool and a linear classifier, on NCHW maps.

    Args:
        stem: Layers that take the image to the first stage's input, at stride 2 or 4.
        stages: Four `Stage`s; stage `i` returns `(B, embed_dims[i], ceil(H / s), ceil(W / s))`, where `s` is 4, 8, 16
            or 32 but at most `output_stride`.
        norm: Applied to the last stage's map only; it is not part of the feature pyramid.
        embed_dims: Channels of each stage.
        stem_dim: Channels of the stem's map where it has stride 2: it then is the pyramid's first level. 0 where the
            stem has stride 4.
        in_chans: Image channels.
        num_classes: Width of the classifier; 0 removes it.
        global_pool: timm's name of the pooling; `''` keeps the map, and the classifier works on each of its cells.
        drop_rate: Dropout before the classifier.
        num_features: Channels after `norm` where it changes them; 0 for `embed_dims[-1]`.
        head_bias: Whether the classifier has a bias.
        head_std: Standard deviation of the truncated normal distribution that a new classifier's weights are drawn
            from, its bias then 0; 0 for torch's own initial values.
        distilled: Whether there is a second classifier, for a teacher's labels; the logits are the mean of both.
        head_norm: Makes, of their number, a norm of the pooled channels in front of each classifier; None for none.
        strides: Of the stages, in image pixels.
        output_stride: Stride at which the stages stop to halve the map: 8, 16 or 32, in image pixels; None for none.

    Attributes:
        feature_info: For each level its channels (`num_chs`), stride (`reduction`) and child (`module`).
        num_features: Channels that `forward_features` returns.
        head_hidden_size: Width that the classifier sees, after pooling.
        head: The classifier, an `nn.Linear`, or `nn.Identity` for `num_classes=0`.
        head_dist: The second classifier, or None: as in timm's DeiT and LeViT, but in front of `head`, since clients
            look for a classifier in the last child.
        head_norm: What is between pool and `head`, a norm or `nn.Identity()`; `head_dist_norm` likewise.
    """

    __jit_unused_properties__ = ("set_distilled_training",)

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        *,
        embed_dims: Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        stem_dim: int = 0,
        num_features: int = 0,
        head_bias: bool = True,
        head_std: float = 0.0,
        distilled: bool = False,
        head_norm: Callable[..., nn.Module] | None = None,
        strides: Sequence[int] = STRIDES,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.head_bias = head_bias
        self.head_std = head_std
        self.new_head_norm = head_norm
        self.distilled_training = False
        self.num_features = num_features or embed_dims[-1]
        levels = [(stem_dim, 2, "stem")] if stem_dim else []
        strides = [min(stride, output_stride or stride) for stride in strides]
        levels += [
            (dim, stride, f"stage{i}") for i, (dim, stride) in enumerate(zip(embed_dims, strides, strict=True), 1)
        ]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": stride, "module": module} for dim, stride, module in levels
        ]
        self.num_levels = len(levels)

        self.stem = Stem(stem, in_chans)
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.norm = norm
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.head_dist_norm = self._head_norm() if distilled else nn.Identity()
        self.head_dist = self._classifier() if distilled else None
        self.head_norm = self._head_norm()
        self.head = self._classifier()

    def _head_norm(self, **dd: Any) -> nn.Module:
        if self.new_head_norm is None or not self.num_classes:
            return nn.Identity()
        return self.new_head_norm(self.head_hidden_size, **dd)

    def _classifier(self, **dd: Any) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        head = nn.Linear(self.head_hidden_size, self.num_classes, self.head_bias, **dd)
        if self.head_std:
            init_linear(head, self.head_std)
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `(B, num_classes)`; without classifier the features; without pooling a map of either."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last level, normalised and not pooled: `(B, num_features, ceil(H / s), ceil(W / s))`, `s` = 32.

        With another `output_stride`, `s` is that.
        """
        x = self.stem(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what `forward_features` returned; `pre_logits` stops before the classifier.

        Of two classifiers the mean; both as a tuple in training after `set_distilled_training`.
        """
        x = self.head_drop(self.global_pool(x))
        if pre_logits:
            return x
        is_map = self.global_pool.pool_type == ""
        cells = x.permute(0, 2, 3, 1).flatten(0, 2) if is_map else x
        logits = self.head(self.head_norm(cells))
        logits = logits.unflatten(0, (x.shape[0], x.shape[2], x.shape[3])).permute(0, 3, 1, 2) if is_map else logits
        if self.head_dist is None:
            return logits
        logits_dist = self.head_dist(self.head_dist_norm(cells))
        if is_map:
            logits_dist = logits_dist.unflatten(0, (x.shape[0], x.shape[2], x.shape[3])).permute(0, 3, 1, 2)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            both: Any = (logits, logits_dist)
            return both
        return (logits + logits_dist) / 2

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return levels of the pyramid, and the final map unless told otherwise.

        Args:
            x: Images, `(B, in_chans, H, W)`.
            indices: Positions in `feature_info` (negative ones count from the end), the last n, or None for all.
            norm: Normalise the last level too, as `forward_features` does.
            stop_early: Compute nothing past the last level asked for; the final map then is that level.
            output_fmt: `'NCHW'`, the only one.
            intermediates_only: Return the list of levels alone.

        Raises:
            ValueError: For another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt} must be NCHW")
        take, last = feature_take_indices(self.num_levels, indices)
        first = 5 - self.num_levels  # of the maps that is a level: 0, the stem's, or 1
        maps = self._maps(x, last + first if stop_early else 4)
        intermediates = [maps[i + first] for i in sorted(take)]
        complete = last == self.num_levels - 1
        if norm and complete:
            intermediates[-1] = self.norm(intermediates[-1])
        if intermediates_only:
            return intermediates
        return (self.norm(maps[-1]) if complete or not stop_early else maps[-1]), intermediates

    def _maps(self, x: Tensor, num_stages: int) -> list[Tensor]:
        # Written out: TorchScript cannot loop over modules that are direct children.
        maps = [self.stem(x)]
        if num_stages > 0:
            maps.append(self.stage1(maps[-1]))
        if num_stages > 1:
            maps.append(self.stage2(maps[-1]))
        if num_stages > 2:
            maps.append(self.stage3(maps[-1]))
        if num_stages > 3:
            maps.append(self.stage4(maps[-1]))
        return maps

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the levels at `indices` do not need, in place.

        Args:
            indices: As for `forward_intermediates`.
            prune_norm: Remove the final norm, even where the last level stays.
            prune_head: Remove pooling and classifier, even where the last level stays.

        Returns:
            The positions in `feature_info` that `indices` means.
        """
        take, last = feature_take_indices(self.num_levels, indices)
        cut = last < self.num_levels - 1
        for info in self.feature_info[last + 1 :]:
            setattr(self, info["module"], nn.Identity())
        if cut or prune_norm:
            self.norm = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
        if cut or prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the classifier, or both of them."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    @property
    def set_distilled_training(self) -> Callable[..., None]:
        """A function of `enable`, True unless given: return both classifiers' logits while training, not their mean.

        For timm's distillation, which asks whether a network has this: one with a single classifier does not.

        Raises:
            AttributeError: For a network that has one classifier.
        """
        if self.head_dist is None:
            raise AttributeError("no second classifier to distil into")
        return self._set_distilled_training

    @torch.jit.ignore
    def _set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place, or two, on the model's device, in its dtype and mode.

        Args:
            num_classes: Width of the classifier; 0 removes it.
            global_pool: timm's name of the pooling, `''` for none, or None to keep the present one.

        Raises:
            ValueError: For a negative `num_classes` or a pooling that does not exist.
        """
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        check_args({"num_classes": num_classes, "global_pool": pool_type})
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type)).train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        dd = get_device_dtype(self)
        if self.head_dist is not None:
            self.head_dist_norm = self._head_norm(**dd).train(self.training)
            self.head_dist = self._classifier(**dd).train(self.training)
        self.head_norm = self._head_norm(**dd).train(self.training)
        self.head = self._classifier(**dd).train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups: the stem, then stages (`coarse`) or blocks; the classifier comes last."""
        fine = [(r"^stage(\d)\.downsample", (-1,)), (r"^stage(\d)\.blocks\.(\d+)", None)]
        fine += [(r"^stage(\d)\.norm", (99999,))]
        blocks = [(r"^stage(\d)", None)] if coarse else fine
        return {"stem": r"^(?:stem|stage1\.downsample)\.", "blocks": [*blocks, (r"^norm", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that decay should spare, besides biases and norms: none."""
        return set()
