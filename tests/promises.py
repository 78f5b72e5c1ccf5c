"""What the tests promise to users, and what was measured: the plugin that `docs/promises.md` is made from.

A test carries `@pytest.mark.promise("a rank is killed in a collective", bound_s=3)` and, where there is a
time to keep, measures it with the fixture `promised`. What passed is written to PATH at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "out" / "promises.json"
MARKER = "promise(what, bound_s=None): a promise to users, shown by this test; see docs/promises.md"


class Stopwatch:
    """The times that a test measured, from the fault to what the user sees."""

    def __init__(self, bound_s: float | None) -> None:
        self.bound_s = bound_s
        self.took_s: list[float] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure what is done inside; AssertionError when it took longer than promised."""
        began = time.monotonic()
        yield
        self.took(time.monotonic() - began)

    def took(self, seconds: float) -> None:
        assert self.bound_s is None or seconds <= self.bound_s, f"{seconds:.2f} s, promised {self.bound_s} s"
        self.took_s.append(seconds)


class Promises:
    """Collects what was kept in one run of pytest."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, object]] = {}
        self._stopwatches: dict[str, Stopwatch] = {}

    def stopwatch(self, request: pytest.FixtureRequest) -> Stopwatch:
        marker = request.node.get_closest_marker("promise")
        assert marker is not None, "the fixture `promised` goes with the marker `promise`"
        watch = Stopwatch(marker.kwargs.get("bound_s"))
        self._stopwatches[request.node.nodeid] = watch
        return watch

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[pytest.TestReport]:
        report = yield
        marker = item.get_closest_marker("promise")
        if marker is not None and report.when == "call" and report.passed:
            self._keep(marker, item.nodeid)
        return report

    def _keep(self, marker: pytest.Mark, nodeid: str) -> None:
        watch = self._stopwatches.get(nodeid)
        test, _, case = nodeid.partition("[")
        entry = self._kept.setdefault(marker.args[0], {"test": test, "cases": {}})
        entry["bound_s"] = marker.kwargs.get("bound_s")
        entry["cases"][case.removesuffix("]")] = max(watch.took_s) if watch and watch.took_s else None  # type: ignore[index]

    def pytest_sessionfinish(self) -> None:
        """Written beside what other runs found: no run has all the tests."""
        if self._kept:
            PATH.parent.mkdir(exist_ok=True)
            known = json.loads(PATH.read_text()) if PATH.exists() else {}
            PATH.write_text(json.dumps(known | self._kept, indent=1, sort_keys=True, ensure_ascii=False))
