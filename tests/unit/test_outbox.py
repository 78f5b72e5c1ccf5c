"""When a rank's output is sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.worker.interrupts import InterruptGate
from jupyter_ddp.worker.outbox import Outbox


class Desk:
    """An outbox, and what has come of it at the other end of its socket."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.reader = codec.FrameReader()
        self.outbox = Outbox(self.near, Journal(memoryview(bytearray(PAGE_BYTES))), InterruptGate())

    def sent(self) -> list[tuple[int, bytes]]:
        try:
            data = self.far.recv(65536)
        except BlockingIOError:
            return []
        messages = [codec.decode(codec.from_rank, body) for body in self.reader.feed(data)]
        return [(message.cell, message.data) for message in messages if isinstance(message, m.Output)]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.near.close()
    desk.far.close()


def test_a_cells_first_output_is_sent_at_once(desk: Desk) -> None:
    """Nobody else may be able to send it later: what comes next may hold the GIL. What follows soon waits."""
    for cell in (1, 2):
        desk.outbox.begin_cell(cell)
        desk.outbox.write("stdout", b"on")  # `print` writes the line's end by itself
        assert desk.sent() == []
        desk.outbox.write("stdout", b"\n")
        assert desk.sent() == [(cell, b"on\n")]
        desk.outbox.write("stdout", b"more\n")
        assert desk.sent() == []
        desk.outbox.flush()
        assert desk.sent() == [(cell, b"more\n")]


def test_what_is_late_takes_no_number(desk: Desk) -> None:
    """A thread of cell 1 prints while cell 2 runs: its line is cell 1's, and cell 2 misses nothing."""
    late: list[int] = []
    desk.outbox.cell_of_thread = lambda ident: 1 if ident in late else None

    def print_late() -> None:
        late.append(threading.get_ident())
        desk.outbox.write("stdout", b"late")
        desk.outbox.say(m.Notice, text="late too")

    desk.outbox.begin_cell(2)
    desk.outbox.write("stdout", b"a")
    thread = threading.Thread(target=print_late)
    thread.start()
    thread.join()
    desk.outbox.write("stdout", b"b")
    desk.outbox.flush()
    messages = [codec.decode(codec.from_rank, body) for body in desk.reader.feed(desk.far.recv(65536))]
    assert [message.cell for message in messages] == [2, 1, 1, 2]
    record = CellRecord(2, [0])
    for message in messages:
        if message.cell == 2:
            record.fold(message)
    assert (record[0].stdout, record[0].lost_messages) == ("ab", 0)
