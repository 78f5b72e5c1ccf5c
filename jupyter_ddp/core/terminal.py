"""What a terminal makes of control characters, without a terminal.

Owns which sequences there are, and what of them may be shown; linear time, whatever the text.
"""

from __future__ import annotations

import re

# ECMA-48: CSI, then command strings, then other escapes, then single control characters. Every
# quantifier is possessive and every terminator optional, so no character is looked at twice. A
# command string that is not terminated ends with its line: what comes after would be hidden otherwise.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)(?P<params>[0-?]*+)(?P<final>[ -/]*+[@-~]?+)"
    r"|(?:\x1b\]|\x9d)[^\x07\x18\x1a\x1b\x9c\n]*+(?:\x1b\\|[\x07\x18\x1a\x9c])?+"
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x18\x1a\x1b\x9c\n]*+(?:\x1b\\|[\x18\x1a\x9c])?+"
    r"|\x1b[ -/]*+[0-~]?+"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|(?P<bidi>[\u202a-\u202e\u2066-\u2069])"
    r"|(?P<surrogate>[\ud800-\udfff])"
)
ANYTHING_SPECIAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def strip(text: str) -> str:
    """The text without control sequences; of the control characters, newline and tab remain.

    Characters that reorder what is read (U+202A to U+202E, U+2066 to U+2069) are shown by name, as
    ‹U+202E›: left as they are, they make one line look like another; left out, or turned into U+FFFD
    as a lone surrogate is, they would look like nothing or like a decoding error.
    """
    if not ANYTHING_SPECIAL.search(text):
        return text
    return CONTROL.sub(visible, text)


def visible(control: re.Match[str]) -> str:
    """What is shown in place of one match of CONTROL."""
    if control["bidi"]:
        return f"‹U+{ord(control['bidi']):04X}›"
    return "\ufffd" if control["surrogate"] else ""


def overwritten(line: str) -> str:
    """A line as a terminal would show it: \\b steps back, \\r starts again over what is there."""
    if "\b" in line:
        line = _step_back(line)
    if "\r" not in line:
        return line
    # From the last drawing back: of an earlier one, only what stands beyond the later ones shows.
    shown: list[str] = []
    width = 0
    for piece in reversed(line.split("\r")):
        if "\x1b" in piece:
            # Escape sequences have no width, so a line with colours is replaced whole, not overlaid.
            return "".join(shown) or piece
        if len(piece) > width:
            shown.append(piece[width:])
            width = len(piece)
    return "".join(shown)


def _step_back(line: str) -> str:
    kept: list[str] = []
    for character in line:
        if character != "\b":
            kept.append(character)
        elif kept and kept[-1] != "\r":
            kept.pop()
    return "".join(kept)
