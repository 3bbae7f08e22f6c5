"""What mkdocs calls as it builds the site (`hooks` in mkdocs.yml): pages say their language and link to the other's.

The Chinese pages lie in docs/zh, under the names of those in docs/learn that they translate.
"""

from typing import Any

__all__ = ["counterpart", "on_page_context", "on_post_page"]

ENGLISH, CHINESE = "learn/", "zh/"
HOME = "index.html"


def counterpart(url: str, pages: set[str]) -> dict[str, str]:
    """Return where a page is in each language: itself in its own, its translation in the other, or the home page there.

    Args:
        url: Of the page, below the site's root.
        pages: The addresses of all pages.
    """
    if url.startswith(CHINESE):
        translated = ENGLISH + url.removeprefix(CHINESE)
        return {"en": translated if translated in pages else HOME, "zh": url}
    translated = CHINESE + url.removeprefix(ENGLISH)
    return {"en": url, "zh": translated if url.startswith(ENGLISH) and translated in pages else CHINESE + HOME}


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """Point the language switch at this page's translation."""
    links = counterpart(page.url, {other.url for other in nav.pages})
    config.extra["alternate"] = [{**way, "link": links[way["lang"]]} for way in config.extra["alternate"]]
    return context


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Say the language of a page that is not in the site's own."""
    if not page.url.startswith(CHINESE):
        return output
    return output.replace('<html lang="en"', '<html lang="zh-CN"', 1)
