"""The exchange against a node agent whose end of the socket the test holds: no process is started."""

from __future__ import annotations

import queue
import signal
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

    def end_strays(self) -> None: ...

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


# --- who serves the links -----------------------------------------------------------------------------


class Waiting:
    """A thread that waits for an event as one that runs a cell does."""

    def __init__(self, exchange: Exchange, timeout_s: float = TIMEOUT_S) -> None:
        self.event = threading.Event()
        self.answer: bool | None = None
        self.took_s = 0.0
        self._exchange, self._timeout_s = exchange, timeout_s
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        began = time.monotonic()
        self.answer = self._exchange.wait(self.event, self._timeout_s)
        self.took_s = time.monotonic() - began

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def join(self) -> Waiting:
        self._thread.join(2 * TIMEOUT_S)
        assert not self._thread.is_alive()
        return self


def leads(exchange: Exchange, waiting: Waiting) -> None:
    """Until this thread serves the links."""
    deadline = time.monotonic() + TIMEOUT_S
    while exchange._leader != waiting.ident:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_waits_reads_the_links(rig: Rig) -> None:
    """A message is heard by the thread that waits for it, and by the exchange's own when nobody waits."""
    heard = Heard()
    exchange = rig.connect(ScriptedPool(silent), on_message=lambda _: heard.put(threading.get_ident()))
    waiting = Waiting(exchange)
    leads(exchange, waiting)
    rig.node.says(m.WorkerForked(0, 1))
    assert heard.next() == waiting.ident
    waiting.event.set()
    exchange.post(ev.InterruptRequested())  # by itself an event that is set wakes nobody who serves
    assert waiting.join().answer is True
    rig.node.says(m.WorkerForked(0, 1))
    assert heard.next() == exchange._thread.ident


def test_two_wait_and_the_first_leaves(rig: Rig) -> None:
    """When who served the links has what it waited for, the other is served on."""
    waits: list[Waiting] = []
    exchange = rig.connect(ScriptedPool(silent), on_message=lambda said: waits[said.rank].event.set())
    waits.append(Waiting(exchange))
    leads(exchange, waits[0])
    waits.append(Waiting(exchange))
    rig.node.says(m.WorkerForked(0, 1))
    assert waits[0].join().answer is True
    rig.node.says(m.WorkerForked(1, 1))
    assert waits[1].join().answer is True


def test_what_another_thread_brings_about_wakes_who_serves(rig: Rig) -> None:
    """A request of another thread that ends the wait ends it at once, not when the time is over."""
    waits: list[Waiting] = []
    pool = ScriptedPool(lambda event: [ev.Announced("so")] if isinstance(event, ev.StopRequested) else [])
    exchange = rig.connect(pool, on_effect=lambda _: waits[0].event.set())
    for ask in (exchange.submit, exchange.post):
        waits[:] = [Waiting(exchange)]
        leads(exchange, waits[0])
        ask(ev.StopRequested())
        assert waits[0].join().answer is True
        assert waits[0].took_s < TIMEOUT_S / 2


def test_a_deadline_set_by_another_thread_is_kept_by_who_serves(rig: Rig) -> None:
    """Whoever sleeps over the links when a deadline is set, it is kept."""
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)
    waiting = Waiting(exchange)
    leads(exchange, waiting)
    due = pool.deadline = time.monotonic() + 0.05
    exchange.post(ev.InterruptRequested())
    assert pool.next_event() == ev.InterruptRequested()
    event, now = pool.handled.next()
    assert event == ev.Ticked()
    assert due <= now < due + 1.0
    waiting.event.set()
    exchange.post(ev.InterruptRequested())
    waiting.join()


def test_a_deadline_outlives_who_served_when_it_was_set(rig: Rig) -> None:
    """The thread that waits leaves before the deadline that came up meanwhile: it is kept all the same."""
    pool = ScriptedPool(silent)

    def on_message(_: m.NodeToKernel) -> None:
        pool.deadline = time.monotonic() + 0.2

    exchange = rig.connect(pool, on_message=on_message)
    waiting = Waiting(exchange, timeout_s=0.1)
    leads(exchange, waiting)
    rig.node.says(m.WorkerForked(0, 1))
    assert waiting.join().answer is False
    assert [type(pool.next_event()) for _ in range(2)] == [m.WorkerForked, ev.Ticked]


