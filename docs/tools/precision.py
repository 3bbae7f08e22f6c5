"""Measure what a precision costs and gains in a format of `export`.

The first two write docs/formats/precision_FORMAT.json, where the extra of that format is installed; `python
docs/tools/formats.py` makes the tables and the picture of docs/export.md from these files:

    python docs/tools/precision.py speed FORMAT IMAGES            # time and size at 224 px; nothing else should run
    python docs/tools/precision.py accuracy FORMAT IMAGES RUNS    # of networks trained on Fashion-MNIST

`IMAGES` and `RUNS` are the folders that `docs/tools/fashion_mnist.py` wrote. For time, weights are seeded, and all
files of a format take turns in one process, on one thread. Accuracy is that of the first seed's run, on 2,000 of the
10,000 test images, 200 of each class, which the calibration does not see.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

from timm_mobilevit_zoo import bench, export
from timm_mobilevit_zoo.bench.machine import busy_seconds
from timm_mobilevit_zoo.bench.run import take_turns
from timm_mobilevit_zoo.common.images import data_config
from timm_mobilevit_zoo.common.machine import cpu_name
from timm_mobilevit_zoo.export import formats
from timm_mobilevit_zoo.export.checked import versions_of
from timm_mobilevit_zoo.export.compare import classes_of, deviation_of, real_images
from timm_mobilevit_zoo.export.task import some_of
from timm_mobilevit_zoo.models.loading import load, words_of
from timm_mobilevit_zoo.models.probe import seed_weights

FOLDER = Path(__file__).resolve().parents[1] / "formats"
PICTURE = FOLDER / "precisions.png"
OURS = ("cloformer_xxs", "casvit_xs", "mobilevitv3_xxs", "recnext_m0")
THEIRS = ("mobilevit_xxs", "mobilenetv4_conv_small", "repvit_m0_9")  # timm's
SIDE = 224  # pixels
CALIBRATED, TESTED = 32, 2000  # images
TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 100)  # ms, and MiB
SHAPES = {"fp32": "o", "fp16": "s", "int8": "D"}  # of markers


def _path(format: str) -> Path:
    return FOLDER / f"precision_{format}.json"


def stored(format: str) -> dict[str, Any]:
    """Return what was measured for a format: `speed` and `accuracy`, if they were."""
    path = _path(format)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _keep(format: str, part: str, rows: list[dict[str, Any]], **about: Any) -> None:
    told = {"threads": 1, "cpu": cpu_name(), "cores": os.cpu_count(), "date": date.today().isoformat(), **about}
    content = stored(format) | {part: told | {"versions": versions_of(formats.FORMATS[format]), "rows": rows}}
    _path(format).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _written(
    format: str, network: Any, path: Path, precision: str, images: Path, side: int | None = None
) -> dict[str, Any]:
    """Return a file's row, or what went wrong; the file is left at `path`."""
    about = formats.FORMATS[format]
    options: dict[str, Any] = {"calibration": str(images)} if precision == "int8" and about.calibrated else {}
    row: dict[str, Any] = {"precision": precision, "error": None}
    try:
        told = getattr(export, f"to_{format}")(network, str(path), precision=precision, size=side, **options)
    except Exception as error:  # each converter has errors of its own
        return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    row["mib"] = round(sum(file["bytes"] for file in told["files"].values()) / 2**20, 2)
    if told["checks"]:
        (found,) = told["checks"].values()
        row |= {key: float(f"{found[key]:.3g}") for key in ("rms", "top1")} | {"off": float(f"{found['error']:.3g}")}
    return row


def speed(format: str, images: Path, names: Sequence[str], rounds: int, seconds: float) -> None:
    """Write networks in all precisions of a format, let their files take turns, and keep sizes, errors and times."""
    about = formats.FORMATS[format]
    torch.set_num_threads(1)
    timed = about.run is not None and not about.stands_in
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "images")
        for path in some_of("images", str(images / "train"), CALIBRATED):
            (few / path.parent.name).mkdir(parents=True, exist_ok=True)
            (few / path.parent.name / path.name).symlink_to(path.resolve())
        for name in names:
            network = seed_weights(timm.create_model(name).eval())
            image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).numpy()
            for precision in about.precisions:
                path = Path(folder, f"{name}_{precision}{about.suffix}")
                sys.stderr.write(f"{format} {name} {precision}\n")
                rows.append({"model": name} | _written(format, network, path, precision, few, SIDE))
                if about.run and timed and not rows[-1]["error"]:
                    calls.append(partial(about.run(path, 1), image))
        with tqdm(total=rounds, unit="round", disable=None, leave=False) as bar:
            before = busy_seconds()
            times, _ = take_turns(calls, torch.device("cpu"), rounds, seconds, bar)
            spent, busy, own = (b - a for a, b in zip(before, busy_seconds(), strict=True))
    done = [row for row in rows if timed and not row["error"]]
    for row, one in zip(done, times, strict=True):
        row["round_ms"] = [float(f"{1000 * value:.5g}") for value in one]
        row["ms"] = bench.quartiles(row["round_ms"])
    for row in done:
        for key, model in (("fp32", row["model"]), (THEIRS[0], THEIRS[0])):
            base = next((one for one in done if (one["model"], one["precision"]) == (model, "fp32")), None)
            if base and base is not row:
                row[f"times as fast as {key}"] = bench.compare(base["round_ms"], row["round_ms"])
    _keep(format, "speed", rows, size=SIDE, others=round(max(0.0, busy - own) / spent, 2))


