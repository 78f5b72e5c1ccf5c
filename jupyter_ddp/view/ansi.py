"""From text with terminal control sequences to safe HTML or to plain text.

Owns what a rank's text may still do once it is shown: colour and weight, nothing else. Never lets a
character of the text become markup, move a cursor, set a title, make a link or reorder what is read;
and never takes more than linear time, whatever the text.

Colours are shown as JupyterLab and nbconvert show them (the same class names, the same sixteen
colours), inline as well, because their style sheets reach only plain-text outputs.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from jupyter_ddp.core.terminal import ANYTHING_SPECIAL, CONTROL, strip, visible

__all__ = ["strip", "to_html"]

Rgb = tuple[int, int, int]
Colour = int | Rgb
"""0 to 15: one of the terminal's own colours, whose look is the theme's. Otherwise red, green, blue."""

_NAMES = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_CLASSES = tuple(f"ansi-{name}" for name in _NAMES) + tuple(f"ansi-{name}-intense" for name in _NAMES)
# The colours of JupyterLab's and nbconvert's style sheets, in the order of _CLASSES.
_HEX = (
    "#3e424d", "#e75c58", "#00a250", "#ddb62b", "#208ffb", "#d160c4", "#60c6c8", "#c5c1b4",
    "#282c36", "#b22b31", "#007427", "#b27d12", "#0065ca", "#a03196", "#258f8f", "#a1a6b2",
)  # fmt: skip


class Style(NamedTuple):
    """How a terminal would draw the next character."""

    fg: Colour | None = None
    bg: Colour | None = None
    bold: bool = False
    faint: bool = False
    italic: bool = False
    underline: bool = False
    inverse: bool = False
    strike: bool = False


_PLAIN = Style()

# Select Graphic Rendition (ECMA-48, 8.3.117; 90 to 107 are aixterm's). Concealed text (8) stays
# visible, and nothing blinks (5, 6).
_CHANGES: dict[int, dict[str, Any]] = {
    1: {"bold": True},
    2: {"faint": True},
    3: {"italic": True},
    4: {"underline": True},
    7: {"inverse": True},
    9: {"strike": True},
    21: {"underline": True},
    22: {"bold": False, "faint": False},
    23: {"italic": False},
    24: {"underline": False},
    27: {"inverse": False},
    29: {"strike": False},
    39: {"fg": None},
    49: {"bg": None},
    **{30 + n: {"fg": n} for n in range(8)},
    **{40 + n: {"bg": n} for n in range(8)},
    **{90 + n: {"fg": n + 8} for n in range(8)},
    **{100 + n: {"bg": n + 8} for n in range(8)},
}


def to_html(text: str) -> str:
    """The text as HTML that holds no tag but <span>, balanced; its text content is `strip(text)`."""
    if not ANYTHING_SPECIAL.search(text):
        return html.escape(text)
    out: list[str] = []
    current = ""
    for style, run in _runs(text):
        tag = _opening_tag(style)
        if tag != current:
            out.append("</span>" + tag if current else tag)
            current = tag
        out.append(html.escape(run))
    if current:
        out.append("</span>")
    return "".join(out)


def _runs(text: str) -> Iterator[tuple[Style, str]]:
    """Pieces of what is visible, none empty, each with its style."""
    style, end = _PLAIN, 0
    for control in CONTROL.finditer(text):
        if shown := text[end : control.start()] + visible(control):
            yield style, shown
        end = control.end()
        if control["final"] == "m":
            style = _after(style, control["params"])
    if end < len(text):
        yield style, text[end:]


@lru_cache(maxsize=1024)
def _after(style: Style, params: str) -> Style:
    """The style after one SGR sequence. What is not understood changes nothing."""
    if params[:1] in ("<", "=", ">", "?"):
        return style  # a private sequence: another meaning, though it ends in "m" too
    fields = iter(params.split(";"))
    for field in fields:
        code, *subs = (_number(n) for n in field.split(":"))
        if code in (38, 48, 58):
            colour = _extended(subs) if subs else _extended_in_fields(fields)
            if colour is not None and code != 58:  # an underline of another colour is an underline
                style = style._replace(fg=colour) if code == 38 else style._replace(bg=colour)
        elif code == 0:
            style = _PLAIN
        elif code == 4 and subs == [0]:
            style = style._replace(underline=False)
        elif changes := _CHANGES.get(code):
            style = style._replace(**changes)
    return style


def _number(digits: str) -> int:
    if not digits:
        return 0
    return int(digits) if digits.isdigit() and len(digits) <= 4 else -1


def _extended_in_fields(fields: Iterator[str]) -> Colour | None:
    """The colour after 38 or 48 where semicolons separate its numbers: 5;n or 2;r;g;b."""
    kind = _number(next(fields, ""))
    count = {5: 1, 2: 3}.get(kind, 0)
    return _extended([kind, *(_number(next(fields, "")) for _ in range(count))])


def _extended(numbers: list[int]) -> Colour | None:
    match numbers:
        case [5, n] if 0 <= n < 256:
            return _from_256(n)
        case [2, r, g, b] | [2, _, r, g, b, *_] if all(0 <= c < 256 for c in (r, g, b)):
            return r, g, b
    return None


def _from_256(n: int) -> Colour:
    """xterm's 256 colours: 16 of the theme, a cube of 6 by 6 by 6, 24 greys."""
    if n < 16:
        return n
    if n >= 232:
        grey = 8 + 10 * (n - 232)
        return grey, grey, grey
    red, green, blue = ((n - 16) // step % 6 for step in (36, 6, 1))
    return _cube(red), _cube(green), _cube(blue)


def _cube(level: int) -> int:
    return 55 + 40 * level if level else 0


@lru_cache(maxsize=1024)
def _opening_tag(style: Style) -> str:
    if style == _PLAIN:
        return ""
    fg, bg = style.fg, style.bg
    if style.bold and isinstance(fg, int) and fg < 8:
        fg += 8  # as terminals do, and JupyterLab
    if style.inverse:
        classes, css = _inverted(fg, bg)
    else:
        classes, css = _coloured(fg, bg)
    if style.bold:
        classes.append("ansi-bold")
        css.append("font-weight:bold")
    if style.underline:
        classes.append("ansi-underline")
    if lines := "underline " * style.underline + "line-through" * style.strike:
        css.append(f"text-decoration:{lines.strip()}")
    if style.italic:
        classes.append("ansi-italic")
        css.append("font-style:italic")
    if style.faint:
        css.append("opacity:0.7")
    of_class = f' class="{" ".join(classes)}"' if classes else ""
    return f'<span{of_class} style="{";".join(css)}">' if css else ""


def _coloured(fg: Colour | None, bg: Colour | None) -> tuple[list[str], list[str]]:
    """Classes and declarations; with a background there is always a text colour that shows on it."""
    classes = [_CLASSES[c] + part for c, part in ((fg, "-fg"), (bg, "-bg")) if isinstance(c, int)]
    css: list[str] = []
    if bg is not None:
        css += [f"color:{_hex(fg) if fg is not None else _readable_on(bg)}", f"background-color:{_hex(bg)}"]
    elif fg is not None:
        css.append(f"color:{_hex(fg)}")
    return classes, css


def _inverted(fg: Colour | None, bg: Colour | None) -> tuple[list[str], list[str]]:
    """As _coloured, swapped; a default is the theme's opposite."""
    if fg is not None:
        return _coloured(bg, fg)
    text = _hex(bg) if bg is not None else "var(--jp-ui-inverse-font-color0,#fff)"
    classes = [_CLASSES[bg] + "-fg" if isinstance(bg, int) else "ansi-default-inverse-fg"]
    css = [f"color:{text}", "background-color:var(--jp-inverse-layout-color0,#111)"]
    return [*classes, "ansi-default-inverse-bg"], css


def _hex(colour: Colour) -> str:
    return _HEX[colour] if isinstance(colour, int) else "#{:02x}{:02x}{:02x}".format(*colour)


def _readable_on(background: Colour) -> str:
    """Black or white, by the background's luma (ITU-R BT.601)."""
    value = int(_hex(background)[1:], 16)
    luma = 0.299 * (value >> 16) + 0.587 * (value >> 8 & 255) + 0.114 * (value & 255)
    return "#000" if luma > 115 else "#fff"
