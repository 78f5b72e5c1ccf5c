"""A cell's whole output in one file."""

from __future__ import annotations

import io
from typing import Any

import pytest

from jupyter_ddp.core import log as log_module
from jupyter_ddp.core.log import CellLog, Kept


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written goes to a file at once."""
    monkeypatch.setattr(log_module, "IN_MEMORY_BYTES", 0)


def test_streams_are_read_back_apart() -> None:
    """Pieces of two ranks and two streams, interleaved in the file, come back each by itself."""
    log = CellLog(io.BytesIO)
    log.append(0, "stdout", b"a")
    log.append(1, "stdout", b"X")
    log.append(0, "stderr", b"!")
    log.append(0, "stdout", b"b")
    assert log.read(0, "stdout") == Kept(b"ab", 0, b"")
    assert log.read(1, "stdout").head == b"X"
    assert log.read(0, "stderr").head == b"!"


def test_a_stream_that_wrote_nothing_is_empty() -> None:
    """A rank or stream that the log never heard of reads as no bytes."""
    assert CellLog(io.BytesIO).read(7, "stderr") == Kept(b"", 0, b"")


def test_reading_does_not_disturb_writing() -> None:
    """A read between two appends leaves the next append at the end of the file."""
    log = CellLog(io.BytesIO)
    log.append(0, "stdout", b"one")
    log.append(1, "stdout", b"two")
    assert log.read(0, "stdout").head == b"one"
    log.append(0, "stdout", b"three")
    assert log.read(0, "stdout").head == b"onethree"
    assert log.read(1, "stdout").head == b"two"


def test_one_streams_run_needs_one_entry() -> None:
    """A rank that prints a million lines on end costs one entry of the index, in head and tail."""
    log = CellLog(io.BytesIO, 4000)
    for _ in range(1000):
        log.append(3, "stdout", b"line\n")
    assert len(log._pieces[3, "stdout"]) == 1
    assert log._tail is not None
    assert len(log._tail._pieces) == 1


def test_the_index_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that take turns at each byte do not fill the memory with places of bytes."""
    monkeypatch.setattr(log_module, "MAX_PIECES", 10)
    log = CellLog(io.BytesIO)
    for number in range(1000):
        log.append(number % 2, "stdout", b"ab"[number % 2 : number % 2 + 1])
    assert log.read(0, "stdout") == Kept(b"aaaaa", 490, b"aaaaa")


def test_head_and_tail_are_kept() -> None:
    """With a quota of ten bytes the first five and the last five stay, over both ranks together."""
    log = CellLog(io.BytesIO, 10)
    log.append(0, "stdout", b"abc")
    log.append(1, "stdout", b"xyz")
    assert not CellLog(io.BytesIO, 10).full
    assert log.full
    log.append(0, "stdout", b"defghijklm")
    assert log.read(0, "stdout") == Kept(b"abc", 5, b"ijklm")
    assert log.read(1, "stdout") == Kept(b"xy", 1, b"")


def test_a_file_is_opened_when_there_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before it was opened is in it too; it is opened once."""
    monkeypatch.setattr(log_module, "IN_MEMORY_BYTES", 8)
    files: list[Any] = []

    def open_file() -> io.BytesIO:
        files.append(io.BytesIO())
        return files[-1]

    log = CellLog(open_file)
    log.append(0, "stdout", b"12345")
    assert files == []
    log.append(1, "stdout", b"67890")
    log.append(0, "stdout", b"x" * 100)
    assert log.read(0, "stdout").head == b"12345" + b"x" * 100
    assert [file.getvalue() for file in files] == [b"1234567890" + b"x" * 100]


def test_closing_closes_the_file(on_disk: None) -> None:
    """The log owns its file; what comes late for a closed log is dropped."""
    file = io.BytesIO()
    log = CellLog(lambda: file)
    log.append(0, "stdout", b"text")
    log.close()
    assert file.closed
    log.append(0, "stdout", b"late")
    assert log.read(0, "stdout") == Kept(b"", 0, b"")


def test_nothing_is_opened_for_a_silent_cell() -> None:
    """Most cells print nothing: they get no file."""
    log = CellLog(lambda: pytest.fail("opened"))
    assert log.read(0, "stdout").head == b""
    log.close()


def test_the_file_goes_with_the_log(on_disk: None) -> None:
    """A record that nobody holds any more leaves no descriptor behind."""
    file = io.BytesIO()
    log = CellLog(lambda: file)
    log.append(0, "stdout", b"text")
    del log
    assert file.closed
