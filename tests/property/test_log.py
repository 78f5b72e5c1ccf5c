"""A cell's whole output, for any order of writing and reading."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core.log import CellLog
from jupyter_ddp.core.messages import Stream

PIECES = st.tuples(st.integers(0, 3), st.sampled_from(["stdout", "stderr"]), st.binary(max_size=20))


@given(st.lists(PIECES, max_size=40), st.sets(st.integers(0, 40)))
def test_a_stream_read_back_is_what_was_written(
    pieces: list[tuple[int, Stream, bytes]], reads: set[int]
) -> None:
    """Each stream equals the concatenation of its pieces, also when read between any two of them."""
    log = CellLog(io.BytesIO)
    whole: dict[tuple[int, Stream], bytes] = {}
    for number, (rank, stream, data) in enumerate(pieces):
        log.append(rank, stream, data)
        whole[rank, stream] = whole.get((rank, stream), b"") + data
        if number in reads:
            assert log.read(rank, stream) == whole[rank, stream]
    for (rank, stream), data in whole.items():
        assert log.read(rank, stream) == data
        assert log.size_bytes(rank, stream) == len(data)
