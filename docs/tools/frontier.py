"""The pictures of docs/benchmarks.md: accuracy against time, and time against the image's size."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm

from timm_mobilevit_zoo.bench.report import claimed
from timm_mobilevit_zoo.bench.runners import Candidate

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
THEIRS = "timm_top1"  # the file of what timm's maintainers measured
MEASURE = "cloformer_xxs"  # whose time is 1
SIDE = 224  # pixels
PARTS = (0.5, 0.7, 1, 1.5, 2, 3)  # of CloFormer-XXS's time, under the picture
NEAR = 14  # points from a marker, beyond which a line leads to the name
TICKS = (0.2, 0.5, 1, 2, 5)  # ms for 1000 pixels
WAYS = {  # a panel each
    "eager": "eager mode: layers as they were trained",
    "openvino": "OpenVINO: branches folded, layers joined",
}


class Point(NamedTuple):
    """A network in the picture."""

    name: str
    time: float  # as a part of MEASURE's in the same run
    top1: float  # on ImageNet-1k, in percent
    size: int  # side of the images that the accuracy is of, in pixels
    is_claim: bool  # its authors' and not timm's measurement


def accuracy(name: str, theirs: dict[str, Any]) -> tuple[float, int, bool] | None:
    """Return a network's top-1, the side of its images and whether it is its authors' claim; None where none is known.

    Args:
        name: Registered.
        theirs: `models` of what timm's maintainers measured.
    """
    if (top1 := claimed(name)) is not None:
        cfg: Any = timm.get_pretrained_cfg(name)
        return top1, cfg.input_size[1], True
    found = theirs.get(name)
    return None if found is None else (found["top1"], found["img_size"], False)


def points(runs: Sequence[Sequence[dict[str, Any]]], way: str, theirs: dict[str, Any]) -> list[Point]:
    """Return the networks of which time and accuracy are known, each once, by its time in the first run that has it.

    Args:
        runs: Rows of `bench`, a list a run: times of different runs are compared as parts of MEASURE's in each.
        way: The backend.
        theirs: As for `accuracy`.
    """
    found: dict[str, Point] = {}
    for rows in runs:
        one = {"mode": "eval", "batch_size": 1, "threads": 1, "img_size": SIDE, "backend": way, "dtype": "fp32"}
        fit = [row for row in rows if not row["error"] and all(row[key] == value for key, value in one.items())]
        base = next((row["ms"]["median"] for row in fit if row["model"] == MEASURE), None)
        for row in fit if base else ():
            name = row["model"]
            if name not in found and timm.is_model(name) and (known := accuracy(name, theirs)):
                found[name] = Point(name, row["ms"]["median"] / base, *known)
    return sorted(found.values(), key=lambda point: (point.time, -point.top1))


def frontier(found: Sequence[Point]) -> list[Point]:
    """Return those than which none is both faster and more accurate; accuracies at other sizes are not compared."""
    best: list[Point] = []
    for point in found:
        if point.size == SIDE and (not best or point.top1 > best[-1].top1):
            best.append(point)
    return best


def frontier_figure(*runs: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of accuracy against time, a panel a backend.

    Args:
        *runs: Rows of `bench`, a list a run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    theirs = json.loads((FOLDER / f"{THEIRS}.json").read_text(encoding="utf-8"))["models"]
    panels = {way: found for way in WAYS if (found := points(runs, way, theirs))}
    figure = Figure(figsize=(9, 6.5 * len(panels)), layout="constrained")
    axes = list(figure.subplots(len(panels), squeeze=False).flat)
    for axis, (way, found) in zip(axes, panels.items(), strict=True):
        best = frontier(found)
        axis.plot([one.time for one in best], [one.top1 for one in best], color="0.6", linewidth=1, zorder=1)
        for one in found:
            shape, colour = ("o", "C0") if one.is_claim else ("s", "C1")
            fill = colour if one.size == SIDE else "white"
            axis.plot(one.time, one.top1, shape, color=colour, markerfacecolor=fill, markersize=7)
        axis.set(xlabel=f"time of one image of {SIDE} px, {MEASURE} = 1", ylabel="ImageNet-1k top-1 (%)")
        axis.set_xscale("log")
        axis.set_xticks(PARTS, [f"{part:g}" for part in PARTS])
        axis.set_xticks([], minor=True)
        axis.set_title(WAYS[way], fontsize=10)
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    marks = [("o", "C0", "C0", "ours: top-1 as the authors claim it"), ("s", "C1", "C1", "timm's: as timm measured it")]
    marks += [("o", "0.4", "white", f"hollow: top-1 at another size than {SIDE} px")]
    handles = [
        Line2D([], [], linestyle="", marker=shape, color=colour, markerfacecolor=fill, label=text)
        for shape, colour, fill, text in marks
    ]
    handles.append(Line2D([], [], color="0.6", label=f"frontier of those at {SIDE} px"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # a layout is needed to know where anything is
    figure.set_layout_engine("none")
    for axis, found in zip(axes, panels.values(), strict=True):
        _label(axis, canvas.get_renderer(), found)
    return figure


def _label(axis: Any, renderer: Any, found: Sequence[Point]) -> None:
    """Write each network's name where it covers neither another's nor a marker."""
    from matplotlib.patheffects import withStroke

    places = [axis.transData.transform((one.time, one.top1)) for one in found]
    marks = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    taken = list(marks)
    offsets = [(9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center")]
    offsets += [(9, 10, "left"), (-9, 10, "right"), (9, -10, "left"), (-9, -10, "right"), (0, 24, "center")]
    offsets += [
        (x, y * far, side)
        for far in (22, 34, 46, 58, 70)
        for x, side in ((0, "center"), (9, "left"), (-9, "right"))
        for y in (1, -1)
    ]
    frame, halo = axis.get_window_extent(renderer), [withStroke(linewidth=3, foreground="white")]
    for one in found:
        for x, y, side in offsets:
            text = axis.annotate(
                one.name + ("" if one.size == SIDE else f" ({one.size} px)"),
                (one.time, one.top1),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8.5,
                parse_math=False,
                path_effects=halo,
                arrowprops=dict(arrowstyle="-", color="0.5", linewidth=0.6) if abs(y) > NEAR else None,
            )
            box = text.get_window_extent(renderer).extents
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                break
            text.remove()
        else:
            raise ValueError(f"there is no room for the name of {one.name}")
        taken.append(tuple(box))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def growth_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of the time a pixel against image size, ours and timm's: a level line is linear growth."""
    from matplotlib.figure import Figure

    least = min(row["threads"] for row in rows)
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["threads"] == least and timm.is_model(row["model"]) and not row["error"]:  # no parts of networks
            pixels = row["img_size"] ** 2
            lines.setdefault(_name(row), []).append((row["img_size"], 1000 * row["ms"]["median"] / pixels))
    halves = [{name: line for name, line in lines.items() if _is_timms(name) == of} for of in (False, True)]
    halves = [half for half in halves if half]
    figure = Figure(figsize=(8, 4.6 * len(halves)), layout="constrained")
    sizes = sorted({row["img_size"] for row in rows})
    titles = {False: "ours", True: f"timm's, and {MEASURE} (dashed)"}
    axes = figure.subplots(len(halves), squeeze=False, sharex=True, sharey=True).flat
    for axis, half in zip(axes, halves, strict=True):
        of = _is_timms(next(iter(half)))
        for place, (name, line) in enumerate(half.items()):
            style: dict[str, Any] = dict(color=f"C{place % 10}", marker="osD^v"[place % 5], markersize=5)
            axis.loglog(*zip(*sorted(line), strict=True), label=name, **style)
        if of and MEASURE in lines:
            axis.loglog(*zip(*sorted(lines[MEASURE]), strict=True), "--", color="0.5", label=MEASURE)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        axis.set(ylabel="ms for 1000 pixels")
        axis.set_title(titles[of], fontsize=10)
        axis.grid(alpha=0.3)
        handles, names = axis.get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: -float(handles[i].get_ydata()[-1]))  # as their ends lie
        axis.legend(
            [handles[i] for i in order],
            [names[i] for i in order],
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize=9,
        )
    axis.set(xlabel="side of the image (px)")
    return figure


def _name(row: dict[str, Any]) -> str:
    return str(Candidate(*(row[key] for key in Candidate._fields))).removesuffix(" eager")


def _is_timms(name: str) -> bool:
    model = name.split()[0]
    return timm.is_model(model) and not timm.model_entrypoint(model).__module__.startswith("timm_mobilevit_zoo.")