def test_a_wait_ends_with_its_time(rig: Rig) -> None:
    """False, after as long as was said: also for who waits beside the one that serves."""
    exchange = rig.connect(ScriptedPool(silent))
    waits = [Waiting(exchange, timeout_s=0.1) for _ in range(3)]
    for waiting in waits:
        assert waiting.join().answer is False
        assert 0.1 <= waiting.took_s < 2.0


def test_close_ends_every_wait_of_who_serves(rig: Rig) -> None:
    """A thread that serves the links is let go of, and the exchange closes without it."""
    exchange = rig.connect(ScriptedPool(silent))
    waiting = Waiting(exchange)
    leads(exchange, waiting)
    began = time.monotonic()
    exchange.close()
    assert time.monotonic() - began < 2.0
    assert waiting.join().answer is False
    assert waiting.took_s < TIMEOUT_S / 2


def test_who_ordered_reads_the_answer(rig: Rig) -> None:
    """An answer that comes before the wait begins is left to it; events are handled meanwhile."""
    pool, done = ScriptedPool(silent), threading.Event()
    readers: list[int] = []

    def on_message(_: m.NodeToKernel) -> None:
        readers.append(threading.get_ident())
        done.set()

    exchange = rig.connect(pool, on_message=on_message)
    called: list[bool] = []
    exchange.order(cell(1), lambda: called.append(True))
    assert called == [True]
    assert pool.next_event() == cell(1)
    rig.node.says(m.Preloaded("torch", 1.0))
    exchange.post(cell(2))
    assert pool.next_event() == cell(2)  # the exchange's own thread has looked at what there was
    assert readers == []
    assert exchange.wait(done, TIMEOUT_S)
    exchange.rest()
    assert readers == [threading.get_ident()]


def test_an_order_that_nobody_waits_for(rig: Rig) -> None:
    """After `rest` the exchange's own thread reads what comes."""
    exchange = rig.connect(ScriptedPool(silent))
    exchange.order(cell(1), lambda: None)
    exchange.rest()
    exchange.rest()
    rig.node.says(m.Preloaded("torch", 1.0))
    assert rig.messages.next() == m.Preloaded("torch", 1.0)


def test_a_request_to_a_closed_exchange_changes_nothing(rig: Rig) -> None:
    """Another thread may have looked at the cluster just before it was closed."""
    pool = ScriptedPool(sends_cells)
    exchange = rig.connect(pool)
    exchange.close()
    exchange.submit(cell(1))
    exchange.post(cell(2))
    exchange.order(cell(3), lambda: pytest.fail("it was called"))
    exchange.rest()
    assert exchange.wait(threading.Event(), 0.01) is False
    assert pool.handled.empty()


def test_close_among_requests_of_many_threads(rig: Rig) -> None:
    """Whenever it is closed, no request raises and none hangs."""
    failures: list[BaseException] = []
    for _ in range(20):
        node = FakeNode()
        exchange = Exchange(ScriptedPool(sends_cells), [node], lambda _: None, lambda _: None)
        started = threading.Barrier(5)

        def ask(exchange: Exchange = exchange, started: threading.Barrier = started) -> None:
            started.wait(TIMEOUT_S)
            try:
                for number in range(200):
                    exchange.submit(cell(number))
                    exchange.wait(threading.Event(), 0)
                    exchange.order(cell(number), lambda: None)
                    exchange.rest()
            except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(TIMEOUT_S)
        exchange.close()
        for thread in threads:
            thread.join(TIMEOUT_S)
        node.far.close()
    assert failures == []


@pytest.mark.parametrize("pause_s", [0.0001, 0.0005, 0.002])
def test_interrupts_at_every_moment_of_a_wait(rig: Rig, pause_s: float) -> None:
    """A handler that posts whenever it is called deadlocks with nothing, and every event is handled once."""
    done = threading.Event()
    count = 300
    posted = 0
    pool = ScriptedPool(silent)
    exchange = rig.connect(pool, on_message=lambda _: None)

    def on_alarm(*_: object) -> None:
        nonlocal posted
        if posted < count:
            posted += 1
            exchange.post(cell(posted))
        else:
            done.set()

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, pause_s, pause_s)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not done.is_set() and time.monotonic() < deadline:
            rig.node.says(m.WorkerForked(0, 1))
            exchange.submit(ev.InterruptRequested())
            exchange.wait(done, 0.001)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done.is_set()
    exchange.submit(ev.StopRequested())  # behind all that was posted
    cells: list[int] = []
    while not isinstance(event := pool.next_event(), ev.StopRequested):
        cells += [event.cell] if isinstance(event, ev.CellRequested) else []
    assert sorted(cells) == list(range(1, count + 1))  # a handler may be interrupted by itself


