"""Try every registered name in every format of `export`, and write the table of docs/export.md.

`python docs/tools/formats.py try FORMAT [NAME...]`, where the extra of that format is installed, writes
docs/formats/FORMAT.json; each name is tried in a process of its own, since some converters end theirs. `python
docs/tools/formats.py` writes the table, `--check` writes nothing and exits 1 where it is stale. Weights are seeded, so
that norms do something.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import precision
import timm

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.export import formats
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.probe import seed_weights

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = ROOT / "docs/export.md", ROOT / "docs/formats"
LIMIT = 900  # seconds that one model may take
# What stops a converter, as a part of its message, and what its makers say of it.
KNOWN = {"torch.unbind": "https://github.com/Tencent/ncnn/issues/3542"}


def attempt(format: str, name: str) -> dict[str, Any]:
    """Return what became of a model in a format: errors, sizes and versions, or what went wrong."""
    about, cfg = formats.FORMATS[format], timm.get_pretrained_cfg(name)
    network = seed_weights(timm.create_model(name).eval())
    row: dict[str, Any] = {"name": name, "date": date.today().isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        found, row["failed"] = _written(format, network, Path(folder, f"fixed{about.suffix}"))
        if found:
            row["size"] = found["input"]["shape"][2:]
            row["mib"] = round(sum(file["bytes"] for file in found["files"].values()) / 2**20, 2)
            row |= {key: found[key] for key in ("checks", "xnnpack", "versions") if key in found}
        dynamic = [one for one in about.dynamic if one != "size" or not cfg.fixed_input_size]
        if found and dynamic:
            free, failed = _written(format, network, Path(folder, f"free{about.suffix}"), dynamic)
            row["dynamic"] = {"of": dynamic, "checks": free and free["checks"], "failed": failed}
    return row


def _written(format: str, network: Any, path: Path, dynamic: Sequence[str] = ()) -> tuple[Any, str | None]:
    try:
        return getattr(export, f"to_{format}")(network, str(path), dynamic=dynamic, precision="fp32"), None
    except Exception as error:  # each converter has errors of its own
        text = " ".join(str(error).split())[:400]
        return None, text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def collect(format: str, names: Sequence[str]) -> None:
    """Try names, each in its own process, and keep what became of them."""
    path = FOLDER / f"{format}.json"
    path.parent.mkdir(exist_ok=True)
    rows = {row["name"]: row for row in tried(format)}
    for name in names or sorted(our_models(), key=_parameters):
        command = [sys.executable, "-W", "ignore", __file__, "one", format, name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
            last = done.stdout.strip().rpartition("\n")[2]
            died = {"name": name, "failed": f"the converter ended its process with status {done.returncode}"}
            rows[name] = json.loads(last) if done.returncode == 0 and last.startswith("{") else died
        except subprocess.TimeoutExpired:
            rows[name] = {"name": name, "failed": f"not done after {LIMIT} s"}
        sys.stdout.write(f"{format} {name}: {rows[name]['failed'] or rows[name]['mib']}\n")
        sys.stdout.flush()
        path.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=1) + "\n", encoding="utf-8")


def _parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def tried(format: str) -> list[dict[str, Any]]:
    """Return what became of the models that were tried in a format."""
    path = FOLDER / f"{format}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def table() -> str:
    """Return the table of models by formats, why cells are empty, and with which versions the others were made."""
    found = {format: {row["name"]: row for row in tried(format)} for format in formats.FORMATS}
    found = {format: rows for format, rows in found.items() if rows}
    reasons: dict[str, int] = {}
    lines = [f"| model | MiB | {' | '.join(f'`{format}`' for format in found)} |", f"|---|---:|{'---|' * len(found)}"]
    for name in sorted({name for rows in found.values() for name in rows}):
        rows = [(format, one.get(name)) for format, one in found.items()]
        sizes = [row["mib"] for _, row in rows if row and "mib" in row]
        spread = " to ".join(dict.fromkeys(f"{size:.1f}" for size in (min(sizes), max(sizes)))) if sizes else ""
        lines.append(f"| `{name}` | {spread} | {' | '.join(_cell(row, format, reasons) for format, row in rows)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    made = []
    for format, one in found.items():
        row = next(row for row in one.values() if "versions" in row)
        told = ", ".join(f"{key} {value}" for key, value in row["versions"].items() if not key.startswith("timm_"))
        made.append(f"- `{format}`: {told}; {row['date']}")
    return "\n".join([*lines, "", *notes, *[""] * bool(notes), *made])


def _cell(row: dict[str, Any] | None, format: str, reasons: dict[str, int]) -> str:
    if row is None:
        return ""
    parts = [_error(row, format, reasons)]
    if "dynamic" in row:
        parts.append(_error(row["dynamic"], format, reasons))
    if told := row.get("xnnpack"):
        left = sum(told["left"].values())
        parts += [f"{told['regions']} regions, {left} operators left"] * (told["regions"] != 1 or left > 0)
    return ", ".join(parts)


def _error(row: dict[str, Any], format: str, reasons: dict[str, int]) -> str:
    if row["failed"]:
        source = next((f"; {url}" for part, url in KNOWN.items() if part in row["failed"]), "")
        reason = f"`{format}`: {row['failed']}{source}"
        return f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
    if not row["checks"]:
        return "written"
    return "computed " * formats.FORMATS[format].stands_in + f"{row['checks']['random']['error']:.0e}"


def latency() -> str:
    """Return the tables of what docs/tools/latency.py measured, one a runtime."""
    blocks = []
    for path in sorted(FOLDER.glob("latency_*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        machine = told["machine"]
        others = f"others kept {machine['others']} cores busy"
        about = f"{machine['cpu']}, {machine['threads']} thread, {told['size']} px, {others}, {told['date']}"
        against = [key for key in told["rows"][0] if key.startswith("times as fast")]
        lines = [f"`{told['format']}` ({about}):", "", f"| model | form | ms | {' | '.join(against)} |"]
        lines.append(f"|---|---|---:|{'---:|' * len(against)}")
        for row in told["rows"]:
            shown = [_spread(row["ms"]) if not row["error"] else row["error"]]
            shown += [_spread(row[key]) if row.get(key) else "" for key in against]
            lines.append(f"| `{row['model']}` | {row['way']} | {' | '.join(shown)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def precisions() -> str:
    """Return the tables of what docs/tools/precision.py measured, one a runtime, folded."""
    measured = [format for format in formats.FORMATS if "speed" in precision.stored(format)]
    head = '<details markdown="1">\n<summary>{}</summary>\n'
    return "\n\n".join(f"{head.format(one)}\n{precision.table(one)}\n\n</details>" for one in measured)


def _spread(found: dict[str, Any]) -> str:
    return f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})"


def page() -> str:
    """Return the page with its tables filled in."""
    text = PAGE.read_text(encoding="utf-8")
    filled_in = {"formats": table(), "latency": latency(), "summary": precision.summary(), "precisions": precisions()}
    for name, filled in filled_in.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{filled}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the table is stale")
    parser.add_argument("what", nargs="*", help="nothing, or: try FORMAT [NAME...]")
    args = parser.parse_args()
    if args.what[:1] == ["one"]:
        sys.stdout.write("\n" + json.dumps(attempt(*args.what[1:])) + "\n")
    elif args.what[:1] == ["try"]:
        collect(args.what[1], args.what[2:])
    elif not args.check:
        if precision.is_stale():
            precision.draw()
        PAGE.write_text(page(), encoding="utf-8", newline="\n")
    elif precision.is_stale():
        sys.exit(f"stale, run `python docs/tools/formats.py`: {precision.PICTURE.relative_to(ROOT)}")
    elif page() != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"stale, run `python docs/tools/formats.py`: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
