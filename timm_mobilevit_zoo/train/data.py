"""What `train` learns from: a folder of images, checked before anything else happens, or a data set that timm names."""

import os
import re
import sys
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.images import Pixels, Walk, is_hidden, read_image, walk
from timm_mobilevit_zoo.common.progress import progress
from timm_mobilevit_zoo_cli.text import check_labels, printable

__all__ = ["folder_data", "make_loader", "named_data"]

# What folders of splits are called, in any case, with numbers and with words as `set` beside it; the first is taken.
TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = ("val", "validation", "valid", "dev", "eval", "evaluation", "test", "testing")
_BESIDE = re.compile(r"[\W\d_]+|^(dataset|data|images)|(set|data|images|split)$")


def _splits(root: Path) -> tuple[Path | None, Path | None, list[str]]:
    """Return the folders of both splits, None for one that is not there, and the names of those beside them.

    Raises:
        ValueError: For one split without the other, and for several that may be meant.
    """
    named: dict[str, list[Path]] = {}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    for path in folders:
        word = path.name.casefold()
        while (shorter := _BESIDE.sub("", word)) not in ("", word):
            word = shorter
        named.setdefault(word, []).append(path)
    found: list[Path | None] = []
    for names in (TRAIN_FOLDERS, VAL_FOLDERS):
        several = next((named[name] for name in names if name in named), [None])
        if len(several) > 1:
            told = ", ".join(str(path and path.name) for path in several)
            raise ValueError(f"data={str(root)!r} has several folders for one split, {told}: leave one")
        found += several
    train, val = found
    if (train is None) != (val is None):
        there, need = (val, TRAIN_FOLDERS) if train is None else (train, VAL_FOLDERS)
        raise ValueError(
            f"data={str(root)!r} has one split only, {str(there and there.name)!r}; the other is looked for as "
            f"{' or '.join(need)}, names that no class can have"
        )
    return train, val, [path.name for path in folders if train and path not in found]


def _classes(folder: Path, root: Path, left_out: Counter[str]) -> dict[str, Walk]:
    """Return what lies in each class folder, by its name in Unicode's composed form, which file systems disagree about.

    Args:
        folder: That of the classes.
        root: What `train` was given.
        left_out: What is left out is added here.

    Raises:
        ValueError: Without class folders, with one that has no images, and with folders of splits instead of classes.
    """
    shown = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    paths = [path for path in shown if path.is_dir()]
    if not paths:
        raise ValueError(f"data={str(folder)!r} has no class folders: one folder a class, with its images, is needed")
    names = [unicodedata.normalize("NFC", path.name) for path in paths]
    try:
        check_labels(names)
    except ValueError as error:
        raise ValueError(f"data={str(folder)!r} has a class folder whose name cannot be a label: {error}") from None
    classes = {name: walk(path, root) for name, path in zip(names, paths, strict=True)}
    empty = {name: found.left_out for name, found in classes.items() if not found.images}
    if empty:
        told = ", ".join(name + (f" ({_counted(others)} left out)" if others else "") for name, others in empty.items())
        raise ValueError(f"data={str(folder)!r} has classes without images: {told}")
    _refuse_splits(folder, dict(zip(paths, classes.values(), strict=True)))
    left_out["beside the class folders"] += len(shown) - len(paths)
    for found in classes.values():
        left_out.update(found.left_out)
    return classes


def _refuse_splits(folder: Path, classes: dict[Path, Walk]) -> None:
    """Refuse folders that all hold folders of the same names, and their images in these: such are splits or folds."""
    inner = [[set(image.parts[len(path.parts) : -1]) for image in found.images] for path, found in classes.items()]
    counts = Counter(name for images in inner for name in set().union(*images))
    same = {name for name, count in counts.items() if count > 1 and 2 * count > len(classes)}
    if len(same) > 1 and all(2 * sum(not names.isdisjoint(same) for names in images) > len(images) for images in inner):
        folders = [path.name for path in classes]
        raise ValueError(
            f"data={str(folder)!r}: {_some(folders)} all hold the same folders, {_some(sorted(same))}, as splits and "
            "folds do, and classes do not: name two of them train and val, or keep the images of a class in one folder"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)


