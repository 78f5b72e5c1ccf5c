"""Text with control sequences, as HTML and as plain text."""

import time

import pytest

from jupyter_ddp.view.ansi import strip, to_html

RED, BRIGHT_BLUE = "#e75c58", "#0065ca"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("a < b & c > \"d\" 'e'", "a &lt; b &amp; c &gt; &quot;d&quot; &#x27;e&#x27;"),
        ("\x1b[31mred\x1b[0m", f'<span class="ansi-red-fg" style="color:{RED}">red</span>'),
        ("\x1b[31mred", f'<span class="ansi-red-fg" style="color:{RED}">red</span>'),
        ("\x1b[31m\x1b[0m", ""),
        ("\x1b[94mx\x1b[m", f'<span class="ansi-blue-intense-fg" style="color:{BRIGHT_BLUE}">x</span>'),
        ("\x1b[1mx\x1b[22my", '<span class="ansi-bold" style="font-weight:bold">x</span>y'),
        ("\x1b[2mx\x1b[22my", '<span style="opacity:0.7">x</span>y'),
        ("\x1b[3mx\x1b[23my", '<span class="ansi-italic" style="font-style:italic">x</span>y'),
        ("\x1b[4:3mx\x1b[4:0my", '<span class="ansi-underline" style="text-decoration:underline">x</span>y'),
        ("\x1b[9mx", '<span style="text-decoration:line-through">x</span>'),
        ("\x1b[38;5;208mx\x1b[39my", '<span style="color:#ff8700">x</span>y'),
        ("\x1b[38;5;244mx", '<span style="color:#808080">x</span>'),
        ("\x1b[38;5;1mx", f'<span class="ansi-red-fg" style="color:{RED}">x</span>'),
        ("\x1b[38;2;1;2;255mx", '<span style="color:#0102ff">x</span>'),
        ("\x1b[38:2::1:2:255mx", '<span style="color:#0102ff">x</span>'),
        ("\x1b[38:5:208mx", '<span style="color:#ff8700">x</span>'),
    ],
)
def test_styles(text: str, expected: str) -> None:
    """Colours, weight and decoration become spans that JupyterLab's classes and inline styles draw."""
    assert to_html(text) == expected


def test_combined_parameters() -> None:
    """One sequence may set several things; bold brightens a basic colour, as in JupyterLab."""
    assert to_html("\x1b[1;31mx") == (
        '<span class="ansi-red-intense-fg ansi-bold" style="color:#b22b31;font-weight:bold">x</span>'
    )
    assert to_html("\x1b[38;5;208;4mx") == (
        '<span class="ansi-underline" style="color:#ff8700;text-decoration:underline">x</span>'
    )


@pytest.mark.parametrize(
    ("text", "css"),
    [
        ("\x1b[41mx", "color:#000;background-color:#e75c58"),
        ("\x1b[45mx", "color:#000;background-color:#d160c4"),
        ("\x1b[104mx", "color:#fff;background-color:#0065ca"),
        ("\x1b[33;41mx", "color:#ddb62b;background-color:#e75c58"),
        ("\x1b[48;2;0;0;0mx", "color:#fff;background-color:#000000"),
        ("\x1b[31;7mx", "color:#000;background-color:#e75c58"),
        ("\x1b[7mx", "color:var(--jp-ui-inverse-font-color0,#fff);background-color:var(--jp-inverse-"),
    ],
)
def test_a_background_never_comes_without_a_text_colour(text: str, css: str) -> None:
    """Whatever the theme's text colour is, text with a background can be read."""
    assert f'style="{css}' in to_html(text)


def test_runs_of_one_style_share_a_span() -> None:
    """A sequence that changes nothing opens no new span."""
    assert to_html("\x1b[31ma\x1b[31mb\x1b[Kc").count("<span") == 1


@pytest.mark.parametrize(
    "text",
    [
        "a\x1b[2K\x1b[1A\x1b[10;20Hb",
        "a\x1b]0;title\x07b",
        "a\x1b]0;title\x1b\\b",
        "a\x1b]8;;https://evil.example\x1b\\b\x1b]8;;\x1b\\",
        "a\x1bPq#0;2;0;0;0\x1b\\b",
        "a\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\b",
        "a\x9bK\x9d0;title\x9cb\x90dcs\x9c",
        "a\x1b(B\x1b7\x1bcb",
        "a\x00\x01\x07\x08\x0b\x0c\x0d\x7fb",
        "a\x80\x85\x9fb",
        "a\x1b",
        "a\x1b[",
        "a\x1b[31",
        "a\x1b]0;never ends",
        "a\x1b[?25l\x1b[>4;2m\x1b[?4mb",
        "a\x1b[" + "9" * 5000 + "mb",
        "a\x1b[38;2;999;0;0mb",
        "a\x1b[38mb\x1b[48;5m",
    ],
)
def test_other_sequences_leave_no_trace(text: str) -> None:
    """What moves cursors, sets titles, makes links or is cut off is taken out, and styles nothing."""
    assert strip(text) in ("a", "ab")
    assert to_html(text) == strip(text)


def test_an_unterminated_command_string_hides_no_further_line() -> None:
    """An OSC that never ends takes its own line with it, not the traceback below."""
    assert strip("a\x1b]0;never ends\nb") == "a\nb"


def test_newlines_and_tabs_stay() -> None:
    """Of the control characters only these two mean something on a page."""
    assert strip("a\n\tb") == to_html("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize("code", [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_reordering_characters_are_named(code: int) -> None:
    """Text that would be drawn in another order than it is written shows why."""
    text = f"admin{chr(code)}nimda"
    assert strip(text) == f"admin‹U+{code:04X}›nimda" == to_html(text)


def test_lone_surrogates_are_replaced() -> None:
    """They cannot be sent to a front end as UTF-8."""
    assert strip("a\ud800b") == to_html("a\ud800b") == "a\ufffdb"


@pytest.mark.parametrize(
    "unit",
    ["\x1b[", "\x1b]", "\x1bP", "\x1b[0;", "\x1b[ ", "\x1b", "\x1b[31mx", "9;", "\x9b\x9d\x90", "\u202e"],
)
@pytest.mark.parametrize("start", ["", "\x1b[", "\x1b]"])
def test_hostile_text_takes_linear_time(unit: str, start: str) -> None:
    """A great many openings without an end takes no longer per character than a little of it."""
    began = time.process_time()
    to_html(start + unit * (300_000 // len(unit)))
    assert time.process_time() - began < 10  # quadratic time would be days
