"""The measures. Each drives real notebook kernels and adds raw figures; its docstring is its method.

Whatever is compared runs in the same process tree of the same run, in turn, with the same cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from tests.benchmarks.figures import Figures, busiest
from tests.benchmarks.kernel_driver import Cell
from tests.benchmarks.processes import peak_bytes, reset_peak, rss_bytes
from tests.benchmarks.session import Session
from tests.benchmarks.systems import IPYPARALLEL, OURS, TORCHRUN, System

LINES = 20_000
LINE_CHARS = 80
WINDOW_S = 3.0
PAUSE_S = 5.0
_WARM_UP_CELLS = 5
_PRELOADED = "'dynamo' in get_ipython().magics_manager.registry['DDPMagics'].cluster.stages"


class Size(NamedTuple):
    """How often things are repeated."""

    starts: int
    noop_pairs: int
    line_pairs: int
    prints: int
    training_pairs: int
    training_steps: int
    chatter_s: float
    beside: bool
    """Peers also where no aim refers to them, and what the later preload brings."""


FULL = Size(3, 150, 5, 5, 10, 200, 9.0, True)
QUICK = Size(1, 40, 2, 2, 2, 60, 4.0, False)


def _begin(figures: Figures, system: System, n: int, pause_s: float = 0.0, ready: str = "") -> Session:
    """A session, whose start is a figure too."""
    session = Session(system, n, pause_s, ready)
    if not ready:
        figures.add(f"start {n}{' later' if pause_s else ''} {system.name}", session.start_s)
    return session


def cold_start(figures: Figures, size: Size) -> None:
    """Seconds from a ready notebook kernel to the reply of the cell in which every rank printed the result
    of an all_reduce, with all that comes before it: `%load_ext`, starting processes, forming the group. A
    fresh notebook kernel for each; the systems take turns. For torchrun it is the run of a script with just
    that in it. (With one repetition the starts of ours and of ipyparallel's are those of `cells`.)
    """
    for _ in range(size.starts):
        if size.starts > 1:
            _begin(figures, OURS, 4).close()
            _begin(figures, IPYPARALLEL, 4).close()
        _begin(figures, TORCHRUN, 4).close()
        if size.starts > 1:
            _begin(figures, OURS, 16).close()
        _begin(figures, TORCHRUN, 16).close()


def later_start(figures: Figures, size: Size) -> None:
    """The first cell's request to its reply, sent 5 s after `%load_ext`, in a fresh notebook kernel."""
    for _ in range(size.starts):
        _begin(figures, OURS, 4, PAUSE_S).close()


def cells(figures: Figures, size: Size) -> None:
    """No-op cells, first prints and many lines at 4 ranks; the lines on ours and ipyparallel's in turn."""
    with _begin(figures, OURS, 4) as ours:
        growth(figures, ours)
        noop(figures, ours, size.noop_pairs)
        new_noop(figures, ours, size.noop_pairs)
        first_print(figures, ours, size.prints)
        chatter(figures, ours, size.chatter_s)
        with _begin(figures, IPYPARALLEL, 4) as theirs:
            noop(figures, theirs, size.noop_pairs)
            first_print(figures, theirs, size.prints)
            for _ in range(size.line_pairs):
                lines(figures, ours)
                lines(figures, theirs)


def cells_at_16(figures: Figures, size: Size) -> None:
    """No-op cells at 16 ranks."""
    for system in (OURS, IPYPARALLEL) if size.beside else (OURS,):
        with _begin(figures, system, 16) as session:
            noop(figures, session, size.noop_pairs)


def noop(figures: Figures, session: Session, pairs: int) -> None:
    """`pass` in the notebook kernel itself and `pass` on the ranks, in turn in one notebook kernel, each from
    request to reply; the ratio is taken pair by pair. Five pairs before do not count.
    """
    for number in range(_WARM_UP_CELLS + pairs):
        alone = session.kernel.run("pass").reply_s
        on_ranks = session.run("pass").reply_s
        if number >= _WARM_UP_CELLS:
            figures.add(f"noop {session.n} {session.system.name}", on_ranks / alone)
            figures.add(f"noop seconds {session.n} {session.system.name}", on_ranks)


def new_noop(figures: Figures, session: Session, pairs: int) -> None:
    """The same with a source that was not run before, so that nothing of it is known already."""
    for number in range(_WARM_UP_CELLS + pairs):
        alone = session.kernel.run(f"pass  # {number}").reply_s
        on_ranks = session.run(f"pass  # {number}").reply_s
        if number >= _WARM_UP_CELLS:
            figures.add(f"new noop {session.n} {session.system.name}", on_ranks / alone)


def first_print(figures: Figures, session: Session, repeats: int) -> None:
    """From the request until the first message with the printed word is there, in a cell that goes on for a
    second after it.
    """
    for number in range(repeats):
        word = f"FIRST{number}"
        cell = session.run(f"import time\nprint({word!r}.lower())\ntime.sleep(1)")
        arrived_s = cell.first_s(word.lower())
        assert arrived_s is not None, cell.text
        figures.add(f"first print {session.system.name}", arrived_s)


def _printing(lines: int) -> str:
    return f"for i in range({lines}):\n    print(f'R{{rank:02d}}L{{i:06d}}|'.ljust({LINE_CHARS}, 'x'))"


def lines(figures: Figures, session: Session) -> None:
    """Every rank prints 20,000 numbered lines of 80 characters. Lines per second: all that were printed, over
    the time until the cell's reply and its last output are there. Missing: numbered lines that are not in
    the cell's record (ipyparallel, which has none: in what was displayed).
    """
    cell = session.run_keeping(_printing(LINES))
    wanted = session.n * LINES
    figures.add(f"lines/s {session.system.name}", wanted / cell.complete_s)
    figures.add(f"lines missing {session.system.name}", wanted - len(_distinct(_written(session, cell))))


def _written(session: Session, cell: Cell) -> str:
    """All that the ranks wrote, as far as it was kept."""
    if session.system is not OURS:
        return cell.text
    path = session.kernel.folder / "written.txt"
    session.kernel.run(f"with open({str(path)!r}, 'w') as f:\n    f.writelines(r.stdout for r in record)")
    return path.read_text()


def _distinct(text: str) -> set[tuple[str, str]]:
    padding = LINE_CHARS - len("R00L000000|")
    return set(re.findall(rf"R(\d\d)L(\d{{6}})\|x{{{padding}}}(?!x)", text))


def growth(figures: Figures, session: Session) -> None:
    """The most that the notebook kernel's resident memory grows while the ranks print those lines, over the
    size of the text; the first such cell of a notebook kernel, after one with a single line.
    """
    session.run_keeping(_printing(1))
    pid = session.kernel.pid
    reset_peak(pid)
    before = rss_bytes(pid)
    session.run_keeping(_printing(LINES))
    text_bytes = session.n * LINES * (LINE_CHARS + 1)
    figures.add(f"growth {session.system.name}", (peak_bytes(pid) - before) / text_bytes)


def chatter(figures: Figures, session: Session, seconds: float) -> None:
    """Every rank prints such lines without pause for some seconds. Messages and bytes on iopub beside the
    fixed ones of any cell (busy, input, idle), in the busiest 3 s; also of a cell with the 20,000 lines.
    """
    endless = _printing(10**9) + "\n    if time.monotonic() > end: break\nprint('PRINTED', i + 1, 'END')"
    cell = session.run_keeping(f"import time\nend = time.monotonic() + {seconds}\n{endless}")
    written = session.kernel.run("print(sum(len(r.stdout) for r in record))").text
    figures.add("chatter bytes/s", int(written) / seconds)
    for one in (cell, session.run(_printing(LINES))):
        messages_per_s, bytes_per_s = busiest([(a.at_s, a.size_bytes) for a in one.shown], WINDOW_S)
        figures.add("messages/s", messages_per_s)
        figures.add("bytes/s", bytes_per_s)


def memory(figures: Figures, size: Size) -> None:
    """PSS of every process that the notebook kernel started (so the agent and the forkserver count too, and
    ipyparallel's controller) over 8 ranks, 2 s after their first cell.
    """
    with _begin(figures, OURS, 8) as session:
        figures.add("memory 8 jupyter_ddp", session.pss_per_rank_bytes())
    if not size.beside:
        return
    with _begin(figures, OURS, 8, PAUSE_S, _PRELOADED) as session:
        figures.add("memory 8 later jupyter_ddp", session.pss_per_rank_bytes())
    with _begin(figures, IPYPARALLEL, 8) as session:
        figures.add("memory 8 ipyparallel", session.pss_per_rank_bytes())


def first_constructor(figures: Figures, size: Size) -> None:
    """Seconds that the first DistributedDataParallel constructor takes on the slowest of 4 ranks, and memory
    per rank after it: on ranks that were forked as soon as there was torch, and on ranks forked after the
    later preload.
    """
    if not size.beside:
        return
    construct = (
        "import time\nnet = torch.nn.Linear(8, 8)\ndist.barrier()\nbegan = time.perf_counter()\n"
        "ddp = torch.nn.parallel.DistributedDataParallel(net)\n"
        "print(f'TOOK {rank} {time.perf_counter() - began:.4f} END')"
    )
    for label, pause_s, ready in (("early", 0.0, ""), ("later", PAUSE_S, _PRELOADED)):
        with _begin(figures, OURS, 4, pause_s, ready) as session:
            took = re.findall(r"TOOK \d+ ([\d.]+) END", session.run(construct).text)
            figures.add(f"constructor {label}", max(map(float, took)))
            figures.add(f"memory after constructor {label}", session.pss_per_rank_bytes())


def training(figures: Figures, size: Size) -> None:
    """Steps per second of a small network under DistributedDataParallel on 2 ranks, on our ranks and under
    torchrun in a second notebook kernel, in turn; by rank 0's clock, between two barriers, after ten steps.
    The ratio is taken pair by pair.
    """
    code = f"""\
import time
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024), torch.nn.ReLU(),
    torch.nn.Linear(1024, 10))
ddp = torch.nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
inputs, classes = torch.randn(64, 1024), torch.randint(0, 10, (64,))
def steps(n):
    for _ in range(n):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ddp(inputs), classes).backward()
        optimizer.step()
    dist.barrier()
steps(10)
began = time.perf_counter()
steps({size.training_steps})
if rank == 0:
    print(f'RATE {{{size.training_steps} / (time.perf_counter() - began):.4f}} END')"""
    with _begin(figures, OURS, 2) as ours, _begin(figures, TORCHRUN, 2) as theirs:
        for _ in range(size.training_pairs):
            mine, other = _rate(ours.run(code)), _rate(theirs.run(code))
            figures.add("steps/s jupyter_ddp", mine)
            figures.add("steps/s torchrun", other)
            figures.add("steps ratio", mine / other)


def _rate(cell: Cell) -> float:
    found = re.search(r"RATE ([\d.]+) END", cell.text)
    assert found is not None, cell.text
    return float(found[1])


MEASURES: dict[str, Callable[[Figures, Size], None]] = {
    "cold-start": cold_start,
    "later-start": later_start,
    "cells": cells,
    "cells-at-16": cells_at_16,
    "memory": memory,
    "first-constructor": first_constructor,
    "training": training,
}
