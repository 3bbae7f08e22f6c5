"""What the site is built with: its pages, their languages, and what the API pages name."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
sys.path.append(str(DOCS / "tools"))
import site_pages  # noqa: E402


def pages(nav):
    for entry in nav:
        (where,) = entry.values()
        yield from pages(where) if isinstance(where, list) else (where,)


def test_every_page_is_in_the_navigation_once():
    listed = list(pages(CONFIG["nav"]))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"tools/README.md"}
    assert sorted(listed) == sorted(there)


def test_the_language_switch_leads_to_the_same_page():
    urls = {name.replace(".md", ".html") for name in pages(CONFIG["nav"])}
    for url in urls:
        links = site_pages.counterpart(url, urls)
        assert {*links.values()} <= urls
        assert url in links.values()
    assert site_pages.counterpart("learn/distillation.html", urls)["zh"] == "zh/distillation.html"
    assert site_pages.counterpart("zh/distillation.html", urls)["en"] == "learn/distillation.html"
    assert site_pages.counterpart("train.html", urls) == {"en": "train.html", "zh": "zh/index.html"}
    assert site_pages.counterpart("zh/index.html", urls)["en"] == "index.html"
    assert {way["lang"] for way in CONFIG["extra"]["alternate"]} == {"en", "zh"}


@pytest.mark.parametrize(("url", "lang"), [("zh/index.html", "zh-CN"), ("index.html", "en")])
def test_a_page_says_its_language(url, lang):
    class Page:
        pass

    Page.url = url
    assert f'<html lang="{lang}" class' in site_pages.on_post_page('<html lang="en" class="x">', Page, None)


def test_the_search_cuts_chinese_into_words():
    (search,) = [plugin["search"] for plugin in CONFIG["plugins"] if isinstance(plugin, dict) and "search" in plugin]
    assert "zh" in search["lang"]  # with jieba, of the extra `docs`, whose words are parted by zero-width spaces
    assert re.split(search["separator"], "知识\u200b蒸馏\u200b\uff1a\u200b门控") == ["知识", "蒸馏", "门控"]


def test_what_the_api_pages_name_is_there_and_documented():
    named = [
        name for path in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", path.read_text(), re.M)
    ]
    assert len(named) == len({*named}) > 20
    for name in named:
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, last = name.rpartition(".")
            found = getattr(importlib.import_module(module), last)
        assert found.__doc__
    for room in ("export", "hub", "maps", "bench"):
        public = importlib.import_module(f"timm_mobilevit_zoo.{room}").__all__
        left_out = {name for name in public if f"timm_mobilevit_zoo.{room}.{name}" not in named}
        assert left_out <= {"quartiles", "ratio_text"}
