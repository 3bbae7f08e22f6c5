"""What pictures and tables say in each language of the pages, where a picture lies, and the letters to write it with.

English phrases are the code's own; `CHINESE` has every phrase of the pictures that Chinese pages show. Names of
networks, layers and options stay as they are typed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHINESE", "ENGLISH", "IMAGES", "LANGUAGES", "lettering", "picture"]

IMAGES = Path(__file__).resolve().parents[1] / "img"
# Not Noto's (fonts-noto-cjk): of a collection, matplotlib before 3.11 reads the first font, which there has Japanese
# forms. Latin letters stay those of matplotlib's own font, which comes first, as in English pictures.
FAMILY, FILE, PACKAGE = "WenQuanYi Micro Hei", "wqy-microhei.ttc", "fonts-wqy-microhei"


class _English(dict[str, str]):
    def __missing__(self, phrase: str) -> str:
        return phrase


ENGLISH: dict[str, str] = _English()
CHINESE = {
    # distillation: the table and the picture
    "student": "学生",
    "epochs": "epoch 数",
    "learns from": "学自",
    "seed": "种子",
    "mean": "平均",
    "labels only": "只学标签",
    "the teacher": "教师",
    "{student} student, {epochs} epochs": "{student} 学生，{epochs} 个 epoch",
    "validation top-1 after the last epoch (%)": "最后一个 epoch 的验证准确率（%）",
    "three seeds each, their mean (line) and the teacher (dashed): 364 validation digits": (
        "每种设置三个种子（点）、它们的平均（横线）和教师（虚线）：364 张验证图像"
    ),
    # the MobileViT block
    "step 1: two convolutions": "第 1 步：两个卷积",
    "steps 2 to 4: the transformer alone": "第 2 至 4 步：只有 Transformer",
    "the whole block": "整个模块",
    "gradient, relative to the largest": "梯度（与最大值之比）",
    "what the output at the red circle depends on (patches of 2 x 2, white lines)": (
        "红圈处的输出依赖输入的哪些格（白线划分 2 x 2 的 patch）"
    ),
    # what `timm_mobilevit_zoo.maps.draw` writes
    "the image": "输入图像",
    "roll-out": "rollout",
    "attention of the class token to each patch, mean over heads": "类别 token 对各个 patch 的注意力，对各头取平均",
    "attention that each position receives, mean over heads and queries": (
        "每个位置得到的注意力，对各头和各 query 取平均"
    ),
    "gates, mean over channels": "门控，对各通道取平均",
    "attention, rows of queries and columns of keys, mean over heads": "注意力，行为 query，列为 key，对各头取平均",
    "roll-out over all layers": "所有层的 rollout",
    "; ": "；",
    "{shown} of {count} maps are shown, those on which a person sees most": (
        "画出的是 {count} 张图中最容易看出内容的 {shown} 张"
    ),
    "left out, the same everywhere, as attention to a single key is: {names}": (
        "处处相同、因而没有画出的图（例如只有一个 key 的注意力）：{names}"
    ),
}
LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


def picture(name: str, language: str = "en") -> Path:
    """Return where a page of that language finds a picture."""
    return IMAGES / ("" if language == "en" else language) / f"{name}.png"


@contextmanager
def lettering(language: str) -> Iterator[dict[str, str]]:
    """Give a language's phrases by the English ones; figures made and saved meanwhile have letters for them.

    Raises:
        SystemExit: Where the font for the language is not installed; it names the package.
        UserWarning: As an error, for a letter that no font has and that would be a box in the picture.
    """
    import matplotlib

    fonts: dict[str, Any] = {} if language == "en" else {"font.family": ["DejaVu Sans", _chinese()]}
    with matplotlib.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph .* missing from font")
        yield LANGUAGES[language]


def _chinese() -> str:
    """Return the name under which matplotlib has a font with Chinese letters."""
    from matplotlib import font_manager

    # matplotlib's own list is from its first run, before which the font may not have been there
    found = [path for path in font_manager.findSystemFonts() if Path(path).name == FILE]
    if not found:
        raise SystemExit(f"no font has the letters of Chinese pictures: install {FAMILY} (apt-get install {PACKAGE})")
    font_manager.fontManager.addfont(found[0])
    return FAMILY
