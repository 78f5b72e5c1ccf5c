"""From figures to the table that people read: rows with an aim, and whether it was reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.figures import Figures

BEGIN = "<!-- figures: `make bench` writes what stands between these lines -->"
END = "<!-- end of figures -->"
_MIB = 2**20


class Row(NamedTuple):
    """One line of the table. `reached`: None where there is no aim, or nothing was measured."""

    measure: str
    aim: str
    measured: str
    peer: str
    reached: bool | None = None


def rows(figures: Figures) -> list[Row]:
    """Every measure, in the order of the page; what was not measured is left out."""
    every = [*_starts(figures), *_cells(figures), *_output(figures), *_rest(figures)]
    return [row for row in every if row.measured]


def _starts(f: Figures) -> list[Row]:
    cold, later = f.median("start 4 jupyter_ddp"), f.median("start 4 later jupyter_ddp")
    to_ipyparallel = f.ratio("start 4 jupyter_ddp", "start 4 ipyparallel")
    to_torchrun = f.ratio("start 16 jupyter_ddp", "start 16 torchrun")
    return [
        Row(
            "4 ranks from nothing: notebook kernel ready → all_reduce printed by each",
            "a quarter of ipyparallel's",
            _s(cold) + _times(to_ipyparallel, "of ipyparallel's"),
            _beside(f, "start 4", _s),
            _at_most(to_ipyparallel, 0.25),
        ),
        Row("the same, 5 s after `%load_ext`", "0.3 s", _s(later), "", _at_most(later, 0.3)),
        Row(
            "16 ranks from nothing",
            "a fifth of torchrun's",
            _s(f.median("start 16 jupyter_ddp")) + _times(to_torchrun, "of torchrun's"),
            _beside(f, "start 16", _s),
            _at_most(to_torchrun, 0.2),
        ),
    ]


def _cells(f: Figures) -> list[Row]:
    made = []
    for n, aim in ((4, 1.35), (16, 2.5)):
        ratio = f.median(f"noop {n} jupyter_ddp")
        seconds = f.median(f"noop seconds {n} jupyter_ddp")
        measured = f"{ratio:.2f} times ({1000 * seconds:.1f} ms)" if ratio and seconds else ""
        words = f"a cell that does nothing, {n} ranks, over one in the notebook kernel itself"
        peers = _beside(f, f"noop {n}", lambda times: f"{times:.1f} times")
        made.append(Row(words, f"{aim} times", measured, peers, _at_most(ratio, aim)))
    new = f.median("new noop 4 jupyter_ddp")
    made.insert(
        1, Row("… with a source that was not run before", "", f"{new:.2f} times" if new else "", "", None)
    )
    first = f.median("first print jupyter_ddp")
    peers = _beside(f, "first print", _s)
    words = "first print of a running cell is seen"
    made.append(Row(words, "0.15 s", _s(first), peers, _at_most(first, 0.15)))
    return made


def _output(f: Figures) -> list[Row]:
    ratio = f.ratio("lines/s jupyter_ddp", "lines/s ipyparallel")
    rate, missing = f.median("lines/s jupyter_ddp"), f.largest("lines missing jupyter_ddp")
    growth, messages, size = f.largest("growth jupyter_ddp"), f.largest("messages/s"), f.largest("bytes/s")
    return [
        Row(
            "4 ranks × 20,000 lines of 80 characters, lines/s until the reply",
            "ipyparallel's",
            f"{rate:,.0f}" + _times(ratio, "of ipyparallel's") if rate else "",
            _beside(f, "lines/s", _count),
            None if ratio is None else ratio >= 1,
        ),
        Row(
            "lines of these missing from the record",
            "0",
            _count(missing),
            _beside(f, "lines missing", lambda lines: f"{lines:,.0f} from the display"),
            _at_most(missing, 0),
        ),
        Row(
            "growth of the notebook kernel's memory meanwhile, over the text's size",
            "3 times",
            f"{growth:.1f} times" if growth is not None else "",
            "",
            _at_most(growth, 3),
        ),
        Row(
            "messages to the front end, ranks that print without pause, busiest 3 s",
            "10 a second",
            f"{messages:.1f} a second" if messages is not None else "",
            "",
            _at_most(messages, 10),
        ),
        Row(
            "bytes to the front end, as above",
            "1 MB/s",
            f"{size / 1e6:.2f} MB/s" if size is not None else "",
            "",
            _at_most(size, 1e6),
        ),
    ]


def _rest(f: Figures) -> list[Row]:
    memory, steps = f.median("memory 8 jupyter_ddp"), f.median("steps ratio")
    small = _at_most(memory, 35 * _MIB)
    early, late = f.median("constructor early"), f.median("constructor later")
    return [
        Row("memory per idle rank, 8 ranks", "35 MiB", _mib(memory), _beside(f, "memory 8", _mib), small),
        Row("… forked after the later preload", "", _mib(f.median("memory 8 later jupyter_ddp")), ""),
        Row("first DDP constructor, 4 ranks forked at once", "", _s(early), ""),
        Row("… forked after the later preload", "", _s(late), ""),
        Row(
            "memory per rank after it, 4 ranks forked at once",
            "",
            _mib(f.median("memory after constructor early")),
            "",
        ),
        Row("… forked after the later preload", "", _mib(f.median("memory after constructor later")), ""),
        Row(
            "DDP step rate, 2 ranks, over torchrun's",
            "0.97 times",
            f"{steps:.3f} times" if steps else "",
            _beside(f, "steps/s", lambda rate: f"{rate:.1f} steps/s"),
            None if steps is None else steps >= 0.97,
        ),
    ]


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _mib(size_bytes: float | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / _MIB:.1f} MiB"


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _times(ratio: float | None, words: str) -> str:
    return "" if ratio is None else f" ({ratio:.2f} {words})"


def _at_most(value: float | None, bound: float) -> bool | None:
    return None if value is None else value <= bound


def _beside(f: Figures, key: str, words: Callable[[float], str]) -> str:
    """The same of each peer that it was measured of."""
    found = [(peer, f.median(f"{key} {peer}")) for peer in ("ipyparallel", "torchrun")]
    return ", ".join(f"{peer} {words(value)}" for peer, value in found if value is not None)


# --- as text ------------------------------------------------------------------------------------


def markdown(made: Sequence[Row], facts: Sequence[str]) -> str:
    """The rows as a table, below the facts of the run."""
    lines = [*(f"- {fact}" for fact in facts), ""]
    columns = ("measure", "aim: at most, or at least", "measured", "reached", "beside it")
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in made:
        reached = {True: "yes", False: "**no**", None: ""}[row.reached]
        lines.append(f"| {row.measure} | {row.aim} | {row.measured} | {reached} | {row.peer} |")
    return "\n".join(lines)


def fill(page: str, text: str) -> str:
    """The page with `text` between its two marks. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def write_into(path: Path, text: str) -> None:
    """Put `text` between the marks of the page at `path`."""
    path.write_text(fill(path.read_text(), text))
