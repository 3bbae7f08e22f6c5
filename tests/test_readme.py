"""Every ```python block of README.md and docs runs as it stands, and prints what its `# -> ` comments say."""

import re
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start(1))
            yield pytest.param(page, line, match[1], id=f"{page.name}:{line + 1}")


def _no_network(*args, **kwargs):
    raise OSError("a documentation example opened a connection")


@pytest.mark.parametrize(("page", "line", "code"), list(_blocks()))
def test_block_runs(page, line, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "__main__"})  # tracebacks show the page's lines
    said = re.findall(r"# -> (.*)$", code, re.MULTILINE)
    assert not said or capsys.readouterr().out.splitlines() == said
