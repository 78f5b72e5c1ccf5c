"""How a cell may end on a rank."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["ok", "error", "interrupted", "died", "not-run", "unknown"]
