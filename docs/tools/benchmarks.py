"""Write the tables and pictures of docs/benchmarks.md from the measurements in docs/benchmarks/*.json.

`python docs/tools/benchmarks.py` writes; `--check` writes nothing and exits 1 naming what is stale. The measurements
are what `timm-mobilevit-zoo bench -o` wrote: docs/tools/benchmarks_cpu.sh and docs/tools/benchmarks_gpu.sh make them.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilevit_zoo  # noqa: F401, registers the models
from timm_mobilevit_zoo.bench import ratio_text
from timm_mobilevit_zoo.bench.layers import TITLES, layers_cells
from timm_mobilevit_zoo.bench.report import limits_text, rate_cells
from timm_mobilevit_zoo.bench.runners import Candidate, Setting

sys.path.insert(0, str(Path(__file__).parent))
from frontier import THEIRS, frontier_figure, growth_figure

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = "docs/benchmarks.md", "docs/benchmarks"
BUSY = 0.2  # cores that other processes kept busy, above which a measurement is none
MODEL, SIZES = "cloformer_xxs", (128, 224, 256, 512, 1024)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return `a` of `cost ~ (H * W) ** a`, the slope of least squares through the logarithms.

    Args:
        sizes: Sides of square images, in pixels.
        costs: What each costs.
    """
    return power([size**2 for size in sizes], costs)


def power(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return `a` of `cost ~ value ** a`."""
    return statistics.linear_regression([math.log(v) for v in values], [math.log(c) for c in costs]).slope


@cache
def attention_gmacs(size: int) -> dict[str, float]:
    """Return the 10^9 multiply-adds of one image: in all, and of the products of attention in each stage."""
    with torch.device("meta"):
        network = timm.create_model(MODEL).eval()
        image = torch.zeros(1, 3, size, size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    counts = counter.get_flop_counts()
    found = {"all": counter.get_total_flops() / 2e9}
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        products = counts[f"{type(network).__name__}.{stage}"]
        found[stage] = sum(flops for op, flops in products.items() if "bmm" in str(op)) / 2e9
    return found


def counted_table() -> str:
    """Return what CloFormer-XXS's attention costs by image size, counted, with the exponents."""
    parts = list(attention_gmacs(SIZES[0]))
    titles = ["image (px)", "GMACs", *(f"attention, stage {i}" for i in range(1, 5)), "its share"]
    rows = []
    for size in SIZES:
        found = attention_gmacs(size)
        share = sum(found[part] for part in parts[1:]) / found["all"]
        rows.append([str(size), *(f"{found[part]:.3f}" for part in parts), f"{100 * share:.0f}%"])
    doubled = [size for size in SIZES if math.log2(size).is_integer()]  # no window is cut
    fits = [exponent(doubled, [attention_gmacs(size)[part] for size in doubled]) for part in parts]
    rows.append([f"exponent, {doubled[0]} to {doubled[-1]}", *(f"{fit:.2f}" for fit in fits), ""])
    return markdown(titles, rows)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is aligned to the left."""
    align = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, align, *rows))


def caption(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Return where, when and with what rows were measured."""
    row = rows[0]
    machine, versions = row["machine"], row["versions"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"
    if machine["gpu"]:
        where = f"{machine['gpu']} (copies {machine['copy_gib_s']} GiB/s) on {where}"
    packages = ", ".join(f"{package.replace('_', '-')} {number}" for package, number in versions.items())
    counts = sorted({len(one["round_ms"]) for one in rows if not one["error"]})
    rounds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0] if counts else 'no'}"
    text = f"Measured on {row['date']} on {where}. {packages}. {rounds} rounds. [All rows](benchmarks/{name}.json)."
    others = max((one["others"] for one in rows if one.get("others") is not None), default=0)
    if others > BUSY:
        text += f" **Other processes kept {others} cores busy: these numbers are not reliable, and will be replaced.**"
    return text


def label(row: dict[str, Any]) -> str:
    """Return a candidate's name for a table."""
    return f"`{Candidate(*(row[key] for key in Candidate._fields))}`"


def folded(summary: str, text: str) -> str:
    """Return text that a reader unfolds."""
    return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{text}\n\n</details>'


