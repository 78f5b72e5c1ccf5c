"""The style sheets of the live view and the panel, and the styles of the saved page."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from jupyter_ddp.view.page import _STYLES


def source(name: str) -> str:
    return files("jupyter_ddp.view").joinpath(name).read_text("utf-8")


SHEETS = {name: source(name) for name in ("live.css", "panel.css")}
RULES = [
    (f"{name}: {selector.strip()}", body)
    for name, sheet in SHEETS.items()
    for selector, body in re.findall(r"([^{}]+){([^{}]*)}", re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL))
]


@pytest.mark.parametrize(("where", "style"), [*RULES, *_STYLES.items()])
def test_a_background_never_comes_without_a_text_colour(where: str, style: str) -> None:
    """VS Code's widget area is white in every theme: a text colour of the theme alone would vanish on it."""
    if re.search(r"background(-color)?:(?! *(none|transparent))", style):
        assert re.search(r"(?<!-)\bcolor:", style), where


def test_nothing_is_fetched() -> None:
    """No sheet and no script refers to anything outside."""
    for name in ("live.css", "panel.css", "live.js", "panel.js"):
        links = set(re.findall(r"https?://[^\"'` )]+|@import|url\(", source(name)))
        assert links <= {"http://www.w3.org/2000/svg"}, name
