"""`%ddp log` and `CellRecord.save`: what ranks wrote, in a file."""

from __future__ import annotations

import io
import itertools
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from jupyter_ddp.core import log as log_module
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.log import CellLog
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.saved_log import write
from jupyter_ddp.kernel.saved_logs import save

SEQ = itertools.count()


def record(
    *texts: tuple[int, m.Stream, str], cell: int = 1, prompt: int = 0, quota: int = 1000
) -> CellRecord:
    made = CellRecord(cell, range(12), io.BytesIO, threading.RLock(), quota)
    made.prompt = prompt
    for rank, stream, text in texts:
        made.fold(m.Output(rank, 1, cell, next(SEQ), stream, 0, text.encode()))
    return made


def test_sections_by_rank_and_stream(tmp_path: Path) -> None:
    """Ranks by number, standard output first, whole and not interleaved; lines are counted, headings not."""
    ended = record(
        (10, "stdout", "ten\n"), (2, "stderr", "careful\n"), (2, "stdout", "a\nb"), (10, "stdout", "more\n")
    )
    saved = ended.save(tmp_path / "log")
    text = (tmp_path / "log").read_text()
    assert text == "[rank 2]\na\nb\n\n[rank 2 · stderr]\ncareful\n\n[rank 10]\nten\nmore\n"
    assert saved == (5, len(text.encode()))
    assert str(saved) == "5 lines, 61 bytes"


def test_what_was_not_kept_is_said(tmp_path: Path) -> None:
    """Beyond the quota the file has head and tail, as `.stdout` has."""
    full = record(*((0, "stdout", f"line {n:04}\n") for n in range(100)), quota=400)
    full.save(tmp_path / "log")
    text = (tmp_path / "log").read_text()
    assert text == f"[rank 0]\n{full[0].stdout}"
    assert "… 600 bytes were not kept …" in text


def _on_disk() -> BinaryIO:
    return tempfile.TemporaryFile(buffering=0)


def test_a_log_on_disk_is_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is, no more than a piece of it is in memory; other streams' pieces lie between."""
    monkeypatch.setattr(log_module, "READ_BYTES", 1000)
    monkeypatch.setattr(log_module, "IN_MEMORY_BYTES", 100)
    log = CellLog(_on_disk, 20_000)
    written: dict[int, bytes] = {0: b"", 1: b""}
    for n in range(100):
        for rank in written:
            data = f"{n} of rank {rank}\n".encode() * 20
            written[rank] += data
            log.append(rank, "stdout", data)
    largest = 0
    for stream in log.streams():
        pieces = list(stream.read())
        largest = max(largest, *(len(piece) for piece in pieces if isinstance(piece, bytes)))
        at = next(at for at, piece in enumerate(pieces) if isinstance(piece, int))
        head, tail = (b"".join(part) for part in (pieces[:at], pieces[at + 1 :]))  # type: ignore[arg-type]
        assert written[stream.rank].startswith(head)
        assert written[stream.rank].endswith(tail)
        assert len(head) + pieces[at] + len(tail) == len(written[stream.rank])  # type: ignore[operator]
    assert largest <= 1000
    log.close()
    assert log.streams() == []


def test_what_is_written_over_meanwhile_is_counted() -> None:
    """A cell that goes on writing while it is copied: what is gone is said, and nothing is mixed up."""
    log = CellLog(io.BytesIO, 200)
    for n in range(30):
        log.append(0, "stdout", f"line {n:04}\n".encode())
    (stream,) = log.streams()
    pieces = stream.read()
    found = [next(pieces), next(pieces)]
    for n in range(30, 34):
        log.append(0, "stdout", f"line {n:04}\n".encode())
    found += pieces
    assert found == [
        b"".join(b"line %04d\n" % n for n in range(10)), 100, 40,
        b"".join(b"line %04d\n" % n for n in range(24, 30)),
    ]  # fmt: skip


def test_the_lock_is_not_held_for_all_of_it() -> None:
    """Who brings the ranks' news waits for a piece, not for a gigabyte."""
    log = CellLog(io.BytesIO)
    log.append(0, "stdout", b"a\n")
    lock = threading.Lock()

    class Watched(io.BytesIO):
        def write(self, data: object) -> int:
            assert not lock.locked()
            return super().write(data)  # type: ignore[arg-type]

    assert write(log.streams(), Watched(), lock).lines == 1


def test_a_file_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the prompt number's; the next file of the same cell has another one."""
    monkeypatch.chdir(tmp_path)
    records = [record((0, "stdout", "a\n"), cell=7, prompt=5), record((0, "stdout", "b\n"), cell=8)]
    assert save(records, 5) == "ddp-cell-5.log: 1 line, 11 bytes"
    assert save(records, 5) == "ddp-cell-5-2.log: 1 line, 11 bytes"
    assert save(records, None) == "ddp-cell-8.log: 1 line, 11 bytes"
    assert Path("ddp-cell-5.log").read_text() == "[rank 0]\na\n"
    with pytest.raises(FileExistsError):
        records[0].save("ddp-cell-5.log")
    assert save([record(cell=3)], None) == "%ddp log: the ranks wrote no text in cell 3"


def test_what_cannot_be_saved_is_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what helps; a file that was begun is removed."""
    monkeypatch.chdir(tmp_path)
    kept = [record((0, "stdout", "a\n"), cell=n, prompt=n + 1) for n in range(1, 4)]
    with pytest.raises(
        UsageError, match=r"log 9: no record of such a cell; .* 20 .*\(here 2-4\); %%ddp -o r "
    ):
        save(kept, 9)
    with pytest.raises(UsageError, match="no cell has run on the ranks; %%ddp runs one"):
        save([], None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jupyter_ddp.core.saved_log.write", full)
    with pytest.raises(PoolError, match=r"ddp-cell-4.log cannot be written here: No space left on device; "):
        save(kept, None)
    assert list(tmp_path.iterdir()) == []
