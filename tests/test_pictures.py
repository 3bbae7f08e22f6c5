"""The pictures of the pages: who draws them, and that the Chinese ones say in Chinese what the English ones do."""

import re
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn
from zoo import create, image

from timm_mobilevit_zoo.maps import draw

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs" / "tools"))
import distill_digits  # noqa: E402
import pictures  # noqa: E402
import words  # noqa: E402


class Unknown(nn.Module):
    """Attention behind a layout that nobody knows."""

    def __init__(self):
        super().__init__()
        self.attn = timm.layers.Attention(8, num_heads=2)

    def forward(self, x):
        return self.attn(x.flatten(2).mT)


def written(figure):
    """What a figure says."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def is_english(text):
    """Tell whether two words follow each other, as they never do in names and options."""
    return bool(re.search("[a-z] [a-z]", text))


def test_a_mobilevit_block_reaches_what_its_page_says():
    reached = {part: pictures.dependence(part, 8, (3, 4), seeds=1) > 0 for part in ("convolutions", "transformer")}
    rows, columns = np.indices((8, 8))
    assert (reached["convolutions"] == (abs(rows - 3) <= 1) & (abs(columns - 4) <= 1)).all()
    assert (reached["transformer"] == (rows % 2 == 1) & (columns % 2 == 0)).all()
    assert (pictures.dependence("block", 8, (3, 4), seeds=1) > 0).all()


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figures that are saved, in the words of a language and without its font, which may not be here."""
    figures = []
    for module in (distill_digits, pictures):
        monkeypatch.setattr(module, "lettering", lambda language: nullcontext(words.LANGUAGES[language]))
    monkeypatch.setattr(words, "IMAGES", tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    monkeypatch.setattr(pictures, "dependence", lambda *_: np.ones((16, 16)))
    return figures


def test_no_picture_of_a_tool_is_left_in_english(drawn):
    pictures.mobilevit_block({"en": None, "zh": None})
    assert distill_digits.draw("zh").name == distill_digits.draw("en").name
    chinese, english = drawn[1:3], (drawn[0], drawn[3])
    assert not any(is_english(text) for figure in chinese for text in written(figure))
    assert all(any(map(is_english, written(figure))) for figure in english)
    assert [len(written(figure)) for figure in chinese] == [len(written(figure)) for figure in english]


def test_no_picture_of_maps_is_left_in_english():
    said = set()
    small, large = image(32, 32, batch=1), image(64, 64, batch=1)
    for network, x in (
        (create("cloformer_xxs"), large),
        (create("cloformer_xxs"), small),  # whose pooled attention has one key
        (create("vit_nano_patch4_32"), small),
        (Unknown(), torch.randn(1, 8, 3, 2)),
    ):
        chinese = written(draw(network, x, words=words.CHINESE))
        assert not any(map(is_english, chinese))
        said.update(chinese)
    said = " ".join(said)
    phrases = (
        "输入图像",
        "rollout",
        "类别 token",
        "每个位置",
        "门控",
        "行为 query",
        "所有层",
        "\uff1b",
        "7 张",
        "处处相同",
    )
    for phrase in phrases:
        assert phrase in said


def test_a_phrase_without_translation_stays():
    network, x = create("vit_nano_patch4_32"), image(32, 32, batch=1)
    english, other = (written(draw(network, x, words=words)) for words in (None, {"the image": "das Bild"}))
    assert [text.replace("the image", "das Bild") for text in english] == other != english


def test_a_missing_font_is_told_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(pictures, "_trained", lambda *_, **__: pytest.fail("work had begun"))
    monkeypatch.setattr(sys, "argv", ["pictures.py", "vit-from-scratch"])
    with pytest.raises(SystemExit, match=r"^no font has .* install .*fonts-wqy-microhei"):
        pictures.main()
    with words.lettering("en") as said:
        assert said["the image"] == "the image", "which takes no font"


def test_a_letter_without_a_font_is_no_box(tmp_path):
    figure = Figure()
    figure.suptitle("\N{CJK UNIFIED IDEOGRAPH-56FE}")
    with words.lettering("en"), pytest.raises(UserWarning, match="Glyph"):
        figure.savefig(tmp_path / "a.png")
