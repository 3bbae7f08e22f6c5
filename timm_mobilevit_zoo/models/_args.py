"""Arguments of networks: refused before any layer is built, by name, value and what would fit."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["STRIDES", "check_args", "check_levels", "check_sizes", "dilations", "drop_size_args"]

STRIDES = (4, 8, 16, 32)  # image pixels per map cell at the end of stages 1 to 4
OUTPUT_STRIDES = STRIDES[1:]
POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")


def check_args(args: Mapping[str, Any], levels: Sequence[str] = (), *, last_three: Sequence[str] = ()) -> None:
    """Raise `ValueError` for a network that cannot be built, before any layer is.

    Args:
        args: A constructor's arguments, its `locals()`. Of those here `in_chans` must be at least 1, `num_classes` at
            least 0, `global_pool` one of timm's names, `output_stride` 8, 16, 32 or None; a `..._rate` lies in [0, 1).
        levels: Names of those that have one entry a stage; an entry that is no tuple is a whole number from 1.
        last_three: Names of those that have one for each of the last three stages.

    Raises:
        ValueError: Names the argument, its value and what would fit.
    """
    for name, least in (("in_chans", 1), ("num_classes", 0)):
        if name in args and not (isinstance(args[name], int) and args[name] >= least):
            raise ValueError(f"{name}={args[name]} must be at least {least}, a whole number")
    if "global_pool" in args and args["global_pool"] not in POOLS:
        raise ValueError(f"global_pool={args['global_pool']!r} is not one of {', '.join(map(repr, POOLS))}")
    if args.get("output_stride") not in (None, *OUTPUT_STRIDES):
        raise ValueError(f"output_stride={args['output_stride']} must be one of {', '.join(map(str, OUTPUT_STRIDES))}")
    for name in args:
        if name.endswith("_rate") and not 0 <= args[name] < 1:
            raise ValueError(f"{name}={args[name]} must be at least 0 and below 1")
    for name in (*levels, *last_three):
        value = args[name]
        count, which = (4, "one a stage") if name in levels else (3, "one for each of the last three stages")
        if not isinstance(value, (tuple, list)) or len(value) != count:
            raise ValueError(f"{name}={value} needs {count} entries, {which}")
        for entry in value:
            if not (isinstance(entry, (tuple, list)) or (isinstance(entry, int) and entry >= 1)):
                raise ValueError(f"{name}={value} needs whole numbers from 1 in each stage")


def check_levels(variant: str, count: int, features: Mapping[str, Any]) -> None:
    """Raise `ValueError` for levels that a backbone does not have, where timm only fails at some index.

    Args:
        variant: Registered name.
        count: Levels that the network has.
        features: Arguments of the build. Of those here, `out_indices` are positions, negative ones from the end, or
            the number of the last levels.

    Raises:
        ValueError: Names the argument, its value and what would fit.
    """
    indices = features.get("out_indices", count)
    wanted = range(-indices, 0) if isinstance(indices, int) else indices
    if not wanted or not all(-count <= index < count for index in wanted):
        raise ValueError(
            f"out_indices={indices}: {variant} has {count} levels; choose from 0 to {count - 1}, or a number from 1 to "
            f"{count} for the last ones"
        )


def check_sizes(args: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise `ValueError`, naming argument and value, for one of `names` that is no whole number from 1."""
    for name in names:
        if not isinstance(args[name], int) or isinstance(args[name], bool) or args[name] < 1:
            raise ValueError(f"{name}={args[name]} must be a whole number from 1")


def drop_size_args(args: dict[str, Any]) -> None:
    """Remove, in place, what timm's transformers are told of the images' size, where a network takes any size.

    Clients tell it to every name that has `vit` in it.

    Raises:
        ValueError: For an `img_size` that is no size.
    """
    size = args.pop("img_size", 1)
    sides = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size,)
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"img_size={size} must be a side in pixels, a whole number from 1, or two of them")
    for name in ("dynamic_img_size", "dynamic_img_pad", "strict_img_size"):
        args.pop(name, None)


def dilations(output_stride: int | None, strides: Sequence[int] = STRIDES) -> list[tuple[int, int, int]]:
    """Return what keeps a network's maps at `output_stride` with the weights of one that halves them further.

    Where a stage no longer halves the map, its cells lie closer, so what looks at neighbours must look further.

    Args:
        output_stride: In image pixels; None for what the network has.
        strides: Of the network's stages, in image pixels.

    Returns:
        For each stage the stride and the dilation of the layer that opens it, and the dilation of its other layers.
    """
    wide = [max(1, stride // (output_stride or stride)) for stride in strides]
    return [(2 if now == before else 1, before, now) for before, now in zip([1, *wide[:-1]], wide, strict=True)]
