"""What `train` learns from: a folder of images, checked before anything else happens, or a data set that timm names."""

import sys
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.common.images import images_in, is_hidden, read_image
from timm_mobilevit_zoo_cli.text import printable

__all__ = ["folder_data", "make_loader", "named_data"]

TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = ("val", "validation", "valid", "test")


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class folder.

    Raises:
        ValueError: Without class folders, or with one that has no images.
    """
    classes = {path.name: images_in(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    classes = {name: paths for name, paths in classes.items() if not is_hidden(name)}
    if not classes:
        raise ValueError(f"data={str(folder)!r} has no class folders: one folder a class, with its images, is needed")
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise ValueError(f"data={str(folder)!r} has classes without images: {', '.join(empty)}")
    return classes


def folder_data(options: dict[str, Any], accelerator: Any) -> tuple[Any, Any, list[str]]:
    """Return data sets for training and validation, and the names of the classes.

    Args:
        options: The arguments of `train`.
        accelerator: Accelerate's; its main process reads the images.

    Raises:
        ValueError: For a folder that cannot be trained on; says what it lacks.
    """
    root = Path(options["data"])
    train_root = next((root / name for name in TRAIN_FOLDERS if (root / name).is_dir()), None)
    val_root = next((root / name for name in VAL_FOLDERS if (root / name).is_dir()), None)
    if (train_root is None) != (val_root is None):
        need = TRAIN_FOLDERS if train_root is None else VAL_FOLDERS
        raise ValueError(
            f"data={str(root)!r} has one split only; the other is looked for as {' or '.join(need)}, "
            "names that no class can have"
        )
    mode = "L" if options["in_chans"] == 1 else "RGB"
    train_classes = _classes(train_root or root)
    labels = list(train_classes)
    if len(labels) < 2:
        raise ValueError(f"data={str(root)!r} has one class, {labels[0]!r}; at least two are needed")
    broken: set[Path] = set()
    val_classes: dict[str, list[Path]] = {}
    if val_root is not None:
        val_classes = _classes(val_root)
        unknown = sorted(val_classes.keys() - train_classes.keys())
        if unknown:
            raise ValueError(f"data={str(val_root)!r} has classes that {str(train_root)!r} lacks: {', '.join(unknown)}")
    if options["on_broken"] != "trust":
        everything = [path for split in (train_classes, val_classes) for paths in split.values() for path in paths]
        broken = _find_broken(everything, mode, options, accelerator)
    train_classes, val_classes = (
        {name: [path for path in paths if path not in broken] for name, paths in split.items()}
        for split in (train_classes, val_classes)
    )
    if val_root is None:
        order = torch.Generator().manual_seed(options["seed"])
        for name, paths in train_classes.items():
            held = max(1, round(len(paths) * options["val_fraction"]))
            if held >= len(paths):
                raise ValueError(f"class {name!r} has {len(paths)} image(s), too few to hold some out for validation")
            picks = set(torch.randperm(len(paths), generator=order)[:held].tolist())
            val_classes[name] = [path for i, path in enumerate(paths) if i in picks]
            train_classes[name] = [path for i, path in enumerate(paths) if i not in picks]
    empty = [name for name, paths in train_classes.items() if not paths]
    if empty:
        raise ValueError(f"data={str(root)!r} has classes left without an image that can be read: {', '.join(empty)}")
    if not any(val_classes.values()):
        raise ValueError(f"data={str(val_root)!r} is left without an image that can be read")
    return _Images(train_classes, labels, mode), _Images(val_classes, labels, mode), labels


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
        for batch in tqdm(readable, desc="reading images", unit="batch", disable=None, leave=False):
            faults += batch
    faults = require("accelerate", "train").utils.broadcast_object_list([faults])[0]
    broken = {path: fault for path, fault in zip(paths, faults, strict=True) if fault}
    if broken and options["on_broken"] == "stop":
        listed = "\n  ".join(list(broken.values())[:20])
        raise ValueError(f"{len(broken)} image(s) are broken; mend them or choose on_broken=skip\n  {listed}")
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

    def images(split: str, is_training: bool) -> Any:
        return create_dataset(
            options["dataset"],
            options["data"],
            split=split,
            is_training=is_training,
            batch_size=options["batch_size"],
            download=options["dataset_download"],
            seed=options["seed"],
            input_img_mode="L" if options["in_chans"] == 1 else "RGB",
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
        config: Input size, mean, std, crop and interpolation, as timm's `resolve_data_config` gives them.
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
    return create_loader(
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