def _settings(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [list(group) for _, group in groupby(rows, key=lambda row: [row[key] for key in Setting._fields])]


def _title(row: dict[str, Any], short: bool = False) -> str:
    threads = "" if row["machine"]["gpu"] else f", {row['threads']} thread{'s' * (row['threads'] > 1)}"
    what = "" if short else "Training step, " if row["mode"] == "train" else "Evaluation, "
    return f"{what}{row['img_size']} px, batch {row['batch_size']}{threads}"


def speed_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many times as fast as the first each candidate is, and below, folded, a table for each setting."""
    return f"{ratio_table(rows)}\n\n{folded_speeds(rows)}"


def folded_speeds(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for each setting, folded."""
    blocks = []
    for block in _settings(rows):
        gpu = block[0]["machine"]["gpu"]
        titles = ["", "ms", "quartiles", "images/s", "MiB", "params (M)", "GMACs", "times as fast as the first"]
        titles += ["of the memory's limit"] * bool(gpu)
        lines, reached = [_speed(row, len(titles)) for row in block], limits_text(block)
        if reached:
            titles = [*titles[:7], "GFLOP/s", "of the limit", *titles[7:]]
            lines = [[*line[:7], *rate_cells(row), *line[7:]] for line, row in zip(lines, block, strict=True)]
        told = f"\n\n{reached[0].upper()}{reached[1:]}." if reached else ""
        blocks.append(f"**{_title(block[0])}**{told}\n\n{markdown(titles, lines)}")
        blocks += [kinds_table(row) for row in block if row.get("layers")]
    return folded("Times, quartiles, memory and sizes of each setting", "\n\n".join(blocks))


def kinds_table(row: dict[str, Any]) -> str:
    """Return where a network's time goes, by kind of layer."""
    return markdown([f"{label(row)}, by kind of layer", *TITLES], layers_cells(row["layers"]))


def ratio_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line a candidate and a column a setting: how many times as fast as the first, whose time is told."""
    blocks = _settings(rows)
    found: dict[str, list[str]] = {}
    for place, block in enumerate(blocks):
        for row in block:
            cell = "error" if row["error"] else f"{row['ms']['median']:.1f} ms"
            if not row["error"] and (ratio := row["ratio"]) is not None:
                cell = f"{ratio['median']:.2f}" if ratio["shown"] else f"*{ratio['median']:.2f}*"
            found.setdefault(label(row), [""] * len(blocks))[place] = cell
    titles = ["times as fast as the first", *(_title(block[0], short=True) for block in blocks)]
    return markdown(titles, [[name, *cells] for name, cells in found.items()])


def backend_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return milliseconds by network and backend in the first setting, and below, folded, all tables."""
    first = _settings(rows)[0]
    ways = list(dict.fromkeys(row["backend"] for row in first))
    found: dict[str, dict[str, str]] = {}
    for row in first:
        cell = "error" if row["error"] else f"{row['ms']['median']:.1f}"
        found.setdefault(row["model"], {})[row["backend"]] = cell
    lines = [[f"`{name}`", *(cells.get(way, "") for way in ways)] for name, cells in found.items()]
    table = markdown([f"ms: {_title(first[0], short=True)}", *ways], lines)
    return f"{table}\n\n{speed_tables(rows).partition(chr(10) * 2)[2]}"


def summary_table(root: Path) -> str:
    """Return a line a comparison: in its first setting the fastest candidate, and how many times as fast it is."""
    lines = []
    for name, title in SUMMARY.items():
        if rows := measured(name, root):
            first, *others = _settings(rows)[0]
            best = max((row for row in others if row["ratio"]), key=lambda row: row["ratio"]["median"])
            lines.append([title, f"{best['ratio']['median']:.2f}", label(best), label(first), _title(first)])
    return markdown(["", "times as fast", "fastest", "compared with", "setting"], lines)


def _speed(row: dict[str, Any], width: int) -> list[str]:
    size = [
        "" if row.get(key) is None else format(row[key], form)
        for key, form in (("memory_mib", ".1f"), ("params_m", ".2f"), ("gmacs", ".3f"))
    ]
    if row["error"]:
        cells = [label(row), "", "", "", *size, row["error"].replace("|", "\\|")]
    else:
        ms = [f"{row['ms'][key]:.2f}" for key in ("median", "q1", "q3")]
        speed = [ms[0], f"{ms[1]} to {ms[2]}", f"{row['images_per_s']:.1f}"]
        cells = [label(row), *speed, *size, ratio_text(row["ratio"])]
    if width > len(cells):
        share = bandwidth_share(row)
        cells.append("" if share is None else f"{100 * share:.0f}%")
    return cells


def bandwidth_share(row: dict[str, Any]) -> float | None:
    """Return the time in which the memory copies what a call must move, as a part of the time that was measured."""
    speed, least = row["machine"]["copy_gib_s"], row.get("moved_mib")
    if row["error"] or not speed or not least:
        return None
    return least / 1024 / speed / (row["ms"]["median"] / 1000)


def growth_table(rows: Sequence[dict[str, Any]], key: str) -> str:
    """Return milliseconds by image size or batch, a line a candidate, with exponents.

    Args:
        rows: Measured.
        key: `img_size`, whose exponent is that of H * W, or `batch_size`.
    """
    steps = sorted({row[key] for row in rows})
    fit = exponent if key == "img_size" else power
    heads = [f"{step} px" if key == "img_size" else f"batch {step}" for step in steps]
    titles = ["", "threads", *heads, "exponent", "of the last step", *["of GMACs"] * (key == "img_size")]
    lines = []
    for _, group in groupby(sorted(rows, key=_line), key=_line):
        found = {row[key]: row for row in group}
        timed = [(step, row["ms"]["median"]) for step, row in found.items() if not row["error"]]
        timed.sort()
        cells = [f"{dict(timed)[step]:.1f}" if step in dict(timed) else "error" for step in steps]
        row = found[steps[0]]
        fits = [f"{fit(*zip(*part, strict=True)):.2f}" if len(part) > 1 else "" for part in (timed, timed[-2:])]
        macs = [(step, row["gmacs"]) for step, row in sorted(found.items()) if row.get("gmacs")]
        fits += [f"{fit(*zip(*macs, strict=True)):.2f}" if len(macs) > 1 else ""] * (key == "img_size")
        lines.append([label(row), str(row["threads"]), *cells, *fits])
    return markdown(titles, lines)


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["threads"], *(str(row[key]) for key in Candidate._fields)


# What the page has: a block a file of measurements, how it is told, and how it is drawn.
BLOCKS: dict[str, Any] = {
    "authors_xxs": speed_tables,
    "authors_s": speed_tables,
    "authors_xxs_bf16": speed_tables,
    "authors_s_bf16": speed_tables,
    "authors_xxs_train": speed_tables,
    "authors_s_train": speed_tables,
    "cpu_eval": backend_table,
    "int8": speed_tables,
    "cpu_train": speed_tables,
    "growth": lambda rows: folded("Times and exponents of each network", growth_table(rows, "img_size")),
    "batches": lambda rows: growth_table(rows, "batch_size"),
    "large": speed_tables,
    "gpu_eval": speed_tables,
    "gpu_compile_1": speed_tables,
    "gpu_compile_64": speed_tables,
    "gpu_train": speed_tables,
}
# Comparisons that the page's first table tells, each by its first setting.
SUMMARY = {
    "authors_xxs": "[CloFormer-XXS, evaluation](#cloformer-beside-its-authors-code)",
    "authors_s": "[CloFormer-S, evaluation](#cloformer-beside-its-authors-code)",
    "authors_xxs_bf16": "[CloFormer-XXS, bfloat16](#cloformer-beside-its-authors-code)",
    "authors_xxs_train": "[CloFormer-XXS, training](#cloformer-beside-its-authors-code)",
    "gpu_eval": "[on a GPU](#on-a-gpu)",
}
# Pictures, each with the files of measurements that it is drawn from.
FIGURES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "frontier": (frontier_figure, ("frontier",)),
    "growth": (growth_figure, ("growth",)),
}
FACTS = THEIRS  # what the first picture tells, and nobody here measured


