"""Measure what a teacher is worth on scikit-learn's digits: the runs behind the page on distillation.

`python docs/tools/distill_digits.py` trains one teacher and each student three times (half an hour on one core), writes
`docs/distillation.csv`, draws `docs/img/distillation.png` and its Chinese twin, whose letters need a font (`words.py`),
and fills in the pages' tables; `--draw` does the last two with what was measured before. It needs the package with its
extra `demo`.
"""

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from words import CHINESE, ENGLISH, LANGUAGES, lettering, picture

from timm_mobilevit_zoo.demo import DIGITS, write_digits
from timm_mobilevit_zoo.train import train

DOCS = Path(__file__).resolve().parents[1]
TABLE, PICTURE = DOCS / "distillation.csv", "distillation"
PAGES = (DOCS / "learn" / "distillation.md", DOCS / "zh" / "distillation.md")
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
SEEDS = (0, 1, 2)
LABELS = "labels only"
COMMON: dict[str, Any] = DIGITS | dict(img_size=32, workers=0, warmup_epochs=1)
TEACHER: dict[str, Any] = dict(model="cloformer_xxs", epochs=15, warmup_epochs=3)
# Epochs and learning rate of the two transformers were chosen by a run without a teacher, with a seed that is not in
# the table, so that a student learns something but not everything. No other setting was chosen by a result.
STUDENTS: tuple[tuple[str, dict[str, Any], tuple[dict[str, Any], ...]], ...] = (
    (
        "ViT",
        dict(model="vit_nano_patch4_32", epochs=20, lr=3e-3, warmup_epochs=2),
        (
            {},
            {"distill": "logit", "temperature": 3.0, "alpha": 0.5},
            {"distill": "logit", "temperature": 4.0, "alpha": 0.9},
            {"distill": "feature", "alpha": 0.5},
        ),
    ),
    (
        "DeiT",
        dict(model="deit_nano_distilled_patch4_32", epochs=20, lr=3e-3, warmup_epochs=2),
        ({}, {"distill": "token", "temperature": 3.0, "alpha": 0.5}),
    ),
    (
        "CloFormer",
        dict(model="cloformer_xxs", epochs=3),
        ({}, {"distill": "logit", "temperature": 3.0, "alpha": 0.5}),
    ),
)


def measure(folder: Path) -> None:
    """Train every run below `folder` and write the table; a run is a row when it ends."""
    data = str(folder / "digits")
    write_digits(data)
    train(data, output=str(folder / "teacher"), **COMMON | TEACHER)
    fields = ["student", "model", "epochs", "distill", "temperature", "alpha", "seed", "val_top1", "val_loss"]
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()

        def record(row: dict[str, Any], run: Path) -> None:
            with (run / "summary.csv").open() as summary:
                last = list(csv.DictReader(summary))[-1]  # the last epoch, since the best would be chosen by the result
            top1, loss = f"{float(last['val_top1']):.2f}", f"{float(last['val_loss']):.4f}"
            writer.writerow(row | {"val_top1": top1, "val_loss": loss})
            file.flush()

        epochs = {"student": "teacher", "model": TEACHER["model"], "epochs": TEACHER["epochs"], "seed": 42}
        record(epochs, folder / "teacher")
        for name, student, ways in STUDENTS:
            for way in ways:
                for seed in SEEDS:
                    out = folder / f"{name}-{ways.index(way)}-{seed}"
                    teacher = {"teacher": str(folder / "teacher")} if way else {}
                    train(data, output=str(out), seed=seed, **COMMON | student | way | teacher)
                    record({"student": name, "seed": seed} | student | way, out)


def rows() -> list[dict[str, str]]:
    """Return the measured table."""
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def label(row: dict[str, str]) -> str:
    """Return the name of a row's way to learn."""
    if not row["distill"]:
        return LABELS
    heat = f", T = {float(row['temperature']):g}" if row["temperature"] else ""
    return f"{row['distill']}{heat}, alpha = {float(row['alpha']):g}"


