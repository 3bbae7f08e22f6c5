"""What can be wrong with arguments and needs no torch to be known: numbers, files, folders.

The functions of the package make these checks first, and so does the command line, before it imports the package. Each
takes a function's arguments by name, and raises `ValueError` or `FileNotFoundError`, naming argument, value and what
would be right.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .effects import check_choices, check_effects
from .licences import CARD_WORDS, check_card
from .numbers import LEAST_ROUNDS, NUMBERS, check_numbers, plain

__all__ = [
    "INDEX",
    "LEAST_ROUNDS",
    "check",
    "check_free",
    "check_port",
    "free_port",
    "is_folder",
    "need_card",
    "need_page",
    "new_folder",
    "plain",
    "weights_folder",
]

Options = Mapping[str, Any]

INDEX = Path("models", "index.json")  # what a page reads first
# What timm reads of the name of a policy; a part that it does not know it ignores, or asserts in the middle of a run.
_POLICY = re.compile(
    r"rand(-(m|n|mmax)\d\d?|-p(0|1|0?\.\d+|1\.0+)|-mstd\d{1,3}(\.\d+)?|-inc[01]|-t(weights|3aw?))*"
    r"|augmix(-m\d\d?|-[wd][1-9]\d?|-b[01]|-mstd\d{1,3}(\.\d+)?)*"
    r"|(v0r?|originalr?|3a)(-mstd\d{1,3}(\.\d+)?)?"
)


def check_free(name: str, path: Path, overwrite: bool) -> None:
    """Refuse a path that cannot be written to, or that is taken.

    Args:
        name: What the argument is called in messages.
        path: The file to write.
        overwrite: A file that exists may be replaced.

    Raises:
        FileNotFoundError: Where its folder is not there.
        ValueError: Where it is.
    """
    told = f"{name}={str(path)!r}"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{told} needs a folder that exists; {str(path.parent)!r} does not")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{told} exists; choose another" + ("" if path.is_dir() else ", or give `overwrite=True`"))


def new_folder(folder: Any, argument: str) -> Path:
    """Return the path of a folder that is to appear, which must be new or empty and not the current one."""
    if not isinstance(folder, (str, Path)) or not str(folder) or "\0" in str(folder):
        raise ValueError(f"{argument}={folder!r} must be the path of a folder, new or empty")
    target = Path(os.path.abspath(folder))
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise ValueError(f"{argument}={str(folder)!r} is not a folder; choose another")
    if target == Path.cwd():
        raise ValueError(f"{argument}={str(folder)!r} is the current folder; choose another")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{argument}={str(folder)!r} is not empty; choose another")
    return target


def is_folder(model: str) -> bool:
    """Tell whether a model is a folder with weights, and not a name.

    Raises:
        FileNotFoundError: For what looks like a folder but holds no `config.json`.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return True
    if folder.exists() or "/" in model.partition(":")[0]:
        raise FileNotFoundError(f"model={model!r} is not a folder with config.json and weights")
    return False


def weights_folder(folder: str | Path) -> None:
    """Refuse what is no folder, or lacks one of the two files that weights consist of."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            is_there = os.path.lexists(path / name)
            raise ValueError(f"{name} is not a regular file" if is_there else f"{name} is missing in {folder}")


def need_card(folder: str | Path, license: str) -> None:
    """Refuse a folder of weights without a model card where no licence is given to write one with."""
    if not license and not Path(folder, "README.md").exists():
        raise ValueError(
            f"{folder} has no README.md, its model card; `license`, as mit or apache-2.0, has one written "
            "of what the folder tells"
        )


def check_port(port: int) -> None:
    """Refuse a number that no port has."""
    check_numbers({"port": port})


def free_port(port: int) -> None:
    """Refuse a port of this machine that is taken, or that only others may use.

    Raises:
        OSError: Names it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        if os.name == "posix":  # elsewhere it would let two listen
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
            one.listen(1)
        except OSError as error:
            raise OSError(
                f"port={port} cannot be used: {error.strerror}; choose another, or 0 for a free one"
            ) from error


def need_page(folder: str) -> None:
    """Refuse a folder that holds no page."""
    if not Path(folder, INDEX).is_file():
        raise ValueError(f"folder={folder!r} is not a page that `page` wrote: {INDEX} is missing")


def _need_file(options: Options, names: Iterable[str], told: str = "is not a file") -> None:
    for name in names:
        if options[name] and not Path(options[name]).is_file():
            raise FileNotFoundError(f"{name}={options[name]!r} {told}")


def _need_images(options: Options, names: Iterable[str]) -> None:
    for name in names:
        if options[name] and not Path(options[name]).is_dir():
            raise ValueError(f"{name}={options[name]!r} must be a folder with images in it")


def _check_size(options: Options, name: str = "img_size") -> None:
    size = options[name]
    if isinstance(size, (list, tuple)) and len(size) != 2:
        raise ValueError(f"{name}={size} must {NUMBERS[name].said}")


