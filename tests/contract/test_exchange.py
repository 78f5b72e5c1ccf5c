"""The exchange against a node agent whose end of the socket the test holds: no process is started."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.topology import make_plan
from jupyter_ddp.kernel.exchange import Exchange

TIMEOUT_S = 10.0
"""How long a test waits for what should come at once."""
SURROUNDINGS = m.Surroundings({}, "/", [], "127.0.0.1", 1, "run", 0)
STALLED_BYTES = 8 * 1024 * 1024
"""More than any socket buffer of this system takes."""


class FakeNode:
    """A node as a launcher gives it, and the far end of its socket for the test."""

    def __init__(self) -> None:
        self.link, self.far = socket.socketpair()
        self.far.settimeout(TIMEOUT_S)
        self.closed = threading.Event()
        self._reader = codec.FrameReader()
        self._orders: list[m.KernelToNode] = []

    def obituary(self) -> str:
        return "the node agent was killed by signal 9"

    def close(self) -> None:
        self.link.close()
        self.closed.set()

    def says(self, *messages: m.Message) -> None:
        self.far.sendall(b"".join(map(codec.encode, messages)))

    def next_order(self) -> m.KernelToNode:
        while not self._orders:
            data = self.far.recv(1 << 20)
            assert data, "the exchange has closed its end"
            self._orders += [codec.decode(codec.to_node, body) for body in self._reader.feed(data)]
        return self._orders.pop(0)


class Heard(queue.Queue[Any]):
    """What a callback was called with, in order."""

    def next(self) -> Any:
        return self.get(timeout=TIMEOUT_S)


class ScriptedPool(p.Pool):
    """Answers each event as the test says, and keeps a clock as the test sets it."""

    def __init__(self, answer: Callable[[ev.Event], list[ev.Effect]]) -> None:
        super().__init__()
        self._answer = answer
        self.handled = Heard()
        self.deadline: float | None = None

    @property
    def next_deadline(self) -> float | None:
        return self.deadline

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        if isinstance(event, ev.Ticked):
            self.deadline = None
        self.handled.put((event, now))
        return self._answer(event)

    def next_event(self) -> ev.Event:
        event: ev.Event = self.handled.next()[0]
        return event


class Rig:
    """An exchange, its fake node, and all that it tells."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.effects, self.messages = Heard(), Heard()
        self._exchange: Exchange | None = None

    def connect(
        self,
        pool: p.Pool,
        on_effect: Callable[[ev.Effect], None] | None = None,
        on_message: Callable[[m.NodeToKernel], None] | None = None,
    ) -> Exchange:
        self._exchange = Exchange(
            pool, [self.node], on_effect or self.effects.put, on_message or self.messages.put
        )
        return self._exchange

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self.node.close()
        self.node.far.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def silent(_: ev.Event) -> list[ev.Effect]:
    return []


def order(cell: int, source: str = "pass") -> ev.SendToNodes:
    return ev.SendToNodes((0,), m.Tell([0], m.RunCell(cell, source)))


def cell(number: int, source: str = "pass") -> ev.CellRequested:
    return ev.CellRequested(number, (0,), source, count=1)


def sends_cells(event: ev.Event) -> list[ev.Effect]:
    """Each cell that is asked for goes out as an order."""
    return [order(event.cell, event.source)] if isinstance(event, ev.CellRequested) else []


def test_a_pool_comes_up_and_runs_a_cell(rig: Rig) -> None:
    """Requests become orders, messages become effects, and the callbacks hear of both in order."""
    exchange = rig.connect(p.Pool())
    exchange.post(ev.StartRequested(make_plan(1, []), SURROUNDINGS))
    assert isinstance(rig.node.next_order(), m.StartRanks)
    rig.node.says(m.WorkerForked(0, 4711), m.WorkerConnected(0, 0, 0, 0, 4711))
    formed = rig.node.next_order()
    assert isinstance(formed, m.Tell)
    assert isinstance(formed.command, m.FormGroup)
    rig.node.says(m.GroupFormed(0, formed.command.generation, 0, 1, 0.01))
    assert rig.effects.next() == ev.StartFinished()
    exchange.post(cell(1))
    assert isinstance(rig.node.next_order(), m.Tell)
    said = [m.Output(0, 1, 1, 2, "stdout", 0, b"hello"), m.CellFinished(0, 1, 1, 3, "ok", 0.1)]
    rig.node.says(*said)
    assert rig.effects.next() == ev.CellEnded(1, {0: "ok"})
    heard = [rig.messages.next() for _ in range(5)]
    assert heard[3:] == said


