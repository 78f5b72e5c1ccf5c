"""A cell's whole output in one file."""

from __future__ import annotations

import io
import tempfile

import pytest

from jupyter_ddp.core.log import CellLog


def test_streams_are_read_back_apart() -> None:
    """Pieces of two ranks and two streams, interleaved in the file, come back each by itself."""
    log = CellLog(io.BytesIO)
    log.append(0, "stdout", b"a")
    log.append(1, "stdout", b"X")
    log.append(0, "stderr", b"!")
    log.append(0, "stdout", b"b")
    assert log.read(0, "stdout") == b"ab"
    assert log.read(1, "stdout") == b"X"
    assert log.read(0, "stderr") == b"!"
    assert log.size_bytes(0, "stdout") == 2


def test_a_stream_that_wrote_nothing_is_empty() -> None:
    """A rank or stream that the log never heard of reads as no bytes."""
    log = CellLog(io.BytesIO)
    assert log.read(7, "stderr") == b""
    assert log.size_bytes(7, "stderr") == 0


def test_reading_does_not_disturb_writing() -> None:
    """A read between two appends leaves the next append at the end of the file."""
    log = CellLog(io.BytesIO)
    log.append(0, "stdout", b"one")
    log.append(1, "stdout", b"two")
    assert log.read(0, "stdout") == b"one"
    log.append(0, "stdout", b"three")
    assert log.read(0, "stdout") == b"onethree"
    assert log.read(1, "stdout") == b"two"


def test_one_streams_run_needs_one_entry() -> None:
    """A rank that prints a million lines on end costs one entry of the index."""
    log = CellLog(io.BytesIO)
    for _ in range(1000):
        log.append(3, "stdout", b"line\n")
    assert len(log._pieces[3, "stdout"]) == 1


def test_a_file_that_moves_to_disk() -> None:
    """The file may be a spooled one: what was written before it moved is still there."""
    with tempfile.SpooledTemporaryFile(max_size=8) as file:
        log = CellLog(lambda: file)  # type: ignore[arg-type,return-value]
        log.append(0, "stdout", b"12345")
        log.append(1, "stdout", b"67890")
        log.append(0, "stdout", b"x" * 100)
        assert log.read(0, "stdout") == b"12345" + b"x" * 100
        assert log.read(1, "stdout") == b"67890"


def test_closing_closes_the_file() -> None:
    """The log owns its file."""
    file = io.BytesIO()
    log = CellLog(lambda: file)
    log.append(0, "stdout", b"text")
    log.close()
    assert file.closed


def test_nothing_is_opened_for_a_silent_cell() -> None:
    """Most cells print nothing: they get no file."""
    log = CellLog(lambda: pytest.fail("opened"))
    assert log.read(0, "stdout") == b""
    log.close()


def test_the_file_goes_with_the_log() -> None:
    """A record that nobody holds any more leaves no descriptor behind."""
    file = io.BytesIO()
    log = CellLog(lambda: file)
    log.append(0, "stdout", b"text")
    del log
    assert file.closed
