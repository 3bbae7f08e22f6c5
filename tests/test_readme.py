"""Every ```python block of README.md and docs runs as it stands, and prints what its `# -> ` comments say.

The recipes train: they read STEPS, which is small here, and have to leave the pictures that they name.
"""

import ast
import re
import socket
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Their code is that of the pages they translate; the index of the folder has none.
ZH = ROOT / "docs" / "zh"
TRANSLATED = {path: ROOT / "docs" / "learn" / path.name for path in sorted(ZH.glob("*.md")) if path.stem != "index"}
TRANSLATED[ROOT / "README.zh.md"] = ROOT / "README.md"
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - set(TRANSLATED))]


def _code(page):
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(1)), match[1]


def _translated(picture):
    """Return what a Chinese page shows for an English one's picture: one with Chinese words, where there is one."""
    folder, name = picture.rsplit("/", 1)
    return f"{folder}/zh/{name}" if (ROOT / "docs/img/zh" / name).exists() else picture


def _outputs(code):
    return re.findall(r"# -> (.*)$", code, re.MULTILINE)


def _blocks():
    for page in PAGES:
        for line, code in _code(page):
            yield pytest.param(page, line, code, id=f"{page.name}:{line + 1}")


def _no_network(*args, **kwargs):
    raise OSError("a documentation example opened a connection")


@pytest.mark.parametrize(("page", "line", "code"), list(_blocks()))
def test_block_runs(page, line, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setenv("STEPS", "2")
    torch.manual_seed(0)  # or what is compared would be of a moment's luck
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "__main__"})  # tracebacks show the page's lines
    said = _outputs(code)
    assert not said or capsys.readouterr().out.splitlines() == said
    for picture in re.findall(r'"(\S+\.png)"', code):
        assert Path(picture).stat().st_size


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_a_translation_has_the_code_pictures_and_figures_of_the_page(page):
    original = TRANSLATED[page]
    ours, theirs = ([code for _, code in _code(path)] for path in (page, original))
    assert ours
    assert [ast.dump(ast.parse(code)) for code in ours] == [ast.dump(ast.parse(code)) for code in theirs]
    assert [_outputs(code) for code in ours] == [_outputs(code) for code in theirs]
    texts = [path.read_text(encoding="utf-8") for path in (page, original)]
    ours, theirs = (re.findall(r"!\[[^]]*\]\(([^)]*)\)", text) for text in texts)
    assert ours == [_translated(picture) for picture in theirs]
    for pattern in (
        r"^#+ ",
        r"^\|(?: ?:?-+:? ?\|)+$",
        r"^(?:timm-mobilevit-zoo|OPTIONS=).*?(?= *#|$)",
    ):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in texts)
        assert ours == theirs


@pytest.mark.parametrize("page", [*PAGES, *TRANSLATED], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
