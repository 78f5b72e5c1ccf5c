"""Ranks that are not there: their messages, folded into a real record and shown by the real display.

Runs in a notebook kernel. A thousand processes need a larger machine than the tests have; the record,
the display, the browser and all between them cannot tell the difference.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipykernel.comm.comm import BaseComm

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.kernel.display import CellDisplay
from jupyter_ddp.kernel.execution import Execution, Follower
from jupyter_ddp.kernel.live import LiveViews

LINES_AT_ONCE = 10
TIMES_A_SECOND = 10


def line(rank: int, number: int) -> str:
    return f"rank {rank} step {number} loss {1 / (number + 1 + rank % 7):.4f}"


def alike(rank: int, number: int) -> str:
    return line(0, number)


def stream(
    n_ranks: int, seconds: float, report: str, what: Callable[[int, int], str] = line, live: bool = True
) -> None:
    """Show a cell on `n_ranks` ranks that write 10 lines ten times a second; write down how it went."""
    record = CellRecord(1, range(n_ranks), lock=threading.RLock())
    execution = Execution(record)
    screen = CellDisplay(live, LiveViews())
    times: dict[str, float] = {}
    told = _listen()

    feeder = threading.Thread(target=_feed, args=(execution, seconds, what, times), daemon=True)
    follower = Follower(execution, lambda event, timeout: event.wait(timeout), screen.show)
    feeder.start()
    while not execution.done:
        follower.step()
    screen.show(record, True)
    feeder.join()
    steps = round(seconds * TIMES_A_SECOND) * LINES_AT_ONCE
    wrong = [r.rank for r in record if r.stdout != "".join(what(r.rank, i) + "\n" for i in range(steps))]
    Path(report).write_text(json.dumps({**times, "told": told, "wrong": wrong}))


def _listen() -> list[tuple[float, int]]:
    """When comm messages are sent from here on, and how many bytes of JSON they hold."""
    told: list[tuple[float, int]] = []
    publish = BaseComm.publish_msg

    def noted(self: BaseComm, msg_type: str, data: Any = None, *args: Any, **kwargs: Any) -> None:
        if msg_type == "comm_msg":
            told.append((time.monotonic(), len(json.dumps(data))))
        publish(self, msg_type, data, *args, **kwargs)

    BaseComm.publish_msg = noted  # type: ignore[method-assign]
    return told


def _feed(
    execution: Execution, seconds: float, what: Callable[[int, int], str], times: dict[str, float]
) -> None:
    record = execution.record
    due = time.monotonic()
    late = 0.0
    for tick in range(round(seconds * TIMES_A_SECOND)):
        for rank in record.ranks:
            lines = (what(rank, tick * LINES_AT_ONCE + i) + "\n" for i in range(LINES_AT_ONCE))
            message = m.Output(rank, 1, 1, tick, "stdout", 0, "".join(lines).encode())
            record.fold(message)
            execution.tell(message)
        due += 1 / TIMES_A_SECOND
        late = max(late, time.monotonic() - due)
        threading.Event().wait(max(0.0, due - time.monotonic()))
    for rank in record.ranks:
        record.fold(m.CellFinished(rank, 1, 1, round(seconds * TIMES_A_SECOND), "ok", seconds, False, None))
    times["ended_at"], times["feeder_late_s"] = time.time(), late
    execution.finish()
