"""What keeps the panels of a cluster up to date, over a cluster that only notes what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.kernel.panel import Feed, Panel
from jupyter_ddp.kernel.roster import RankStatus
from jupyter_ddp.view.panel import CLOSED

TIMEOUT_S = 10.0


class FakeCluster:
    """No ranks; what its methods do is what a test has put there."""

    backend, phase = "gloo", "ready"

    def __init__(self) -> None:
        self.last_cell = 0
        self.pids: list[int] = []
        self.asked: list[str] = []
        self.may_stop = threading.Event()
        self.refusal = ""

    def status(self) -> list[Any]:
        return [RankStatus(rank, pid, "cpu", "idle") for rank, pid in enumerate(self.pids)]

    def watch_usage(self, interval_s: float) -> None:
        self.asked.append(f"watch {interval_s:g}")

    def interrupt(self) -> None:
        self.asked.append("interrupt")

    def restart(self) -> str:
        raise PoolError("the pool cannot be started")

    def stop(self) -> None:
        assert self.may_stop.wait(TIMEOUT_S)

    def where(self) -> str:
        return "rank 0 is idle"

    def heal(self) -> str:
        return "nothing to heal"


class Screen:
    """What one panel is told, and by whom."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.told: list[tuple[int, dict[str, Any]]] = []
        self._more = threading.Condition()
        panel.observe(self._take, "state")

    def _take(self, change: Any) -> None:
        with self._more:
            self.told.append((threading.get_ident(), change.new))
            self._more.notify_all()

    def wait(self, **answer: Any) -> None:
        """Until the panel answers so."""
        self.wait_for(lambda state: answer.items() <= state["answer"].items())

    def wait_for(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        with self._more:
            assert self._more.wait_for(lambda: holds(self.panel.state), TIMEOUT_S), self.panel.state


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def feed(cluster: FakeCluster) -> Iterator[Feed]:
    feed = Feed(cluster)
    yield feed
    cluster.may_stop.set()
    feed.close()


def test_every_panel_says_what_a_button_did(feed: Feed, cluster: FakeCluster) -> None:
    """While it is done and after; a panel that is opened meanwhile says it too."""
    screens = [Screen(feed.open()), Screen(feed.open())]
    feed.act("stop", "a 1")
    for screen in screens:
        screen.wait(busy="stopping", ask="a 1")
    late = feed.open()
    assert late.state["answer"]["busy"] == "stopping"
    cluster.may_stop.set()
    for screen in [*screens, Screen(late)]:
        screen.wait(text="the pool was stopped", busy="", ask="a 1")


def test_one_button_at_a_time_but_interrupt_always(feed: Feed, cluster: FakeCluster) -> None:
    """What came second is refused in words, and can be pressed again."""
    screen = Screen(feed.open())
    feed.act("stop", "a 1")
    screen.wait(busy="stopping")
    feed.act("heal", "a 2")
    screen.wait(text="another button's work is not done yet; wait for it", ask="a 2")
    feed.act("interrupt", "a 3")
    screen.wait(ask="a 3")
    assert "interrupt" in cluster.asked
    cluster.may_stop.set()
    screen.wait(text="the pool was stopped")
    feed.act("heal", "a 4")
    screen.wait(text="nothing to heal", ask="a 4")


def test_a_refusal_is_shown_in_its_words(feed: Feed) -> None:
    screen = Screen(feed.open())
    feed.act("restart", "a 1")
    screen.wait(text="the pool cannot be started", busy="")


def test_an_unknown_button_does_nothing(feed: Feed) -> None:
    panel = feed.open()
    feed.act("format the disk", "a 1")
    assert panel.state["answer"]["ask"] == ""


def test_a_new_panel_begins_without_old_news(feed: Feed) -> None:
    """The pool that was stopped may run again."""
    screen = Screen(feed.open())
    feed.act("where", "a 1")
    screen.wait(text="rank 0 is idle")
    assert feed.open().state["answer"]["text"] == ""
    screen.wait(text="")


def test_an_answer_goes_when_it_is_old_news(feed: Feed, cluster: FakeCluster) -> None:
    """With the next cell and with other processes; of an interrupt, also when its cell has ended."""
    cluster.last_cell, cluster.phase, cluster.pids = 1, "running", [7, 8]
    screen = Screen(feed.open())
    feed.act("interrupt", "a 1")
    screen.wait(text="interrupt sent; press again to go one step further")
    cluster.phase = "ready"
    feed.refresh()
    screen.wait(text="", ask="a 1")
    for change, phase in (({"last_cell": 2}, "running"), ({"pids": [7, 9]}, "ready")):
        feed.act("where", f"a {change}")
        screen.wait(text="rank 0 is idle")
        cluster.phase = phase  # what the ranks did may still be read when they have gone on
        feed.refresh()
        screen.wait_for(lambda state: phase in state["title"])  # noqa: B023 - it is used up in this round
        screen.wait(text="rank 0 is idle", ask=f"a {change}")
        vars(cluster).update(change)
        feed.refresh()
        screen.wait(text="", ask=f"a {change}")


def test_a_panel_that_cannot_be_told_does_not_end_the_others(feed: Feed) -> None:
    """A user may observe a panel, with code that raises."""

    def spoil(_: Any) -> None:
        raise ZeroDivisionError

    spoilt, good = feed.open(), Screen(feed.open())
    spoilt.observe(spoil, "state")
    feed.act("where", "a 1")
    good.wait(text="rank 0 is idle")
    feed.act("heal", "a 2")
    good.wait(text="nothing to heal")


def test_a_defect_is_said_and_the_next_panel_works(
    feed: Feed, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left before a panel that has no more news, and nothing is sampled for it."""
    screen = Screen(feed.open())
    with monkeypatch.context() as broken:
        broken.setattr(cluster, "status", lambda: 1 / 0)
        feed.refresh()
        screen.wait_for(lambda state: "ZeroDivisionError" in state["title"])
        assert feed._thread is not None
        feed._thread.join(TIMEOUT_S)
    assert cluster.asked[-1] == "watch 0"
    again = Screen(feed.open())
    feed.act("where", "a 1")
    again.wait(text="rank 0 is idle")
    assert "no pool" in again.panel.state["title"]


def test_one_thread_tells_the_panels(feed: Feed) -> None:
    """The widgets' library has no locks."""
    screens = [Screen(feed.open()), Screen(feed.open())]
    for number, command in enumerate(("where", "heal", "interrupt", "where")):
        feed.act(command, f"a {number}")
        for screen in screens:
            screen.wait(ask=f"a {number}", busy="")
    tellers = {teller for screen in screens for teller, _ in screen.told}
    assert len(tellers) == 1
    assert threading.get_ident() not in tellers


def test_a_closed_feed_says_so_and_lets_go(cluster: FakeCluster) -> None:
    """Nobody looks any more, and the last answer is gone with the pool."""
    feed = Feed(cluster)
    screen = Screen(feed.open())
    feed.act("where", "a 1")
    screen.wait(text="rank 0 is idle")
    feed.close()
    assert screen.panel.state["title"] == CLOSED
    assert screen.panel.state["answer"]["text"] == ""
    assert cluster.asked[0] == "watch 1"
    assert cluster.asked[-1] == "watch 0"
    for thread in threading.enumerate():
        if "panel" in thread.name:
            thread.join(TIMEOUT_S)  # the button's has said all, and is about to end
            assert not thread.is_alive()