def test_a_handler_of_the_users_that_raises_ends_the_wait_alone(rig: Rig) -> None:
    """`signal.alarm` around a cell, say: the exception comes through, and the exchange serves on."""

    def on_alarm(*_: object) -> None:
        raise TimeoutError

    pool = ScriptedPool(silent)
    exchange = rig.connect(pool)
    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeoutError):
            exchange.wait(threading.Event(), TIMEOUT_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    rig.node.says(m.WorkerForked(0, 1))
    assert pool.next_event() == m.WorkerForked(0, 1)
    assert not exchange.lost


def test_eight_threads_run_cells(rig: Rig) -> None:
    """One at a time: each of their cells ends or is told `busy`, and each hears of its own."""
    ended: dict[int, threading.Event] = {number: threading.Event() for number in range(1, 401)}
    outcomes: dict[int, list[str]] = {number: [] for number in ended}

    def on_effect(effect: ev.Effect) -> None:
        if isinstance(effect, ev.CellEnded | ev.CellRefused):
            outcomes[effect.cell].append(getattr(effect, "reason", "ended"))
            ended[effect.cell].set()

    exchange = rig.connect(p.Pool(), on_effect=on_effect)
    exchange.submit(ev.StartRequested(make_plan(1, []), SURROUNDINGS))
    rig.node.next_order()
    rig.node.says(m.WorkerForked(0, 1), m.WorkerConnected(0, 0, 0, 0, 1))
    rig.node.next_order()
    rig.node.says(m.GroupFormed(0, 1, 0, 1, 0.01))

    def rank() -> None:
        """Ends each cell as it comes."""
        while True:
            try:
                order = rig.node.next_order()
            except (AssertionError, OSError):
                return
            if isinstance(order, m.Tell) and isinstance(order.command, m.RunCell):
                rig.node.says(m.CellFinished(0, 1, order.command.cell, 0, "ok", 0.0))

    def run(first: int) -> None:
        for number in range(first, first + 50):
            exchange.submit(cell(number))
            while not exchange.wait(ended[number], 1.0):
                assert time.monotonic() < deadline

    deadline = time.monotonic() + 3 * TIMEOUT_S
    server = threading.Thread(target=rank)
    server.start()
    threads = [threading.Thread(target=run, args=(first,)) for first in range(1, 401, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * TIMEOUT_S)
    exchange.close()
    server.join(TIMEOUT_S)
    assert all(len(told) == 1 for told in outcomes.values())
    words = {told[0].partition(":")[0] for told in outcomes.values()}
    assert words <= {"ended", "busy"}
    assert "ended" in words


@pytest.mark.parametrize("ended_by", ["a message", "a request", "close"])
def test_waiting_until_something_holds_of_the_pool(rig: Rig, ended_by: str) -> None:
    """It ends with the event that brings it about, whoever handles that, and when the exchange is closed."""
    formed, asked = threading.Event(), threading.Event()

    def form(event: ev.Event) -> list[ev.Effect]:
        if isinstance(event, m.GroupFormed | ev.StopRequested):
            formed.set()
        return []

    def holds() -> bool:
        asked.set()
        return formed.is_set()

    exchange = rig.connect(ScriptedPool(form))
    answers = Heard()
    thread = threading.Thread(target=lambda: answers.put(exchange.wait_until(holds, 2 * TIMEOUT_S)))
    thread.start()
    assert asked.wait(TIMEOUT_S)
    rig.node.says(m.WorkerForked(0, 1))  # which does not bring it about
    if ended_by == "a message":
        rig.node.says(m.GroupFormed(0, 1, 0, 0, 0.01))
    elif ended_by == "a request":
        exchange.submit(ev.StopRequested())
    else:
        exchange.close()
    assert answers.next() is True
    thread.join(TIMEOUT_S)
    assert exchange.wait_until(lambda: True, 0) is True
    assert exchange._watches == []


def test_what_never_holds_of_the_pool(rig: Rig) -> None:
    """The wait ends when its time is over, and says so."""
    exchange = rig.connect(ScriptedPool(silent))
    assert exchange.wait_until(lambda: False, 0.05) is False
    assert exchange._watches == []
