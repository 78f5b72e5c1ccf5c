"""ARCHITECTURE.md shows the pool's machine as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def the_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pool_diagram", ROOT / "docs" / "pool_diagram.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_is_current() -> None:
    """The page has every change of phase that driving the machine finds, and no other."""
    script = the_script()
    page = script.PAGE.read_text()
    assert script.fill(page, script.diagram(script.changes())) == page, "python docs/pool_diagram.py --write"


def test_the_search_finds_the_life_of_a_pool() -> None:
    """Eight events deep, what every pool goes through is found: the search looks where it should."""
    found = the_script().changes(depth=8)
    assert {
        ("stopped", "start", "starting"),
        ("starting", "group formed", "ready"),
        ("ready", "cell", "running"),
        ("running", "cell finished", "ready"),
        ("ready", "stop", "stopping"),
    } <= found
