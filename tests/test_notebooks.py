"""The notebooks of docs/notebooks run from top to bottom, with few steps, and are stored with their outputs."""

import ast
import json
import re
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs" / "tools"))
import notebooks  # noqa: E402

BOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
every_book = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def address():
    return re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def no_network(*args, **kwargs):
    raise OSError("a notebook opened a connection")


@every_book
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("STEPS", "2")
    book = notebooks.executed(path)
    drawn = [any("image/png" in out.get("data", ()) for out in cell.get("outputs", ())) for cell in book["cells"]]
    stored = json.loads(path.read_text(encoding="utf-8"))
    kept = [any("image/png" in out.get("data", ()) for out in cell.get("outputs", ())) for cell in stored["cells"]]
    assert drawn == kept


@every_book
def test_a_notebook_is_stored_whole_and_opens_in_colab(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])
    for cell in cells:
        prints = any(
            isinstance(one, ast.Call) and getattr(one.func, "id", "") == "print"
            for one in ast.walk(ast.parse(notebooks.code_of(cell)))
        )
        assert cell["outputs"] or not prints
    assert (book["nbformat"], len({cell["id"] for cell in book["cells"]})) == (4, len(book["cells"]))
    url = address()
    at = f"https://colab.research.google.com/github/{url.removeprefix('https://github.com/')}/blob/main/"
    assert at + path.relative_to(ROOT).as_posix() in "".join(book["cells"][0]["source"])
    assert f"git+{url}" in "".join(cells[0]["source"])
    assert f"notebooks/{path.name}" in (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")


def test_the_repository_has_one_address():
    """Until it is known, OWNER stands for its owner everywhere: whoever publishes it replaces all at once."""
    url = address()
    files = [ROOT / name for name in ("README.md", "README.zh.md", "mkdocs.yml", "docs/notebooks.md")]
    for path in files:
        found = re.findall(r"github(?:\.com)?/([\w-]+/timm-mobilevit-zoo)\b", path.read_text(encoding="utf-8"))
        assert {*found} == {url.removeprefix("https://github.com/")}, path
