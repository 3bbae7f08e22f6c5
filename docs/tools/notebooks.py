"""Run the notebooks of docs/notebooks and store what their cells print and draw.

`python docs/tools/notebooks.py [NAME ...]` needs the package with its extras `demo`, `onnx` and `recipes`. Notebooks
run in a folder of their own, with STEPS from the environment, which they read. Lines that start with % are Jupyter's,
such as what installs the package on Colab, and are left out. Cells tagged `network` run with `--network` alone.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "code_of", "executed"]

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def code_of(cell: dict[str, Any]) -> str:
    """Return a cell's Python, with blank lines in place of Jupyter's own commands."""
    lines = "".join(cell["source"]).splitlines(keepends=True)
    return "".join("\n" if line.startswith("%") else line for line in lines)


def _figures() -> list[dict[str, Any]]:
    from matplotlib import pyplot as plt

    found = []
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, dpi=80)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
        found.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return found


def _run(code: str, space: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Run a cell and return its outputs: what it printed, its last expression's value, and its figures."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"output_type": "execute_result", "metadata": {}, "execution_count": None, "data": data})
    return outputs + _figures()


def executed(path: Path, *, network: bool = False) -> dict[str, Any]:
    """Return a notebook with the outputs that its cells have when run, one after another, in the current folder.

    Args:
        path: The notebook.
        network: Whether to run the cells that download, too.

    Raises:
        Exception: What a cell raises.
    """
    import matplotlib

    matplotlib.use("agg")
    book = json.loads(path.read_text(encoding="utf-8"))
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        cell["execution_count"] = number
        if "network" in cell["metadata"].get("tags", ()) and not network:
            continue
        cell["outputs"] = _run(code_of(cell), space, f"{path.name}, cell {number}")
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = number
    return book


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks, without .ipynb (default: all)")
    parser.add_argument("--network", action="store_true", help="run the cells that download, too")
    args = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if args.names and path.stem not in args.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            book = executed(path, network=args.network)
            os.chdir(FOLDER)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        sys.stdout.write(f"ran {path}\n")


if __name__ == "__main__":
    main()