def groups() -> dict[tuple[str, str], list[float]]:
    """Return the accuracies of the seeds by student and way to learn; the teacher's own is a student's too."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows():
        found[row["student"], label(row)].append(float(row["val_top1"]))
    return found


def table(words: dict[str, str] = ENGLISH) -> str:
    """Return the measured table in Markdown: validation top-1 in percent, each seed and the mean.

    Args:
        words: `ENGLISH`, or what another language has for them.
    """
    models = {row["student"]: row for row in rows()}
    head = [*(words[word] for word in ("student", "epochs", "learns from")), *(f"{words['seed']} {s}" for s in SEEDS)]
    lines = ["| " + " | ".join([*head, words["mean"]]) + " |", "| --- | ---: | --- |" + " ---: |" * (len(SEEDS) + 1)]
    for (student, way), found in groups().items():
        row, name = models[student], f"`{models[student]['model']}`"
        cells = [f"{top1:.2f}" for top1 in found]
        mean = f"**{sum(found) / len(found):.2f}**"
        if student == "teacher":
            name, cells, mean = f"{name}, {words['the teacher']}", [f"{found[0]:.2f} ({words['seed']} 42)", "", ""], ""
        lines.append("| " + " | ".join([name, row["epochs"], words.get(way, way), *cells, mean]) + " |")
    return "\n".join(lines)


def page(path: Path) -> str:
    """Return a page with the table filled in, in the page's language."""
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    words = CHINESE if path.parent.name == "zh" else ENGLISH
    return f"{head}{BEGIN}\n{table(words)}\n{END}{rest.partition(END)[2]}"


def draw(language: str = "en") -> Path:
    """Draw each run as a dot and the mean of the seeds as a line, one panel a student; return the file."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for (student, way), found in groups().items():
        panels[student][way] = found
    teacher = panels.pop("teacher")[LABELS][0]
    epochs = {row["student"]: row["epochs"] for row in rows()}
    path = picture(PICTURE, language)
    path.parent.mkdir(exist_ok=True)
    with lettering(language) as words:
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots(1, len(panels), width_ratios=[len(ways) for ways in panels.values()], sharey=True)
        for axis, (student, ways) in zip(axes, panels.items(), strict=True):
            for x, (way, found) in enumerate(ways.items()):
                axis.plot([x] * len(found), found, "o", color="tab:blue" if way == LABELS else "tab:orange")
                axis.hlines(sum(found) / len(found), x - 0.3, x + 0.3, color="black")
            axis.axhline(teacher, color="tab:green", linestyle="--", linewidth=1)
            names = [words.get(way, way).replace(", ", "\n") for way in ways]  # but LABELS, options as they are typed
            axis.set_xticks(range(len(ways)), names, fontsize=8)
            axis.set_xlim(-0.6, len(ways) - 0.4)
            title = words["{student} student, {epochs} epochs"]
            axis.set_title(title.format(student=student, epochs=epochs[student]), fontsize=10)
            axis.grid(alpha=0.3, axis="y")
        axes[0].set_ylabel(words["validation top-1 after the last epoch (%)"])
        caption = "three seeds each, their mean (line) and the teacher (dashed): 364 validation digits"
        figure.suptitle(words[caption], fontsize=10)
        figure.savefig(path, dpi=120)
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="draw the table that is there")
    args = parser.parse_args()
    for language in LANGUAGES:
        with lettering(language):  # or a font that is missing would be told after half an hour
            pass
    if not args.draw:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))
    drawn = [draw(language) for language in LANGUAGES]
    for path in PAGES:
        path.write_text(page(path), encoding="utf-8", newline="\n")
    sys.stdout.write(f"wrote {', '.join(map(str, drawn))} and the tables of {', '.join(map(str, PAGES))}\n")


if __name__ == "__main__":
    main()
