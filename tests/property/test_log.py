"""A cell's whole output, for any order of writing and reading, any quota, and any failure of its file."""

from __future__ import annotations

import errno
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core import log as log_module
from jupyter_ddp.core.log import CellLog
from jupyter_ddp.core.messages import Stream

PIECES = st.tuples(st.integers(0, 3), st.sampled_from(["stdout", "stderr"]), st.binary(max_size=20))
Pieces = list[tuple[int, Stream, bytes]]


class SmallDisk(io.BytesIO):
    """A file that takes so many bytes and no more, a few at a time."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__()
        self._capacity = capacity_bytes

    def write(self, data: Any, /) -> int:
        if self.tell() >= self._capacity:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[: min(7, self._capacity - self.tell())])


@pytest.fixture(autouse=True, scope="module")
def _little_memory() -> Any:
    """Files are opened early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "IN_MEMORY_BYTES", 32)
        patch.setattr(log_module, "WITHOUT_FILE_BYTES", 50)
        yield


def written(pieces: Pieces) -> dict[tuple[int, Stream], bytes]:
    whole: dict[tuple[int, Stream], bytes] = {}
    for rank, stream, data in pieces:
        whole[rank, stream] = whole.get((rank, stream), b"") + data
    return whole


@given(st.lists(PIECES, max_size=40), st.sets(st.integers(0, 40)))
def test_a_stream_read_back_is_what_was_written(pieces: Pieces, reads: set[int]) -> None:
    """Each stream equals the concatenation of its pieces, also when read between any two of them."""
    log = CellLog(io.BytesIO)
    for number, (rank, stream, data) in enumerate(pieces):
        log.append(rank, stream, data)
        if number in reads:
            so_far = written(pieces[: number + 1])[rank, stream]
            assert log.read(rank, stream) == log_module.Kept(so_far, 0, b"")
    for (rank, stream), data in written(pieces).items():
        assert log.read(rank, stream).head == data


@given(st.lists(PIECES, max_size=60), st.integers(0, 200))
def test_beyond_the_quota_head_and_tail_are_kept(pieces: Pieces, quota: int) -> None:
    """The beginning and the end are the stream's own, what is missing is counted, and the quota is kept."""
    log = CellLog(io.BytesIO, quota)
    for rank, stream, data in pieces:
        log.append(rank, stream, data)
    kept_bytes = 0
    for (rank, stream), data in written(pieces).items():
        kept = log.read(rank, stream)
        assert data.startswith(kept.head)
        assert data.endswith(kept.tail)
        assert len(kept.head) + kept.missing_bytes + len(kept.tail) == len(data)
        kept_bytes += len(kept.head) + len(kept.tail)
    total = sum(len(data) for _, _, data in pieces)
    assert kept_bytes == min(total, quota)


@given(st.lists(PIECES, max_size=60), st.integers(0, 300), st.integers(0, 200))
def test_when_the_disk_is_full_output_goes_on_in_memory(pieces: Pieces, quota: int, disk: int) -> None:
    """Whenever the file stops taking bytes: the head stays, the last is kept, and the reason is known."""
    log = CellLog(lambda: SmallDisk(disk), quota)
    for rank, stream, data in pieces:
        log.append(rank, stream, data)
    for (rank, stream), data in written(pieces).items():
        kept = log.read(rank, stream)
        assert data.startswith(kept.head[: len(data) if not log.failure else min(disk, quota // 2)])
        assert data.endswith(kept.tail)
        assert len(kept.head) + kept.missing_bytes + len(kept.tail) == len(data)
    if log.failure is not None:
        assert log.failure.errno == errno.ENOSPC


@given(st.lists(PIECES, max_size=60))
def test_when_no_file_can_be_opened_the_last_is_kept_in_memory(pieces: Pieces) -> None:
    """No descriptor is left: what memory takes is kept, whole where it is little."""

    def refuse() -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    log = CellLog(refuse)
    for rank, stream, data in pieces:
        log.append(rank, stream, data)
    total = sum(len(data) for _, _, data in pieces)
    for (rank, stream), data in written(pieces).items():
        kept = log.read(rank, stream)
        assert data.startswith(kept.head)
        assert data.endswith(kept.tail)
        assert len(kept.head) + kept.missing_bytes + len(kept.tail) == len(data)
        assert not kept.missing_bytes or total > 50