def _train(options: Options) -> None:
    _check_size(options)
    if not options["dataset"] and not Path(options["data"]).is_dir():
        raise FileNotFoundError(f"data={options['data']!r} is not a folder")
    _need_file(options, ("checkpoint",))
    for name, limit in (("scale", " and up to 1"), ("ratio", "")):
        pair = options[name]
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or pair[0] > pair[1]:
            raise ValueError(f"{name}={pair} must be two numbers above 0{limit}, the smaller first")
    if options["auto_augment"] and not _POLICY.fullmatch(str(options["auto_augment"])):
        raise ValueError(
            f"auto_augment={options['auto_augment']!r} is not one of timm's policies; give one such as "
            "rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original-mstd0.5, v0 or 3a"
        )
    if options["sched"] == "plateau":
        raise ValueError("sched='plateau' does not step at updates; choose cosine, tanh, step, multistep, poly or none")
    if options["in_chans"] == 2:
        raise ValueError(f"in_chans=2 must {NUMBERS['in_chans'].said}")
    check_effects(options)
    if (options["mixup"] or options["cutmix"]) and options["batch_size"] % 2:
        raise ValueError(f"batch_size={options['batch_size']} must be even for `mixup` and `cutmix`")
    teacher = options["teacher"]
    if teacher and Path(teacher).is_dir() and not Path(teacher, "config.json").is_file():
        raise FileNotFoundError(f"teacher={teacher!r} is not a folder that train left: config.json is missing")


def _predict(options: Options) -> None:
    if isinstance(options["model"], str):  # from Python it is the network
        is_folder(options["model"])


def _maps(options: Options) -> None:
    model, checkpoint = options["model"], options["checkpoint"]
    _check_size(options)
    check_free("output", Path(options["output"]), options["overwrite"])
    _need_file(options, ("image", "checkpoint"))
    folder = (Path(model.removeprefix("local-dir:")) / "config.json").is_file()
    if checkpoint and (options["pretrained"] or folder):
        raise ValueError(f"checkpoint={checkpoint!r} cannot be given beside a folder's or `pretrained` weights")
    if ":" in model and not (folder or options["pretrained"]):
        raise ValueError(f"model={model!r} has weights elsewhere; `pretrained=True` gets them")
    if not folder:
        is_folder(model)


def _convert(options: Options) -> None:
    check_card({name: options[name] for name in CARD_WORDS if options[name]})
    _check_size(options)
    if not Path(options["checkpoint"]).is_file():
        raise FileNotFoundError(f"checkpoint={str(Path(options['checkpoint']))!r} is not a file")
    new_folder(options["output"], "output")


def _pull(options: Options) -> None:
    if options["output"]:
        new_folder(options["output"], "output")


def _export(options: Options) -> None:
    _check_size(options, "size")
    _need_images(options, ("images", "calibration", "int8"))
    check_free("output", Path(options["output"]), options["overwrite"])
    if isinstance(options.get("model"), str):
        is_folder(options["model"])


def _bench(options: Options) -> None:
    if not options["names"]:
        raise ValueError("`names` is empty")
    for key in ("backend", "mode", "batch_size", "img_size", "dtype", "memory_format"):
        if not options[key]:
            raise ValueError(f"`{key}` is empty")
    for size in options["img_size"]:
        _check_size({"img_size": size})
    if options["layers"] and not options["limits"]:
        raise ValueError("`layers=True` needs `limits=True`")
    if options["layers"] and "eval" not in options["mode"]:
        raise ValueError("`layers=True` needs mode=eval")
    for key in ("output", "plot"):
        if options[key]:
            check_free(key, Path(options[key]), options["overwrite"])


def _page(options: Options) -> None:
    output, models, serves = options["output"], options["models"], options.get("serve", False)
    if options.get("port") and not serves:
        raise ValueError("--port goes with --serve")
    if serves:
        free_port(options["port"])
    if serves and not models:
        need_page(output)
        return
    if not models or isinstance(models, str):
        raise ValueError(
            f"models={models!r} must be a list of models" if models else "`models` is empty; give one or more"
        )
    target = Path(output)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"output={output!r} needs a folder that exists; {str(target.parent)!r} does not")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"output={output!r} must be a new or empty folder")
    _need_images(options, ("images", "calibration"))
    for model in models:
        is_folder(model)


def _demo(options: Options) -> None:
    root = Path(options["output"])
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"output={options['output']!r} is not empty; remove what is in it, or choose another")


def _folder(options: Options) -> None:
    weights_folder(options["folder"])


def _push(options: Options) -> None:
    weights_folder(options["folder"])
    need_card(options["folder"], options["license"])
    if words := {name: options[name] for name in CARD_WORDS if options[name]}:
        if "license" not in words:
            raise ValueError(f"{next(iter(words))}={next(iter(words.values()))!r} goes with `license`")
        check_card(words)


_CHECKS: dict[str, Callable[[Options], None]] = {
    "train": _train,
    "predict": _predict,
    "maps": _maps,
    "check": _folder,
    "convert": _convert,
    "push": _push,
    "pull": _pull,
    "export": _export,
    "bench": _bench,
    "page": _page,
    "demo": _demo,
}


def check(command: str, options: Options) -> None:
    """Refuse what a command's arguments alone are wrong about.

    Args:
        command: Its name.
        options: Arguments of its function, by name.

    Raises:
        ValueError: For a value that cannot be right.
        FileNotFoundError: For a path that is not there.
    """
    check_numbers(options)
    check_choices(command, options)
    if command in _CHECKS:
        _CHECKS[command](options)