def folder_data(options: dict[str, Any], accelerator: Any) -> tuple[Any, Any, list[str]]:
    """Return data sets for training and validation, and the names of the classes.

    Args:
        options: The arguments of `train`.
        accelerator: Accelerate's; its main process reads the images.

    Raises:
        ValueError: For a folder that cannot be trained on; says what it lacks.
    """
    root, mode = Path(options["data"]), "L" if options["in_chans"] == 1 else "RGB"
    train_root, val_root, beside = _splits(root)
    left_out = Counter(f"folder {name!r}" for name in beside)
    walks = [_classes(train_root or root, root, left_out)]
    labels = list(walks[0])
    if len(labels) < 2:
        raise ValueError(f"data={str(root)!r} has one class, {labels[0]!r}; at least two are needed")
    if val_root is not None:
        walks.append(_classes(val_root, root, left_out))
        unknown = sorted(walks[1].keys() - walks[0].keys())
        if unknown:
            raise ValueError(f"data={str(val_root)!r} has classes that {str(train_root)!r} lacks: {', '.join(unknown)}")
    _refuse_twins([folder for folder in (train_root or root, val_root) if folder])
    main = accelerator is None or accelerator.is_main_process
    if main:
        _tell(root, left_out, sum(found.links for split in walks for found in split.values()))
    train_classes, val_classes = ({name: found.images for name, found in split.items()} for split in (*walks, {})[:2])
    if options["on_broken"] != "trust":
        everything = [path for split in (train_classes, val_classes) for paths in split.values() for path in paths]
        broken = _find_broken(everything, mode, options, accelerator)
        train_classes, val_classes = (
            {name: [path for path in paths if path not in broken] for name, paths in split.items()}
            for split in (train_classes, val_classes)
        )
    if val_root is None and options["val_fraction"]:
        val_classes, alone = _hold_out(train_classes, options)
        if alone and main:
            names = printable(_some(alone))
            sys.stderr.write(f"classes with one image keep it for training, without validation: {names}\n")
    empty = [name for name, paths in train_classes.items() if not paths]
    if empty:
        raise ValueError(f"data={str(root)!r} has classes left without an image that can be read: {', '.join(empty)}")
    if val_root and not any(val_classes.values()):
        raise ValueError(f"data={str(val_root)!r} is left without an image that can be read")
    if val_root is None and options["val_fraction"] and not any(val_classes.values()):
        raise ValueError(
            f"data={str(root)!r} has no class with two images, one of them for validation; --val-fraction 0 "
            "(val_fraction=0) trains without validation"
        )
    return _Images(train_classes, labels, mode), _Images(val_classes, labels, mode), labels


def _refuse_twins(roots: list[Path]) -> None:
    """Refuse class folders that are one folder, by a link."""
    seen: dict[str, Path] = {}
    for path in (path for root in roots for path in sorted(root.iterdir()) if not is_hidden(path.name)):
        if path.is_dir() and (twin := seen.setdefault(os.path.realpath(path), path)) is not path:
            raise ValueError(f"data: {str(twin)!r} and {str(path)!r} are one folder, by a link: an image counts once")


def _tell(root: Path, left_out: Counter[str], links: int) -> None:
    """Say what of a folder is no image, and what lies elsewhere."""
    if told := _counted(left_out):
        sys.stderr.write(printable(f"left out of {root}: {told}") + "\n")
    if links:
        sys.stderr.write(printable(f"followed out of {root}: {links} link(s)") + "\n")


def _hold_out(classes: dict[str, list[Path]], options: dict[str, Any]) -> tuple[dict[str, list[Path]], list[str]]:
    """Take a share of each class out for validation; return it, and the classes of which nothing could be taken."""
    order = torch.Generator().manual_seed(options["seed"])
    held_out = {}
    for name, paths in classes.items():
        held = min(max(1, round(len(paths) * options["val_fraction"])), len(paths) - 1)
        picks = set(torch.randperm(len(paths), generator=order)[: max(held, 0)].tolist())
        held_out[name] = [path for i, path in enumerate(paths) if i in picks]
        classes[name] = [path for i, path in enumerate(paths) if i not in picks]
    return held_out, [name for name, paths in classes.items() if paths and not held_out[name]]


class _Images(Dataset[tuple[Any, int]]):
    """Images and the positions of their classes in `labels`; timm's loader sets `transform`."""

    def __init__(self, classes: dict[str, list[Path]], labels: list[str], mode: str) -> None:
        self.samples = [(path, labels.index(name)) for name, paths in classes.items() for path in paths]
        self.mode = mode
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, target = self.samples[index]
        return self.transform(read_image(path, self.mode)), target


class _Faults(Dataset[str]):
    """For each path what is wrong with the image, or an empty string."""

    def __init__(self, paths: list[Path], mode: str) -> None:
        self.paths, self.mode = paths, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        try:
            read_image(self.paths[index], self.mode)
        except ValueError as error:
            return str(error)
        return ""


def _find_broken(paths: list[Path], mode: str, options: dict[str, Any], accelerator: Any) -> set[Path]:
    faults: list[str] = []
    if accelerator.is_main_process:
        readable = DataLoader(_Faults(paths, mode), batch_size=64, num_workers=options["workers"], collate_fn=list)
        for batch in progress(readable, "reading images", f"batches of {readable.batch_size}"):
            faults += batch
    faults = require("accelerate", "train").utils.broadcast_object_list([faults])[0]
    broken = {path: fault for path, fault in zip(paths, faults, strict=True) if fault}
    if broken and options["on_broken"] == "stop":
        listed = "\n  ".join(list(broken.values())[:20])
        raise ValueError(f"{len(broken)} image(s) are broken; repair them, or choose `on_broken='skip'`\n  {listed}")
    if accelerator.is_main_process:
        for fault in broken.values():
            sys.stderr.write(f"skipped: {printable(fault)}\n")
    return set(broken)