def test_the_order_of_everything_is_kept(rig: Rig) -> None:
    """500 requests leave in their order, and 500 messages arrive in theirs."""
    exchange = rig.connect(ScriptedPool(sends_cells))
    for number in range(1, 501):
        exchange.post(cell(number))
    sent = [rig.node.next_order() for _ in range(500)]
    assert sent == [order(number).message for number in range(1, 501)]
    said = [m.Output(0, 1, 1, seq, "stdout", 0, b"x") for seq in range(500)]
    rig.node.says(*said)
    assert [rig.messages.next() for _ in range(500)] == said


def test_a_message_is_heard_before_what_it_causes(rig: Rig) -> None:
    """Who waits for a cell's end finds all of its output in the record."""
    calls = Heard()
    ended = ev.CellEnded(1, {0: "ok"})
    pool = ScriptedPool(lambda event: [ended] if isinstance(event, m.CellFinished) else [])
    rig.connect(pool, calls.put, calls.put)
    said = [m.Output(0, 1, 1, 0, "stdout", 0, b"x"), m.CellFinished(0, 1, 1, 1, "ok", 0.1)]
    rig.node.says(*said)
    assert [calls.next() for _ in range(3)] == [*said, ended]


def test_a_message_in_pieces(rig: Rig) -> None:
    """However the bytes arrive, a message is heard once it is whole."""
    rig.connect(ScriptedPool(silent))
    message = m.Output(0, 1, 1, 0, "stdout", 0, b"in pieces")
    for at, byte in enumerate(codec.encode(message)):
        assert rig.messages.empty(), f"heard after {at} bytes"
        rig.node.far.sendall(bytes([byte]))
    assert rig.messages.next() == message


def test_only_what_is_an_event_reaches_the_pool(rig: Rig) -> None:
    """Output and notices are for the record; the pool hears of membership and ends alone."""
    pool = ScriptedPool(silent)
    rig.connect(pool)
    rig.node.says(
        m.NodeReady(m.PROTOCOL_VERSION, 1, "here", []),
        m.Output(0, 1, 1, 0, "stdout", 0, b"x"),
        m.Preloaded("torch", 1.0),
        m.WorkerForked(0, 4711),
    )
    assert pool.next_event() == m.WorkerForked(0, 4711)
    assert rig.messages.qsize() == 4


@pytest.mark.parametrize(
    "last",
    [
        b"",
        codec.encode(m.WorkerForked(0, 1))[:-1],
        struct.pack("<I", 5) + b"\xc1\xff\xff\xff\xff",
        struct.pack("<I", codec.MAX_FRAME_BYTES + 1),
        codec.encode(m.EndWorker()),
    ],
    ids=["end of file", "half a frame", "no MessagePack", "a frame too long", "an order, not a message"],
)
def test_a_node_that_ends_or_talks_nonsense_is_lost_once(rig: Rig, last: bytes) -> None:
    """The pool hears NodeLost with the obituary after all that was said before, and the exchange says so."""
    pool = ScriptedPool(lambda event: [ev.Announced("lost")] if isinstance(event, ev.NodeLost) else [])
    exchange = rig.connect(pool)
    assert not exchange.lost
    rig.node.far.sendall(codec.encode(m.WorkerForked(0, 4711)) + last)
    rig.node.far.shutdown(socket.SHUT_WR)
    assert pool.next_event() == m.WorkerForked(0, 4711)
    assert pool.next_event() == ev.NodeLost(0, "the node agent was killed by signal 9")
    assert rig.effects.next() == ev.Announced("lost")
    assert exchange.lost
    exchange.post(cell(1))
    assert pool.next_event() == cell(1)  # the thread lives on, and does not tell it twice


def test_an_order_to_a_node_that_is_gone_loses_it(rig: Rig) -> None:
    """A write that fails is as good as an end of file."""
    pool = ScriptedPool(sends_cells)
    exchange = rig.connect(pool)
    rig.node.far.close()
    exchange.post(cell(1))
    kinds = {type(pool.next_event()) for _ in range(2)}
    assert kinds == {ev.CellRequested, ev.NodeLost}
    assert exchange.lost


