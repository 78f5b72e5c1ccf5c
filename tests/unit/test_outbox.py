"""When a rank's output is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
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
