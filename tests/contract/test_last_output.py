"""What C code and children write as their rank's cell ends, while other ranks still run it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jupyter_ddp.core import messages as m
from tests.contract.test_agent import Agent, mortal, wait_until

__all__ = ["mortal"]  # a fixture


def said_by(agent: Agent, rank: int) -> list[m.NodeToKernel]:
    """What was heard of a rank, its end out of whatever message held it."""
    parts = [part for x in agent.heard for part in (x.ends if isinstance(x, m.GoodEnds) else (x,))]
    return [part for part in parts if getattr(part, "rank", -1) == rank]


def test_it_comes_before_the_end_that_it_was_written_before(mortal: Agent, tmp_path: Path) -> None:
    """Also where the agent finds both at once."""
    fifo, said = tmp_path / "fifo", tmp_path / "said"
    os.mkfifo(fifo)
    mortal.start(0, 1)
    mortal.run(
        "import os, pathlib, signal, time\n"
        f"if outbox.rank == 1: pathlib.Path('{fifo}').read_text()\n"
        "else:\n"
        "    os.kill(os.getppid(), signal.SIGSTOP)\n"
        "    os.write(1, b'from C')\n"
        f"    after = pathlib.Path('{said}').touch",
        0,
        1,
    )
    wait_until(said.exists)
    mortal.process.send_signal(signal.SIGCONT)
    mortal.next(m.FdOutput)
    fifo.write_text("")
    while not any(isinstance(x, m.CellFinished) for x in said_by(mortal, 1)):
        mortal.next_message()
    assert [type(x) for x in said_by(mortal, 0)][-2:] == [m.FdOutput, m.CellFinished]


def test_a_childs_flood_keeps_its_order_and_numbers(mortal: Agent, tmp_path: Path) -> None:
    """It writes on as its rank's cell ends."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    mortal.start(0, 1)
    for _ in range(20):
        mortal.heard.clear()
        mortal.run(
            "import subprocess, pathlib\n"
            "if outbox.rank == 0: subprocess.Popen(['seq', '100000', '130000'])\n"
            f"else: pathlib.Path('{fifo}').read_text()",
            0,
            1,
        )
        while not mortal.next(m.FdOutput).data.endswith(b"130000\n"):
            pass
        fifo.write_text("")
        while not any(isinstance(x, m.CellFinished) for x in said_by(mortal, 1)):
            mortal.next_message()
        pieces = [x for x in said_by(mortal, 0) if isinstance(x, m.FdOutput)]
        assert [x.seq for x in pieces] == list(range(pieces[0].seq, pieces[0].seq + len(pieces)))
        assert b"".join(x.data for x in pieces).split() == [b"%d" % i for i in range(100000, 130001)]
