"""What a rank's watcher says of its main thread, which is the test's own here."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
from jupyter_ddp.worker import watcher as module
from jupyter_ddp.worker.watcher import Watcher


class Clock:
    """The time module, with a monotonic clock that a test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class FakeOutbox:
    """Notes what is said."""

    cell = 1

    def __init__(self) -> None:
        self.said: list[tuple[type[m.FromRank], dict[str, Any]]] = []

    def say_aside(self, kind: type[m.FromRank], **fields: Any) -> None:
        self.said.append((kind, fields))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_how_long_it_has_been_in_one_place(clock: Clock) -> None:
    """From the first look at it there, however often it was looked at since."""
    outbox = FakeOutbox()
    journal = Journal(memoryview(bytearray(PAGE_BYTES)))
    watcher = Watcher(outbox, journal, lambda file: file == __file__)  # type: ignore[arg-type]  # all it needs of an outbox
    watcher.watch(True)
    for _ in range(60):
        clock.now += 0.25
        watcher.tick()
    began = 1000.25
    watcher.answer(m.Look(1, False))
    ((kind, fields),) = outbox.said
    assert kind is m.RankSeen
    assert fields["for_s"] == pytest.approx(clock.now - began)