def accuracy(format: str, images: Path, runs: Path, names: Sequence[str]) -> None:
    """Write trained networks in all precisions of a format, classify test images, and keep how many are right."""
    about = formats.FORMATS[format]
    torch.set_num_threads(1)
    paths = some_of("images", str(images / "test"), TESTED)
    rows = []
    for name in names:
        network = load(str(runs / f"{name}-0"), trust=True)
        batch = torch.cat([*real_images(paths, data_config(network))])
        classes = classes_of(paths, words_of(network) or ())
        with torch.inference_mode():
            expected = torch.cat([network(part) for part in batch.split(100)])
        right = {"model": name, "eager_top1": _percent(expected, classes), "images": len(paths)}
        for precision in about.precisions:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"file{about.suffix}")
                row = right | _written(format, network, path, precision, images / "train")
                if about.run and not row["error"]:
                    run = about.run(path, 1)
                    found = torch.cat([torch.as_tensor(run(one[None].numpy())) for one in batch])
                    row["file_top1"] = _percent(found, classes)
                    row["rms"] = float(f"{(found - expected).square().mean().sqrt() / deviation_of(expected):.3g}")
            rows.append(row)
            sys.stderr.write(f"{format} {row}\n")
    kept = [row for row in stored(format).get("accuracy", {}).get("rows", []) if row["model"] not in names]
    rows = sorted([*kept, *rows], key=lambda row: ([*OURS, *THEIRS].index(row["model"]), str(row["precision"])))
    _keep(format, "accuracy", rows)


def _percent(logits: torch.Tensor, classes: torch.Tensor | None) -> float:
    if classes is None:
        raise ValueError("the folders of the test images must have the names of the run's classes")
    return round(100 * float((logits.argmax(1) == classes).float().mean()), 2)


