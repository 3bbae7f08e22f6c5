"""Time what `export` writes for a runtime, with and without its rewriting, beside eager mode, and keep the numbers.

`python docs/tools/latency.py FORMAT`, where the extra of that format is installed and nothing else runs, writes
docs/formats/latency_FORMAT.json; `python docs/tools/formats.py` makes the table of them. All candidates take turns in
one process, on one thread, as in `bench`; what a runtime computes wrongly, or not at all, is not timed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from tqdm import tqdm

from timm_mobilevit_zoo import bench
from timm_mobilevit_zoo.bench.machine import busy_seconds
from timm_mobilevit_zoo.bench.run import take_turns
from timm_mobilevit_zoo.common.machine import cpu_name
from timm_mobilevit_zoo.export import formats
from timm_mobilevit_zoo.export.checked import versions_of
from timm_mobilevit_zoo.export.task import TOLERANCES
from timm_mobilevit_zoo.models.probe import seed_weights

NAMES = ("cloformer_xxs", "mobilevit_xxs")
SIDE = 224  # pixels
PLAIN: dict[str, Callable[..., Any]] = {
    "simplified": lambda network: network,
    "transposeless": lambda network: network,
    "split": lambda network: network,
    "plain": lambda network, x: network,
    "PooledSlices": nullcontext,
}


def measure(format: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return what was measured for a format."""
    about, x = formats.FORMATS[format], torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            network = seed_weights(timm.create_model(name).eval())
            eager = _eager(network, x)
            for way in ("eager", "as it is", "rewritten"):
                row: dict[str, Any] = {"model": name, "way": way, "error": None}
                rows.append(row)
                try:
                    call = eager
                    if way != "eager":
                        call = _file(about, network, x, Path(folder, f"{name}_{len(rows)}{about.suffix}"), way)
                        off = (torch.as_tensor(call()) - eager()).abs().max() / eager().std()
                        if not off <= TOLERANCES["fp32"]:
                            raise ValueError(f"off by {off:.1e} of the logits' deviation")
                    calls.append(call)
                except Exception as error:  # each runtime has errors of its own
                    row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with tqdm(total=rounds, unit="round", disable=None, leave=False) as bar:
            before = busy_seconds()
            times, _ = take_turns(calls, torch.device("cpu"), rounds, seconds, bar)
            spent, busy, own = (b - a for a, b in zip(before, busy_seconds(), strict=True))
    done = [row for row in rows if not row["error"]]
    for row, one in zip(done, times, strict=True):
        row["round_ms"] = [float(f"{1000 * value:.6g}") for value in one]
        row["ms"] = bench.quartiles(row["round_ms"])
    for row in rows:
        for key, model, way in (("eager", row["model"], "eager"), (NAMES[1], NAMES[1], row["way"])):
            base = next((one for one in done if (one["model"], one["way"]) == (model, way) and one is not row), None)
            both = base and not row["error"]
            row[f"times as fast as {key}"] = bench.compare(base["round_ms"], row["round_ms"]) if both else None
    return {
        "format": format,
        "machine": {"cpu": cpu_name(), "threads": 1, "others": round(max(0.0, busy - own) / spent, 2)},
        "size": SIDE,
        "versions": versions_of(about),
        "date": date.today().isoformat(),
        "rows": rows,
    }


def _eager(network: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a call of eager mode."""

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return network(x)

    return call


def _file(about: Any, network: Any, x: torch.Tensor, path: Path, way: str) -> Callable[[], Any]:
    module = sys.modules[about.write.__module__]  # of the format, which takes its rewriting by these names
    with ExitStack() as stack:
        for name in PLAIN.keys() & vars(module).keys() if way == "as it is" else ():
            stack.enter_context(mock.patch.object(module, name, PLAIN[name]))
        about.write(network, x, path, ())
    run, image = about.run(path, 1), x.numpy()
    return lambda: run(image)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("format", choices=[name for name, about in formats.FORMATS.items() if about.run])
    parser.add_argument("--rounds", type=int, default=50, help="rounds, at most")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds after which no round starts")
    args = parser.parse_args()
    found = measure(args.format, args.rounds, args.seconds)
    path = Path(__file__).resolve().parents[1] / "formats" / f"latency_{args.format}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["rows"]:
        sys.stdout.write(f"{row['model']}, {row['way']}: {row['error'] or row['ms']}\n")


if __name__ == "__main__":
    main()
