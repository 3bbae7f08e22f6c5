"""Train light networks on Fashion-MNIST, the runs behind the recipe on classification.

Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017; MIT licence) has 70,000 grey photographs of clothes, 28 x 28 pixels, in
ten classes. Debian packages it as `dataset-fashion-mnist`:

    apt-get install dataset-fashion-mnist
    python docs/tools/fashion_mnist.py images FOLDER            # FOLDER/train and FOLDER/test, a folder a class
    python docs/tools/fashion_mnist.py train FOLDER RUNS        # writes docs/fashion_mnist.json
    python docs/tools/fashion_mnist.py table                    # fills in the recipe's table

A run learns from 95 % of the training images and keeps the weights that did best on the other 5 %; the test images are
looked at once, when it has ended. It computes on one thread; `--jobs` runs go on at the same time.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_mobilevit_zoo.common.machine import cpu_name

DOCS = Path(__file__).resolve().parents[1]
PACKAGED = Path("/usr/share/datasets/fashion-mnist")
RESULTS, PAGE = DOCS / "fashion_mnist.json", DOCS / "recipes" / "classification.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SPLITS = {"train": "train", "test": "t10k"}
MODELS = ("cloformer_xxs", "casvit_xs", "mobilevitv3_xxs", "recnext_m0", "mobilevit_xxs")
SEEDS = (0, 1)
EPOCHS = 4
# Chosen beforehand and the same for all; nothing was tuned by a result.
OPTIONS = dict(img_size=32, batch_size=128, lr=2e-3, warmup_epochs=1, val_fraction=0.05, crop_pct=1.0)
OPTIONS |= dict(color_jitter=0.0, workers=1, on_broken="trust")
WINDOW = ("0.7", "1.0")  # --scale, of a random crop


def read_idx(path: Path) -> Any:
    """Return what a gzipped IDX file of bytes holds, as an array of the shape that it states.

    Raises:
        ValueError: For a file that is no such file, or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
        if (zero, kind) != (0, 8):
            raise ValueError("its header is another")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (EOFError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a gzipped IDX file of bytes: {error}") from error


def write_images(folder: Path, source: Path = PACKAGED) -> dict[str, int]:
    """Write the pictures as PNG, `folder/train/CLASS/00000.png` and so on, and return how many each split has.

    Args:
        folder: New or empty.
        source: Folder of the four files `train-images-idx3-ubyte.gz` and so on.

    Raises:
        FileNotFoundError: Without these files.
        FileExistsError: For a folder that holds something.
    """
    files = {
        part: [source / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        for part in SPLITS.values()
    }
    missing = [str(path) for pair in files.values() for path in pair if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: no such file; `apt-get install dataset-fashion-mnist` installs all four on "
            "Debian, and --source names another folder that has them"
        )
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} must be new or empty")
    counts = {}
    for split, part in SPLITS.items():
        images, labels = (read_idx(path) for path in files[part])
        if len(images) != len(labels) or labels.max() >= len(CLASSES):
            raise ValueError(f"{source}: the {part} images and labels do not belong together")
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / split / CLASSES[label] / f"{i:05}.png")
        counts[split] = len(images)
    return counts


def command(folder: Path, run: Path, model: str, seed: int, epochs: int) -> list[str]:
    """Return the words of a run's command."""
    words = [
        sys.executable,
        "-m",
        "timm_mobilevit_zoo",
        "train",
        str(folder / "train"),
        "--model",
        model,
        "-o",
        str(run),
    ]
    for name, value in (OPTIONS | dict(epochs=epochs, seed=seed)).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--scale", *WINDOW]