def test_a_deadline_ticks_when_it_is_due(rig: Rig) -> None:
    """Without any traffic the pool hears Ticked: at the time it named, or very soon after, never before."""
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)
    due = time.monotonic() + 0.05
    pool.deadline = due
    exchange.post(ev.InterruptRequested())  # the exchange looks at the deadline after each event
    assert pool.next_event() == ev.InterruptRequested()
    event, now = pool.handled.next()
    assert event == ev.Ticked()
    assert due <= now < due + 1.0


def test_a_deadline_that_has_passed_ticks_before_anything_new(rig: Rig) -> None:
    """A clock that is late is caught up with at once."""
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)
    pool.deadline = time.monotonic() - 100
    exchange.post(ev.InterruptRequested())
    assert [pool.next_event() for _ in range(2)] == [ev.InterruptRequested(), ev.Ticked()]


def test_a_reader_that_does_not_read_blocks_nobody(rig: Rig) -> None:
    """`post` returns at once, the exchange goes on hearing, and all is written when the reader reads."""
    pool = ScriptedPool(sends_cells)
    exchange = rig.connect(pool)
    big = "#" * STALLED_BYTES
    began = time.monotonic()
    for number in range(1, 4):
        exchange.post(cell(number, big))
    assert time.monotonic() - began < 1.0
    for number in range(1, 4):
        assert pool.next_event() == cell(number, big)
    rig.node.says(m.WorkerForked(0, 4711))  # heard while three orders wait to be written
    assert pool.next_event() == m.WorkerForked(0, 4711)
    orders = [rig.node.next_order() for _ in range(3)]
    assert orders == [order(number, big).message for number in range(1, 4)]


def test_post_from_many_threads_loses_nothing(rig: Rig) -> None:
    """Eight threads post 100 events each; each thread's own order is kept."""
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)

    def post_all(thread: int) -> None:
        for number in range(100):
            exchange.post(cell(1000 * thread + number))

    threads = [threading.Thread(target=post_all, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    seen = [pool.handled.next()[0].cell for _ in range(800)]
    for thread in threads:
        thread.join(TIMEOUT_S)
    for t in range(8):
        assert [number for number in seen if number // 1000 == t] == [1000 * t + n for n in range(100)]


def test_close_ends_the_thread_and_the_node(rig: Rig) -> None:
    """The node is closed, its peer sees an end of file; a second time is harmless; conftest counts."""
    exchange = rig.connect(ScriptedPool(silent))
    exchange.close()
    exchange.close()
    assert rig.node.closed.is_set()
    assert rig.node.far.recv(1) == b""
    assert not [t for t in threading.enumerate() if t.name == "jupyter_ddp exchange"]


def test_close_with_a_stalled_reader_and_a_far_deadline(rig: Rig) -> None:
    """Neither keeps the thread."""
    pool = ScriptedPool(sends_cells)
    exchange = rig.connect(pool)
    exchange.post(cell(1, "#" * STALLED_BYTES))
    assert isinstance(pool.next_event(), ev.CellRequested)
    pool.deadline = time.monotonic() + 3600
    began = time.monotonic()
    exchange.close()
    assert time.monotonic() - began < 2.0
    assert rig.node.closed.is_set()


def test_close_after_the_node_was_lost(rig: Rig) -> None:
    """What is lost is closed like what is not."""
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)
    rig.node.far.close()
    assert isinstance(pool.next_event(), ev.NodeLost)
    exchange.close()
    assert rig.node.closed.is_set()


def test_a_defect_of_ours_leaves_nobody_waiting(rig: Rig) -> None:
    """A callback that raises ends the exchange, and the pool hears why: every wait has an answer."""

    def on_message(_: m.NodeToKernel) -> None:
        raise RuntimeError("a defect")

    pool = ScriptedPool(lambda event: [ev.Announced(event.reason)] if isinstance(event, ev.NodeLost) else [])
    exchange = rig.connect(pool, on_message=on_message)
    rig.node.says(m.WorkerForked(0, 1))
    assert rig.effects.next() == ev.Announced("the exchange with the ranks failed: RuntimeError: a defect")
    assert exchange.lost
