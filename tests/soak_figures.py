"""What a full soak measured: the second table of `docs/promises.md` is made from it.

`make soak` sets JUPYTER_DDP_SOAK; the suite's short versions of the same tests leave no figures.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

PATH = Path(__file__).parents[1] / "out" / "soak.json"
FULL = "JUPYTER_DDP_SOAK" in os.environ


def note(what: str, bound: str, measured: str) -> None:
    """One line of the table; the words `what` name it."""
    if FULL:
        PATH.parent.mkdir(exist_ok=True)
        known = json.loads(PATH.read_text()) if PATH.exists() else {}
        known[what] = {"bound": bound, "measured": measured}
        PATH.write_text(json.dumps(known, indent=1, ensure_ascii=False))
