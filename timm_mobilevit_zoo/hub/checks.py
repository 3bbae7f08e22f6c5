"""What a folder with weights must be before memory is spent on it, and what its tensors must be after.

A folder comes from a stranger: each function here trusts nothing that an earlier one has not seen. All of them raise
`Refused`, which names the file, the entry and what would be right.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_mobilevit_zoo.models.checkpoints import MAX_CHANNELS, MAX_CLASSES
from timm_mobilevit_zoo.models.loading import label_list
from timm_mobilevit_zoo.models.names import our_models, own_name
from timm_mobilevit_zoo.models.pins import CONFIG
from timm_mobilevit_zoo.models.probe import COUNT, PROBE_GMACS, PROBE_SIDE, SEED, affordable, matches, probe
from timm_mobilevit_zoo.models.saving import MODEL_ARGS, RATES
from timm_mobilevit_zoo_cli.checks import weights_folder
from timm_mobilevit_zoo_cli.text import check_labels, printable

__all__ = [
    "ASIDE",
    "Refused",
    "build_meta",
    "check_config",
    "check_files",
    "check_probe",
    "check_probe_form",
    "check_values",
    "hub_probe",
    "need",
]

ASIDE = "checkpoints"  # the folder in a run's, of which nothing is loaded and nothing pushed
MAX_DEPTH = 32  # of folders in each other
MAX_SIDE = 4096  # pixels
MAX_PARAMS = 200_000_000  # ten times the largest network here
MAX_LOGIT = 3e38  # about float32's
PICKLES = (".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")

ENTRIES = {
    "architecture",
    "num_classes",
    "num_features",
    "global_pool",
    "label_names",
    "label_descriptions",
    "model_args",
    "pretrained_cfg",
    "probe",
}
SWITCHES = {"dynamic_img_size", "strict_img_size"}  # of timm's networks
SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"}  # would have timm fetch other weights
INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "random")


class Refused(ValueError):  # noqa: N818, it says what happened
    """A folder, a file or an entry in it is not what a set of weights must be."""

    def __init__(self, message: str) -> None:  # it quotes a stranger
        super().__init__(printable(message))


def need(holds: bool, message: str) -> None:
    """Refuse what does not hold."""
    if not holds:
        raise Refused(message)


def check_files(folder: Path) -> None:
    """Refuse a folder without its two files, with links out of it, or with pickles beside them.

    What a run of `train` resumes from lies in `checkpoints`, a folder that is left aside.
    """
    try:
        weights_folder(folder)
    except ValueError as error:
        raise Refused(str(error)) from None
    root, left = folder.resolve(), [(folder, 0)]
    while left:  # not `rglob`, which calls itself for each folder in a folder
        inner, depth = left.pop()
        need(depth <= MAX_DEPTH, f"{inner.name[:80]} lies in more than {MAX_DEPTH} folders")
        with os.scandir(inner) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = inner / entry.name
                _check_file(path, root, path.relative_to(folder))
                if entry.is_dir(follow_symlinks=False) and path != folder / ASIDE:
                    left.append((path, depth + 1))


def _check_file(path: Path, root: Path, where: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    need(inside, f"{where} is a link that leads out of the folder (of the Hub's cache, `pull -o` makes a copy)")
    fits = path.suffix.lower() not in PICKLES + ARCHIVES
    older = f"; what a run resumes from belongs in {ASIDE}/, which is left aside" * (path.name == "last.ckpt")
    need(fits, f"{path.name} is a pickle or an archive; weights are safetensors only{older}")


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _list(value: Any, lengths: Collection[int], fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(fits, value))


def _no_constant(name: str) -> Any:
    raise Refused(f"{CONFIG}: {name} is not a number in JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twins = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    need(not twins, f"{CONFIG}: {', '.join(twins)[:200]} given twice")
    return dict(pairs)


def check_config(data: bytes, architectures: Collection[str]) -> dict[str, Any]:
    """Return a folder's config, every entry of which is known and within limits.

    Its `architecture` is then the name under which this package, or else timm, has the network here, and its label
    names are a list, whatever form they had.

    Args:
        data: What `read_config` returned.
        architectures: Names that it may have.
    """
    try:
        config = json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers of thousands of digits
        raise Refused(f"{CONFIG} is not JSON: {type(error).__name__}: {str(error)[:200]}") from None
    try:
        return _check_entries(config, architectures)
    except RecursionError:  # what could be parsed may still be too deep to be shown
        raise Refused(f"{CONFIG} has lists in more lists than can be looked at") from None


def _check_entries(config: Any, architectures: Collection[str]) -> dict[str, Any]:
    need(isinstance(config, dict), f"{CONFIG} is not an object")
    unknown = sorted(config.keys() - ENTRIES)
    need(not unknown, f"{CONFIG}: unknown entries {', '.join(unknown)[:200]}")

    name = config.get("architecture")
    if isinstance(name, str) and own_name(name) in architectures:  # the package's before timm's of the same name
        config["architecture"] = name = own_name(name)
    need(
        isinstance(name, str) and name in architectures, f"architecture={str(name)[:80]!r} is not one of this package's"
    )
    classes = config.get("num_classes")
    need(_whole(classes, 0, MAX_CLASSES), f"num_classes={str(classes)[:80]} must be a whole number up to {MAX_CLASSES}")
    args, cfg = config.get("model_args", {}), config.get("pretrained_cfg")
    need(isinstance(args, dict), "model_args is not an object")
    need(isinstance(cfg, dict), "pretrained_cfg is missing or no object")
    ours = name in our_models()
    _check_model_args(args, classes, MODEL_ARGS | RATES | (set() if ours else SWITCHES))
    size = cfg.get("input_size")
    told = size[0] if isinstance(size, list) and size else 3
    _check_pretrained_cfg(cfg, classes, args.get("in_chans", told))
    _check_layers(cfg, name, ours)
    _check_texts(cfg)
    _check_labels(config, classes)
    _check_labels(cfg, classes)  # timm takes them from here, too
    if "probe" in config:
        check_probe_form(config["probe"])
    return config


def _check_model_args(args: Mapping[str, Any], classes: int, known: Collection[str]) -> None:
    unknown = sorted(args.keys() - known)
    need(not unknown, f"model_args: {', '.join(unknown)[:200]} cannot be set; only {', '.join(sorted(known))} can")
    for name in sorted(args.keys() & RATES):
        need(_number(args[name], 0, 1), f"model_args.{name}={str(args[name])[:80]} must be 0 to 1")
    for name in sorted(args.keys() & SWITCHES):
        need(isinstance(args[name], bool), f"model_args.{name}={str(args[name])[:80]} must be true or false")
    own = args.get("num_classes", classes)
    need(own == classes, f"model_args.num_classes={own} is not num_classes={classes}: timm would drop the head")
    chans = args.get("in_chans", 3)
    need(_whole(chans, 1, MAX_CHANNELS), f"model_args.in_chans={str(chans)[:80]} must be 1 to {MAX_CHANNELS}")
    pool = args.get("global_pool", "avg")
    need(isinstance(pool, str) and len(pool) <= 20 and pool.isascii(), f"model_args.global_pool={str(pool)[:80]!r}")
    size = args.get("img_size", 1)
    fits = _whole(size, 1, MAX_SIDE) or _list(size, (2,), lambda side: _whole(side, 1, MAX_SIDE))
    need(fits, f"model_args.img_size={str(size)[:80]} must be one or two sides of 1 to {MAX_SIDE} pixels")


def _check_pretrained_cfg(cfg: Mapping[str, Any], classes: int, chans: Any) -> None:
    known = {field.name for field in dataclasses.fields(timm.models.PretrainedCfg)}
    for name in sorted(cfg.keys() & SOURCES):
        raise Refused(f"pretrained_cfg.{name} names other weights")
    unknown = sorted(cfg.keys() - known)
    need(not unknown, f"pretrained_cfg: unknown entries {', '.join(unknown)[:200]}")
    need(not cfg.get("custom_load"), f"pretrained_cfg.custom_load={str(cfg.get('custom_load'))[:80]} must be false")
    own = cfg.get("num_classes", classes)  # timm goes by the config's own, and its older exports leave another here
    need(_whole(own, 0, MAX_CLASSES), f"pretrained_cfg.num_classes={str(own)[:80]} must be a whole number")
    for name in ("input_size", "test_input_size", "min_input_size"):
        size = cfg.get(name)
        fits = size is None or _list(size, (3,), lambda side: _whole(side, 1, MAX_SIDE))
        need(fits, f"pretrained_cfg.{name}={str(size)[:80]} must be channels, height and width of 1 to {MAX_SIDE}")
        need(size is None or size[0] == chans, f"pretrained_cfg.{name} has {size and size[0]} channels, not {chans}")
    for name, least, most in (("mean", -255.0, 255.0), ("std", 1e-6, 255.0)):
        value = cfg.get(name)
        numbers = isinstance(value, list) and all(_number(entry, least, most) for entry in value)
        fits = value is None or (numbers and len(value) in (1, chans))
        need(fits, f"pretrained_cfg.{name}={str(value)[:80]} must be numbers of {least:g} to {most:g}, one a channel")
    for name in ("crop_pct", "test_crop_pct"):
        fits = cfg.get(name) is None or _number(cfg[name], 0.01, 2)
        need(fits, f"pretrained_cfg.{name}={str(cfg.get(name))[:80]} must be 0.01 to 2")
    for name, choices in (("interpolation", INTERPOLATIONS), ("crop_mode", ("border", "center", "squash"))):
        fits = cfg.get(name) is None or cfg[name] in choices
        need(fits, f"pretrained_cfg.{name}={str(cfg.get(name))[:80]!r} is not one of {', '.join(choices)}")


def _check_texts(cfg: Mapping[str, Any]) -> None:
    for name in ("architecture", "description", "license", "notes", "origin_url", "paper_ids", "paper_name", "tag"):
        value = cfg.get(name)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        fits = len(texts) <= 100 and all(
            isinstance(text, str) and len(text) <= 3000 and text.replace("\n", " ").isprintable() for text in texts
        )
        need(fits, f"pretrained_cfg.{name}={str(value)[:80]!r} must be printable text, or a list of it")


def _check_layers(cfg: Mapping[str, Any], name: str, ours: bool) -> None:
    """Refuse other layers than the network has where timm adapts weights to other classes or channels."""
    known: Any = timm.get_pretrained_cfg(name)
    for entry in ("classifier", "first_conv"):
        value = cfg.get(entry)
        named = [value] if isinstance(value, str) else value or []
        fits = isinstance(named, list) and len(named) <= 4 and all(isinstance(one, str) for one in named)
        need(ours or fits, f"pretrained_cfg.{entry}={str(value)[:80]!r} must name layers")
        right = getattr(known, entry) if ours else value  # which layers timm means differs by its version
        right = list(right) if isinstance(right, tuple) else right  # as JSON has it
        need(value in (None, right), f"pretrained_cfg.{entry}={str(value)[:80]!r} must be {right!r}")
    offset, fixed = cfg.get("label_offset"), cfg.get("fixed_input_size")
    need(offset in (None, 0), f"pretrained_cfg.label_offset={str(offset)[:80]!r} must be 0")
    need(fixed in (None, False, True), f"pretrained_cfg.fixed_input_size={str(fixed)[:80]!r} must be true or false")
    need(cfg.get("input_size", known) is not None, "pretrained_cfg.input_size is null")


def _check_labels(config: dict[str, Any], classes: int) -> None:
    if config.get("label_names") is not None:
        try:
            config["label_names"] = names = label_list(config["label_names"], classes)
            check_labels(names)
        except ValueError as error:
            raise Refused(str(error)) from None
    described = config.get("label_descriptions")
    if described is not None:
        need(isinstance(described, dict), "label_descriptions is not an object")
        fits = all(isinstance(text, str) and len(text) <= 3000 for text in described.values())
        need(fits, "label_descriptions must be strings of up to 3000 characters")


def check_probe_form(found: Any) -> None:
    """Refuse a `probe` that is not the seed and the logits of `models.probe.probe`."""
    need(isinstance(found, dict) and found.keys() == {"seed", "logits"}, "probe must have seed and logits, only these")
    seed, logits = found["seed"], found["logits"]
    need(_whole(seed, SEED, SEED), f"probe.seed={str(seed)[:80]} must be {SEED}, the only one whose image is known")
    fits = _list(logits, range(1, COUNT + 1), lambda value: _number(value, -MAX_LOGIT, MAX_LOGIT))
    need(fits, f"probe.logits={str(logits)[:200]} must be 1 to {COUNT} finite numbers")


def hub_probe(content: Mapping[str, Any], weights: str, where: str) -> list[float]:
    """Return the logits that a hub config tells of the seeded image.

    Args:
        content: What the file holds.
        weights: Those that the logits must be of: `published`, or `seeded by name`.
        where: What the file is called in messages.

    Raises:
        ValueError: Where it tells none, or those of other weights.
    """
    found: Any = content.get("probe")
    told = found.get("weights") if isinstance(found, dict) else None
    if told != weights:
        raise ValueError(f"{where}: probe.weights={told!r} must be {weights!r}, as are the weights that hub names")
    try:
        check_probe_form({key: value for key, value in found.items() if key != "weights"})
    except Refused as error:
        raise ValueError(f"{where}: {error}") from None
    return found["logits"]


def build_meta(config: Mapping[str, Any]) -> nn.Module:
    """Return the network that a checked config means, without memory for its tensors."""
    return _build(config, "meta")


def _build(config: Mapping[str, Any], device: str) -> nn.Module:
    args = {"num_classes": config["num_classes"], **config.get("model_args", {})}
    if size := config["pretrained_cfg"].get("input_size"):  # timm before 1.0.31 writes no arguments, and goes by this
        args.setdefault("in_chans", size[0])
        known: Any = timm.get_pretrained_cfg(config["architecture"])
        if known is not None and known.fixed_input_size:
            args.setdefault("img_size", tuple(size[1:]))
    try:
        with torch.device(device):
            model: nn.Module = timm.create_model(config["architecture"], **args)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"{config['architecture']} cannot be built with {args}: {str(error)[:300]}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    ours = config["architecture"] in our_models()  # those of timm may be larger; their file has to be as large
    need(count <= MAX_PARAMS or not ours, f"the config means {count:,} parameters; at most {MAX_PARAMS:,} are allowed")
    return model


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN, infinities and negative variances."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            need(bool(torch.isfinite(tensor).all()), f"{name} holds NaN or infinite values")
        if name.endswith("running_var"):
            need(bool((tensor >= 0).all()), f"{name} holds negative variances")
        if name.endswith("num_batches_tracked"):
            need(bool((tensor >= 0).all()), f"{name} is negative")


def check_probe(
    config: Mapping[str, Any], meta: nn.Module, tensors: Mapping[str, Tensor], expected: Sequence[float], told: str
) -> None:
    """Refuse weights that do not give the logits which they are said to give.

    What the forward pass would cost is counted first, without memory. The caller's random numbers stay as they are.

    Args:
        config: It passed `check_config`.
        meta: What `build_meta` returned for it.
        tensors: They passed `check_header` and `check_values`.
        expected: Logits of the seeded image.
        told: Where they were told, for the message.
    """
    size = config["pretrained_cfg"].get("input_size")
    need(size is not None, "probe needs pretrained_cfg.input_size")
    try:
        limits = f"up to {PROBE_SIDE} pixels a side and {PROBE_GMACS:g} GMACs"
        need(affordable(meta, size), f"probe is for images {limits}, not at input_size={size}")
        with torch.random.fork_rng(devices=[]):
            model = _build(config, "cpu")
        model.load_state_dict(tensors)
        found = probe(model, size)
    except Refused:
        raise
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"probe cannot be computed at input_size={size}: {str(error)[:300]}") from None
    need(matches(found, expected), f"probe: the weights give {found}, {told} has {list(expected)}")