def measured(name: str, root: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of measurements; none where there is no file."""
    path = root / FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def block(name: str, root: Path = ROOT) -> str:
    """Return the text of a block of the page."""
    if name == "counted":
        return counted_table()
    if name == "summary":
        return summary_table(root)
    if name == "frontier":
        rows = measured(name, root)
        picture = f"![Top-1 against time, a panel a backend](benchmarks/{name}.png)"
        return f"{picture}\n\n{caption(rows, name)}\n\n{folded_speeds(rows)}" if rows else picture
    rows = measured(name, root)
    if not rows:
        return "Not measured yet."
    picture = f"\n\n![{name}](benchmarks/{name}.png)" if name in FIGURES else ""
    return f"{caption(rows, name)}{picture}\n\n{BLOCKS[name](rows)}"


def page(root: Path = ROOT) -> str:
    """Return the page with its blocks filled in.

    Raises:
        ValueError: For a block that the page lacks.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    for name in ("summary", "frontier", "counted", *BLOCKS):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE} lacks the lines {begin} and {end}, in this order")
        text = f"{head}{begin}\n{block(name, root)}\n{end}{tail}"
    return text


def digest(name: str, root: Path) -> str:
    """Return the sha256 of the files of measurements that a picture is drawn from, which it carries."""
    paths = [root / FOLDER / f"{source}.json" for source in (*FIGURES[name][1], FACTS)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


def _runs(name: str, root: Path) -> list[list[dict[str, Any]]]:
    return [rows for source in FIGURES[name][1] if (rows := measured(source, root))]


def check(root: Path = ROOT) -> list[str]:
    """Return the paths below `root` that do not tell what was measured."""
    stale = [] if (root / PAGE).read_text(encoding="utf-8") == page(root) else [PAGE]
    for name in FIGURES:
        picture = root / FOLDER / f"{name}.png"
        if _runs(name, root):
            told = Image.open(picture).info.get("Source") if picture.is_file() else None
            stale += [] if told == digest(name, root) else [f"{FOLDER}/{picture.name}"]
    known = {*(f"{name}.json" for name in (*BLOCKS, "frontier", FACTS)), *(f"{name}.png" for name in FIGURES)}
    return stale + [f"{FOLDER}/{path.name}" for path in sorted((root / FOLDER).iterdir()) if path.name not in known]


def write(root: Path = ROOT) -> None:
    """Fill in the page and draw the pictures whose measurements are others."""
    stale = check(root)
    for name, (figure, _) in FIGURES.items():
        if f"{FOLDER}/{name}.png" in stale:
            drawn = figure(*_runs(name, root))
            drawn.savefig(root / FOLDER / f"{name}.png", dpi=120, metadata={"Source": digest(name, root)})
    (root / PAGE).write_text(page(root), encoding="utf-8", newline="\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming the stale files")
    if not parser.parse_args().check:
        write()
    elif stale := check():
        sys.exit("stale, run `python docs/tools/benchmarks.py`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
