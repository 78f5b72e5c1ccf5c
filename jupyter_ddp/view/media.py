"""What the user's own code displayed: which of its representations is shown, and how.

Owns the choice among MIME types. Never fetches anything, and never lets an image be more than an image.
"""

from __future__ import annotations

import base64
import html
import json
from typing import Any, Literal, NamedTuple

from jupyter_ddp.core.transcript import Rich
from jupyter_ddp.view.wording import one_line

_RASTER = ("image/png", "image/jpeg", "image/gif")
_SVG = "image/svg+xml"
_SVG_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


class Drawn(NamedTuple):
    """A displayed value as the page shows it.

    `content` is an image's data URI; HTML that is passed on as it is; or text, LaTeX (typeset where the
    front end does that) or Markdown (as it was written), to be escaped.
    """

    kind: Literal["image", "html", "latex", "markdown"]
    content: str
    plain: str
    width: int | None = None
    height: int | None = None

    @property
    def chars(self) -> int:
        """How much of a page it takes, at most."""
        escapes = self.kind in ("latex", "markdown")
        return 200 + 6 * len(self.alt) + len(html.escape(self.content) if escapes else self.content)

    @property
    def alt(self) -> str:
        return one_line(self.plain, 100) if self.kind == "image" else ""


def draw(rich: Rich) -> Drawn | str:
    """How a value is shown: drawn, or as plain text where that is all it has to show."""
    plain = plain_text(rich)
    if (image := _image(rich, plain)) is not None:
        return image
    for mime, kind in _MARKUP:
        content = _string(rich.data.get(mime))
        if content:
            return Drawn(kind, _encodable(content), plain)
    return plain


_MARKUP: tuple[tuple[str, Literal["html", "latex", "markdown"]], ...] = (
    ("text/html", "html"),
    ("text/markdown", "markdown"),
    ("text/latex", "latex"),
)


def plain_text(rich: Rich) -> str:
    """The value's text/plain; without one, what kind of value it was."""
    plain = _string(rich.data.get("text/plain"))
    if plain or not rich.data or "text/plain" in rich.data:
        return plain
    return f"<{', '.join(one_line(mime, 80) for mime in sorted(rich.data))}>"


def _image(rich: Rich, plain: str) -> Drawn | None:
    for mime in (_SVG, *_RASTER):
        content = _string(rich.data.get(mime))
        if content:
            encoded = _encoded_svg(content) if mime == _SVG else "".join(content.split())
            width, height = _size(rich.metadata.get(mime))
            return Drawn("image", f"data:{mime};base64,{encoded}", plain, width, height)
    return None


def _encoded_svg(source: str) -> str:
    """An SVG for an <img>, in which its scripts and references are dead: it draws, no more.

    As an image it is XML by itself, so it needs the namespace that HTML would have implied.
    """
    if "xmlns=" not in source:
        source = source.replace("<svg", f"<svg {_SVG_NAMESPACE}", 1)
    return base64.b64encode(source.encode("utf-8", "replace")).decode("ascii")


def _size(metadata: Any) -> tuple[int | None, int | None]:
    """Width and height in CSS pixels, where the metadata give them as numbers."""
    if not isinstance(metadata, dict):
        return None, None
    return _pixels(metadata.get("width")), _pixels(metadata.get("height"))


def _pixels(value: Any) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 100_000:
        return round(value)
    return None


def _string(value: Any) -> str:
    """MIME data as text: a string, a notebook's list of lines, or JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    return json.dumps(value, sort_keys=True)


def _encodable(text: str) -> str:
    """The text without lone surrogates, on which sending it to the front end would fail."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
