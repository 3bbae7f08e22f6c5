"""What `bench` measured, put into words: quartiles, ratios, a table, a picture."""

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import timm

from timm_mobilevit_zoo.common.extras import require
from timm_mobilevit_zoo.models.names import PREFIX
from timm_mobilevit_zoo.models.pins import package_configs

from .layers import aligned, layers_text
from .runners import Candidate, Setting, size_text

__all__ = ["claimed", "compare", "draw", "limits_text", "quartiles", "rate_cells", "ratio_text", "table"]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return `median`, `q1` and `q3`."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {name: float(f"{value:.6g}") for name, value in (("median", median), ("q1", q1), ("q3", q3))}


def compare(base: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    """Return how many times as fast as `base` something is: quartiles of the ratios of the rounds.

    Args:
        base: Time of each round.
        times: Time of each round of the other, of the same rounds.

    Returns:
        `median`, `q1` and `q3` of the ratios, above 1 where the other is faster; and `shown`, whether q1 to q3 leaves 1
        out: where it does not, no difference was shown.
    """
    found: dict[str, Any] = quartiles([a / b for a, b in zip(base, times, strict=True)])
    return found | {"shown": not found["q1"] <= 1 <= found["q3"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return what was measured as text, one block a setting."""
    blocks = []
    for _, group in groupby(rows, key=lambda row: [row[key] for key in Setting._fields]):
        block = list(group)
        head, machine = block[0], block[0]["machine"]
        where = machine["gpu"] if head["device"] == "cuda" else f"{machine['cpu']}, threads: {head['threads']}"
        lines = [f"{head['mode']}, {size_text(head['img_size'])} px, batch {head['batch_size']}, {where}"]
        if reached := limits_text(block):
            lines.append(reached)
        titles = ["", "ms", "quartiles", "images/s", "MiB", "params (M)", "GMACs", "GFLOP/s", "of the limit", "off by"]
        cells = [[*titles, f"times as fast as {head['against']}"], *map(_cells, block)]
        blocks.append("\n".join([*lines, *aligned(cells)]))
        for row in block:
            if found := row.get("layers"):
                blocks.append("\n".join(layers_text(_name(row), found)))
    return "\n\n".join(blocks)


def limits_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return what the CPU reached at best while rows were measured; nothing where it was not measured."""
    found = rows[0].get("limits")
    if not found:
        return ""
    parts = [
        f"{dtype} {rates['convolution']:.1f} GFLOP/s in dense convolutions, {rates['product']:.1f} in matrix products"
        for dtype, rates in found["gflop_s"].items()
    ]
    return "; ".join(["limits: " + parts[0], *parts[1:], f"memory {found['copy_gb_s'][-1][1]:.1f} GB/s"])


def rate_cells(row: dict[str, Any]) -> list[str]:
    """Return a network's GFLOP/s and its share of the limit, where these are known."""
    share = row.get("of_limit")
    return [_number(row.get("gflop_s"), ".1f"), "" if share is None else f"{100 * share:.0f}%"]


def _cells(row: dict[str, Any]) -> list[str]:
    size = [_number(row.get(key), form) for key, form in (("memory_mib", ".1f"), ("params_m", ".2f"), ("gmacs", ".3f"))]
    name = _name(row)
    if row["error"]:
        return [name, "", "", "", *size, "", "", "", f"error: {row['error']}"]
    ms = [_number(row["ms"][key], ".3f") for key in ("median", "q1", "q3")]
    speed = [ms[0], f"{ms[1]} to {ms[2]}", f"{row['images_per_s']:.1f}"]
    return [name, *speed, *size, *rate_cells(row), f"{row['deviation']:.0e}", ratio_text(row["ratio"])]


def _name(row: dict[str, Any]) -> str:
    return str(Candidate(*(row[key] for key in Candidate._fields)))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def ratio_text(ratio: dict[str, Any] | None) -> str:
    """Return what `compare` found in words: median and quartiles, and that no difference was shown where none was."""
    if ratio is None:
        return ""
    text = f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
    return text if ratio["shown"] else f"no difference shown: {text}"


def claimed(name: str) -> float | None:
    """Return the ImageNet-1k top-1 that a network's authors claim, in percent, where its hub config has one."""
    if not timm.is_model(name):
        return None
    cfg: Any = timm.get_pretrained_cfg(name)
    config = package_configs().get((cfg.architecture.removeprefix(PREFIX), cfg.tag or ""))
    published = config.content.get("published") if config else None
    return published["imagenet_1k_top1"] if published else None


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of the rows' first setting in evaluation: accuracy that the authors claim against latency."""
    eligible = [row for row in rows if row["mode"] == "eval"]
    shown = [row for row in eligible if all(row[key] == eligible[0][key] for key in Setting._fields)]
    points = [(row, claimed(row["model"])) for row in shown if not row["error"]]
    figure = require("matplotlib.figure", "viz").Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for index, way in enumerate(dict.fromkeys(_way(row) for row in shown)):
        drawn = [(row, top1) for row, top1 in points if _way(row) == way and top1 is not None]
        place = [row["ms"]["median"] for row, _ in drawn], [top1 for _, top1 in drawn]
        axis.scatter(*place, [40 * row["params_m"] for row, _ in drawn], f"C{index}", alpha=0.5, label=way)
    best = {row["model"]: (row["ms"]["median"], top1) for row, top1 in sorted(points, key=_slowest_first)}
    for name, (ms, top1) in best.items():
        if top1 is not None:  # once a name, at its fastest
            axis.annotate(name, (ms, top1), xytext=(0, 10), textcoords="offset points", fontsize=8, parse_math=False)
    head = shown[0]
    where = head["machine"]["gpu"] or f"{head['machine']['cpu']}, threads: {head['threads']}"
    axis.set_xlabel(
        f"ms a batch of {head['batch_size']} at {size_text(head['img_size'])} px, measured on {where}", parse_math=False
    )
    axis.set_ylabel("ImageNet-1k top-1 (%), the authors' claim")
    axis.set_title("a marker's area is the number of parameters", fontsize=9)
    axis.set_xlim(0, 1.25 * max((row["ms"]["median"] for row, _ in points), default=1))  # room for names
    axis.margins(0.15)
    axis.legend(markerscale=0.5, fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def _slowest_first(point: tuple[dict[str, Any], float | None]) -> float:
    return -point[0]["ms"]["median"]


def _way(row: dict[str, Any]) -> str:
    return str(Candidate("", *(row[key] for key in Candidate._fields[1:]))).strip()