def named_data(options: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Return the splits of a data set that timm's `create_dataset` names, and the names of the classes.

    Args:
        options: The arguments of `train`.

    Raises:
        ValueError: For a name that timm does not know, splits of other classes, or classes that nobody counts.
    """
    mode = "L" if options["in_chans"] == 1 else "RGB"
    # The loader's transform turns images into those of as many channels as are wanted; only of arrays timm has to know.
    reading: dict[str, Any] = {"input_img_mode": mode if options["dataset"].startswith("tfds/") else ""}
    if options["dataset"].lower() in ("torch/image_folder", "torch/folder"):
        reading["loader"] = partial(read_image, mode=mode)

    def images(split: str, is_training: bool) -> Any:
        return create_dataset(
            options["dataset"],
            options["data"],
            split=split,
            is_training=is_training,
            batch_size=options["batch_size"],
            download=options["dataset_download"],
            seed=options["seed"],
            **reading,
        )

    if not options["dataset"].startswith(("torch/", "hfds/", "hfids/", "tfds/", "wds/")):
        raise ValueError(f"dataset={options['dataset']!r} must begin with torch/, hfds/, hfids/, tfds/ or wds/")
    train_set, val_set = images(options["train_split"], True), images(options["val_split"], False)
    named, val_named = _class_to_idx(train_set), _class_to_idx(val_set)
    if named and val_named and named != val_named:
        raise ValueError(
            f"val_split={options['val_split']!r} has other classes than train_split={options['train_split']!r}: "
            f"{', '.join(map(str, val_named))} and {', '.join(map(str, named))}"
        )
    labels = [str(name) for name, _ in sorted(named.items(), key=lambda entry: entry[1])]
    try:
        check_labels(labels)
    except ValueError as error:
        raise ValueError(f"dataset={options['dataset']!r} has a class whose name cannot be a label: {error}") from None
    count = options["num_classes"] or len(labels)
    if not count or count < len(labels):
        raise ValueError(f"num_classes={options['num_classes']} does not fit the {len(labels)} classes that are named")
    return train_set, val_set, labels if len(labels) == count else [str(i) for i in range(count)]


def _class_to_idx(images: Any) -> dict[Any, int]:
    return getattr(getattr(images, "reader", images), "class_to_idx", None) or {}


def make_loader(images: Any, config: dict[str, Any], options: dict[str, Any], is_training: bool) -> Any:
    """Return timm's loader with its transforms.

    Args:
        images: One of the data sets.
        config: Input size, mean, std, crop and interpolation, as `data_config` gives them.
        options: The arguments of `train`.
        is_training: Shuffle and augment.
    """
    augmentation = dict(
        no_aug=not options["augment"],
        scale=options["scale"],
        ratio=options["ratio"],
        hflip=options["hflip"],
        vflip=options["vflip"],
        color_jitter=options["color_jitter"],
        auto_augment=options["auto_augment"] or None,
        re_prob=options["reprob"],
    )
    pixels = Pixels(config, evaluating=not is_training)
    loader = create_loader(
        images,
        input_size=config["input_size"],
        batch_size=options["batch_size"],
        is_training=is_training,
        interpolation="random" if is_training and options["augment"] else config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=options["workers"],
        use_prefetcher=False,
        persistent_workers=False,  # a worker that outlived its epoch would carry its random state into the next
        **(augmentation if is_training else {}),
    )
    if is_training:
        _mend_posterize(images.transform)
    images.transform = Compose([pixels, images.transform])
    if is_training and options["auto_augment"]:
        _try_policy(images.transform, pixels.mode, options)
    return loader


def _try_policy(transform: Any, mode: str, options: dict[str, Any]) -> None:
    """Refuse a policy that fails on a picture; AugMix does on grey ones before timm 1.0.30."""
    try:
        transform(Image.linear_gradient("L").resize((64, 48)).convert(mode))
    except Exception as error:
        raise ValueError(
            f"auto_augment={options['auto_augment']!r} fails with timm {timm.__version__} and images of "
            f"{options['in_chans']} channel(s): {error}"
        ) from error


def _mend_posterize(transform: Any) -> None:
    """Have timm's policies keep no bits of a colour with every Pillow; from 13 on it refuses to."""
    for policy in transform.transforms:
        for op in getattr(policy, "ops", None) or [op for ops in getattr(policy, "policy", ()) for op in ops]:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)