def table(format: str) -> str:
    """Return a format's table: a line a network and precision, and in what run the numbers were measured."""
    found = stored(format)
    tops = {(row["model"], row["precision"]): row for row in found.get("accuracy", {}).get("rows", [])}
    lines = [
        "| model | precision | MiB | error | top-1 (eager) | ms | times as fast as fp32 | as `mobilevit_xxs`, fp32 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["speed"]["rows"]:
        top = tops.get((row["model"], row["precision"]), {})
        cells = [f"`{row['model']}`", row["precision"]]
        if row["error"]:
            cells += [row["error"].replace("|", "\\|"), *[""] * 5]
        else:
            measured = row["rms" if row["precision"] == "int8" else "off"] if "rms" in row else None
            cells += [f"{row['mib']:.1f}", "" if measured is None else f"{measured:.1g}"]
            cells.append(f"{top['file_top1']:.1f} ({top['eager_top1']:.1f})" if "file_top1" in top else "")
            cells.append(_spread(row.get("ms"), 1))
            cells += [_spread(row.get(f"times as fast as {key}"), 2) for key in ("fp32", THEIRS[0])]
        lines.append("| " + " | ".join(cells) + " |")
    told = found["speed"]
    versions = ", ".join(f"{key} {value}" for key, value in told["versions"].items() if not key.startswith("timm_"))
    about = f"{told['cpu']}, one thread, {told['size']} px, others kept {told['others']} cores busy; {versions}"
    return "\n".join([f"`{format}` ({about}; {told['date']}):", "", *lines])


def _spread(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
        return ""
    return f"{found['median']:.{digits}f} ({found['q1']:.{digits}f} to {found['q3']:.{digits}f})"


def summary() -> str:
    """Return how many times as fast as fp32 each network is in int8, and how much smaller, a column a format."""
    found = {format: stored(format)["speed"]["rows"] for format in formats.FORMATS if "speed" in stored(format)}
    found = {format: rows for format, rows in found.items() if any(row["precision"] == "int8" for row in rows)}
    lines = [f"| model | {' | '.join(f'`{format}`' for format in found)} |", f"|---|{'---|' * len(found)}"]
    for name in (*OURS, *THEIRS):
        cells = []
        for rows in found.values():
            own = {row["precision"]: row for row in rows if row["model"] == name}
            small, whole = own.get("int8"), own.get("fp32")
            if not small or not whole or small["error"] or whole["error"]:
                cells.append("no" if small and small["error"] else "")
                continue
            part = f"{small['mib'] / whole['mib']:.0%} of the size"
            ratio = small.get("times as fast as fp32")
            cells.append(f"{ratio['median']:.2f}, {part}" if ratio else part)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_stale() -> bool:
    """Tell whether the picture was drawn from other measurements than there are."""
    from PIL import Image

    return not PICTURE.is_file() or Image.open(PICTURE).info.get("Source") != _digest()


def draw() -> None:
    """Draw the picture, with the digest of what it is drawn from in it."""
    picture().savefig(PICTURE, dpi=110, metadata={"Source": _digest()})


def _digest() -> str:
    paths = [_path(format) for format in formats.FORMATS]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


def picture() -> Any:
    """Return a figure of file size against time, a panel a format: a line joins the precisions of a network."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = {format: stored(format) for format in formats.FORMATS}
    panels = {
        format: told
        for format, told in found.items()
        if "speed" in told and any("ms" in row for row in told["speed"]["rows"])
    }
    tops = {
        (format, row["model"], row["precision"]): row["file_top1"]
        for format, told in panels.items()
        for row in told.get("accuracy", {}).get("rows", [])
        if "file_top1" in row
    }
    colours = ScalarMappable(Normalize(min(tops.values()), max(tops.values())), "viridis")
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (format, told) in zip(axes, panels.items(), strict=False):
        ends: dict[str, tuple[float, float]] = {}
        for name in (*OURS, *THEIRS):
            rows = [row for row in told["speed"]["rows"] if row["model"] == name and "ms" in row]
            axis.plot([row["ms"]["median"] for row in rows], [row["mib"] for row in rows], color="0.75", zorder=1)
            for row in rows:
                top = tops.get((format, name, row["precision"]))
                colour = "white" if top is None else colours.to_rgba(top)
                place = dict(marker=SHAPES[row["precision"]], s=45, zorder=2, edgecolors="0.2", linewidths=0.7)
                axis.scatter(row["ms"]["median"], row["mib"], color=[colour], **place)
            if rows:
                ends[name] = (rows[0]["ms"]["median"], rows[0]["mib"])
        for name, (x, y) in ends.items():
            near = [other for other, (u, v) in ends.items() if other != name and abs(u / x - 1) < 0.15 > abs(v / y - 1)]
            side = "center" if not near else "right" if x < ends[near[0]][0] else "left"
            moved = {"center": (0, 7), "right": (-7, 0), "left": (7, 0)}[side]
            how = dict(xytext=moved, textcoords="offset points", ha=side, va="center" if near else "bottom")
            axis.annotate(name, (x, y), parse_math=False, fontsize=7.5, **how)
        axis.set(xlabel=f"ms for one image of {told['speed']['size']} px, one thread", ylabel="MiB")
        axis.set(xscale="log", yscale="log")
        axis.margins(0.18)
        for one, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            inside = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
            one.set_ticks(inside, [f"{tick:g}" for tick in inside])
            one.set_ticks([], minor=True)
        axis.set_title(format, fontsize=10)
        axis.grid(alpha=0.3)
    label = "Fashion-MNIST top-1 at 32 px (%); white: not trained"
    figure.colorbar(colours, ax=axes[: len(panels)], label=label, shrink=0.6)
    handles = [Line2D([], [], linestyle="", marker=shape, color="0.4", label=name) for name, shape in SHAPES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for part in ("speed", "accuracy"):
        one = parts.add_parser(part)
        one.add_argument("format", choices=[*formats.FORMATS])
        one.add_argument("images", type=Path)
        if part == "accuracy":
            one.add_argument("runs", type=Path)
        else:
            one.add_argument("--rounds", type=int, default=21, help="rounds, at most")
            one.add_argument("--seconds", type=float, default=120.0, help="seconds after which no round starts")
        one.add_argument("--model", nargs="+", choices=[*OURS, *THEIRS], default=[*OURS, *THEIRS])
    args = parser.parse_args()
    if args.part == "speed":
        speed(args.format, args.images, args.model, args.rounds, args.seconds)
    else:
        accuracy(args.format, args.images, args.runs, args.model)


if __name__ == "__main__":
    main()
