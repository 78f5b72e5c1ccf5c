"""docs/promises.md names every promise that a test makes, and no other; for each fault, tests that exist."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def _script(name: str = "promises") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_tests() -> None:
    """Names, bounds and tests; times may differ. `python docs/promises.py --write` renews it."""
    script = _script()
    begin, end = script.BEGIN, script.END
    shown = script.PAGE.read_text().partition(begin)[2].partition(end)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.split("\n") if line]
    now = script.table(script.promises(), {}, {}).split("\n")
    expected = [[cell.strip() for cell in line.strip("|").split("|")] for line in now]
    without_times = [[what, bound, test] for what, bound, _, test in rows]
    assert without_times == [[what, bound, test] for what, bound, _, test in expected]


def test_a_promise_is_made_once() -> None:
    """What is measured is kept under its words."""
    words = [promise.what for promise in _script().promises()]
    assert len(words) == len(set(words))
    assert len(words) > 20
    assert not any("|" in what for what in words)


def test_the_slowest_case_is_shown() -> None:
    """Of many cases the worst counts; without a time to keep, that it was kept."""
    script = _script()
    promise = script.Promise("it ends", 3, "tests/fault/test_x.py::test_it")
    row = script.table([promise], {"it ends": {"cases": {"a": 0.5, "b": 1.25}}}, {}).split("\n")[-1]
    assert row == "| it ends | 3 s | 1.25 s (2 cases) | `fault/test_x.py · test_it` |"
    kept = script.table([promise._replace(bound_s=None)], {"it ends": {"cases": {"": None}}}, {})
    assert kept.endswith("| it ends |  | kept | `fault/test_x.py · test_it` |")


def test_what_was_not_measured_keeps_its_time() -> None:
    """Who adds a promise renews the page without running every test."""
    script = _script()
    promise = script.Promise("it ends", 3, "tests/fault/test_x.py::test_it")
    page = script.fill(f"{script.BEGIN}{script.END}", script.table([promise], {}, {"it ends": "0.50 s"}))
    assert script.shown(page)["it ends"] == "0.50 s"


def test_the_faults_tests_are_there() -> None:
    """Each is a function of its file, and a fault without any says why."""
    script = _script("fault_matrix")
    for row in script.ROWS:
        assert row.tests or row.missing, row.fault
        for test in row.tests:
            file, _, function = test.partition("::")
            body = ast.parse((DOCS.parent / "tests" / file).read_text()).body
            assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}, test


def test_the_page_has_the_faults() -> None:
    """`python docs/fault_matrix.py --write` renews it."""
    script = _script("fault_matrix")
    page = script.PAGE.read_text()
    assert script.fill(page) == page