def measure(folder: Path, runs: Path, model: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train a network, unless its run has ended before, and return its row: see `RESULTS`."""
    run, alone = runs / f"{model}-{seed}", os.environ | {"OMP_NUM_THREADS": "1"}
    if not (run / "test.json").is_file():
        resumed = ["--resume"] if run.is_dir() else []
        with (runs / f"{model}-{seed}.log").open("a") as log:
            subprocess.run(
                [*command(folder, run, model, seed, epochs), *resumed], env=alone, stdout=log, stderr=log, check=True
            )
        began = time.perf_counter()
        words = [sys.executable, __file__, "test", str(folder), str(run)]
        subprocess.run(words, env=alone, check=True)
        sys.stdout.write(f"{run.name}: tested in {time.perf_counter() - began:.0f} s\n")
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    seconds = [float(line.rsplit(",", 1)[1]) for line in (run / "summary.csv").read_text().splitlines()[1:]]
    return {
        "model": model,
        "seed": seed,
        "epochs": epochs,
        "best_epoch": told["best"]["epoch"],
        "val_top1": round(told["best"]["val_top1"], 2),
        **json.loads((run / "test.json").read_text()),
        "epoch_minutes": round(min(seconds) / 60, 1),  # of the one that other processes disturbed least
    }


def test(folder: Path, run: Path) -> None:
    """Classify the test images with a run's weights, and write its `test.json`: parameters and top-1 in percent."""
    from timm_mobilevit_zoo.predict import load, predict

    network = load(str(run), trust=True)
    paths = sorted((folder / "test").rglob("*.png"))
    found = predict(network, [str(path) for path in paths], top=1, batch_size=250)
    right = [one["classes"][0]["label"] == path.parent.name for one, path in zip(found, paths, strict=True)]
    told = {"params": sum(p.numel() for p in network.parameters()), "test_top1": round(100 * statistics.mean(right), 2)}
    (run / "test.json").write_text(json.dumps(told))


def train(folder: Path, runs: Path, models: list[str], seeds: list[int], epochs: int, jobs: int) -> None:
    """Train and test, and write the rows, in the place of earlier ones of the same networks and seeds."""
    runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        wanted = [(model, seed) for seed in seeds for model in models]
        rows = list(pool.map(lambda one: measure(folder, runs, *one, epochs), wanted))
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("timm", "torch")}}
    told = {"machine": f"{cpu_name()}, {os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d"), "versions": versions}
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    kept = [row for row in earlier if (row["model"], row["seed"]) not in wanted]
    rows = sorted([*kept, *(row | told for row in rows)], key=lambda row: (MODELS.index(row["model"]), row["seed"]))
    content = {"options": OPTIONS | {"scale": [float(value) for value in WINDOW]}, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(content: dict[str, Any]) -> str:
    """Return the recipe's table in Markdown: test top-1 of each seed and the mean, and minutes an epoch."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in content["rows"]:
        grouped[row["model"]].append(row)
    seeds = sorted({row["seed"] for row in content["rows"]})
    head = ["network", "parameters", *(f"seed {seed}" for seed in seeds), "mean", "minutes an epoch"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    ordered = sorted(grouped.items(), key=lambda item: -statistics.mean(row["test_top1"] for row in item[1]))
    for model, rows in ordered:
        by_seed = {row["seed"]: f"{row['test_top1']:.2f}" for row in rows}
        mean = statistics.mean(row["test_top1"] for row in rows)
        minutes = min(row["epoch_minutes"] for row in rows)
        name = f"`{model}`" + ", timm's" * (model == "mobilevit_xxs")
        cells = [name, f"{rows[0]['params'] / 1e6:.2f} M", *(by_seed.get(seed, "") for seed in seeds)]
        lines.append("| " + " | ".join([*cells, f"**{mean:.2f}**", f"{minutes:.1f}"]) + " |")
    return "\n".join(lines)


def page(content: dict[str, Any]) -> str:
    """Return the recipe with its table filled in."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{head}{BEGIN}\n{table(content)}\n{END}{rest.partition(END)[2]}"


def main(words: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images", help="write the pictures into a folder")
    images.add_argument("folder", type=Path)
    images.add_argument("--source", type=Path, default=PACKAGED, help="folder of the four IDX files (Debian's package)")
    training = commands.add_parser("train", help="train, test, and write the results")
    for name in ("folder", "runs"):
        training.add_argument(name, type=Path)
    training.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    training.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    training.add_argument("--epochs", type=int, default=EPOCHS)
    training.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    testing = commands.add_parser("test", help="test one run")
    for name in ("folder", "run"):
        testing.add_argument(name, type=Path)
    commands.add_parser("table", help="fill in the recipe's table")
    args = parser.parse_args(words)
    if args.command == "images":
        counts = write_images(args.folder, args.source)
        sys.stdout.write(
            f"{args.folder}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images\n"
        )
    elif args.command == "train":
        train(args.folder, args.runs, args.model, args.seed, args.epochs, args.jobs)
    elif args.command == "test":
        test(args.folder, args.run)
    else:
        PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
