"""The phases of a pool and what leads from one to another, found by trying every event in every state.

python docs/pool_diagram.py          prints the diagram
python docs/pool_diagram.py --write  puts it between the marks in ARCHITECTURE.md

The machine is driven, not read: a pool of two ranks is given each event that can come in each state that
can be reached, up to a depth beyond which no new change of phase was found.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.ladder import Ladder
from jupyter_ddp.core.lookout import Lookout
from jupyter_ddp.core.membership import Membership, RankState
from jupyter_ddp.core.running_cell import RunningCell
from jupyter_ddp.core.topology import make_plan

BEGIN, END = "<!-- pool: `python docs/pool_diagram.py --write` -->", "<!-- end of pool -->"
PAGE = Path(__file__).parents[1] / "ARCHITECTURE.md"
RANKS = 2
DEPTH = 13
_SURROUNDINGS = m.Surroundings({}, "/", [], "127.0.0.1", 1, "run", 0)
_USED = (m.GroupCount("0", (), 1),)
_Change = tuple[str, str, str]


def changes(depth: int = DEPTH) -> set[_Change]:
    """Each (phase before, event, phase after) where the two phases differ."""
    found: set[_Change] = set()
    seen: set[bytes] = set()
    level = [p.Pool()]
    for _ in range(depth):
        following: list[p.Pool] = []
        for pool in level:
            copied = pickle.dumps(pool)
            for name, event in _events(pool):
                after = pickle.loads(copied)
                after.handle(event, _time_of(pool, event))
                if after.phase is not pool.phase:
                    found.add((pool.phase.value, name, after.phase.value))
                if (print_ := _fingerprint(after)) not in seen:
                    seen.add(print_)
                    following.append(after)
        level = following
    return found


def _events(pool: p.Pool) -> Iterator[tuple[str, ev.Event]]:
    """What can come now, each with its name: requests, then the ranks' and the agent's news.

    Left out is that a cell takes long: of itself it never ends anything.
    """
    yield "start", ev.StartRequested(make_plan(RANKS, ()), _SURROUNDINGS)
    yield "cell", ev.CellRequested(1, tuple(pool.ranks), "pass", False, 1)
    for n in (RANKS - 1, RANKS + 1):
        yield "resize", ev.ResizeRequested(make_plan(n, ()), _SURROUNDINGS)
    yield "heal", ev.HealRequested(_SURROUNDINGS, next(iter(pool.alive), None))
    yield "interrupt", ev.InterruptRequested()
    yield "stop", ev.StopRequested()
    yield "agent lost", ev.NodeLost(0, "lost")
    yield "no preload", m.PreloadFailed("")
    if pool.next_deadline is not None:
        yield "deadline", ev.Ticked()
    for rank, state in pool.ranks.items():
        if state.alive:
            yield from _news_of(pool, rank, state)


def _news_of(pool: p.Pool, rank: int, state: RankState) -> Iterator[tuple[str, ev.Event]]:
    said = {"rank": rank, "generation": pool.generation, "cell": 1, "seq": 0}
    if not state.connected:
        yield "rank connected", m.WorkerConnected(**said, pid=100 + rank)
        return
    yield "rank exited", m.WorkerExited(rank, state.pid, signal.SIGKILL, 0, 0, "", 0)
    if state.generation != pool.generation:
        yield "group formed", m.GroupFormed(**said, seconds=0.0)
        yield "group failed", m.GroupFailed(**said, reason="why")
    if rank in pool.running_on:
        yield "cell finished", m.CellFinished(**said, verdict="ok", duration_s=0.0)
        yield (
            "cell finished, group broken",
            m.CellFinished(**said, verdict="interrupted", duration_s=0.0, group_broken=True),
        )
        yield (
            "cell finished",
            m.CellFinished(**said, verdict="ok", duration_s=0.0, counts=_USED, unfinished=True),
        )
    if (look := pool.open_look) is not None and not pool.running_on:
        for op in {"all_reduce", "barrier"} if rank else {"all_reduce"}:
            state = m.GroupState("0", (), 1, (m.Call(1, op, finished=False),))
            yield "ranks seen", m.RankSeen(**said, look=look, doing="idle", groups=(state,))


def _time_of(pool: p.Pool, event: ev.Event) -> float:
    deadline = pool.next_deadline
    return deadline if isinstance(event, ev.Ticked) and deadline is not None else 0.0


def _fingerprint(pool: p.Pool) -> bytes:
    """Equal for pools that differ in nothing but counters, times and words."""
    return repr([(name, _reduced(name, value, pool)) for name, value in vars(pool).items()]).encode()


def _reduced(name: str, value: Any, pool: p.Pool) -> Any:
    if name == "generation":
        return value and pool.generation - value + 1  # how far behind, and whether in a group at all
    if name in ("pid", "cell", "_stops", "_failure", "_reasons") or isinstance(value, float):
        return bool(value)
    if isinstance(value, Lookout):
        sights = [type(sight).__name__ for sight in value._sights.values()]
        return value.open_look is not None, sorted(value._awaited), sights, bool(value.hang_text)
    if isinstance(value, dict):
        return [(key, _reduced("", item, pool)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_reduced("", item, pool) for item in value]
    if isinstance(value, msgspec.Struct):
        return type(value).__name__
    if isinstance(value, Ladder):
        return value._step, min(value.presses, 3), value._announced_at is not None
    if isinstance(value, RunningCell):  # which knows the pool's members and its look-out
        own = {key: item for key, item in vars(value).items() if key not in ("_members", "_lookout")}
        return [(key, _reduced(key, item, pool)) for key, item in own.items()]
    if isinstance(value, RankState | Membership):
        return [(key, _reduced(key, item, pool)) for key, item in vars(value).items()]
    return value


def diagram(found: set[_Change]) -> str:
    """A mermaid state diagram; events that lead the same way share an arrow."""
    arrows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for before, event, after in found:
        arrows[before, after].add(event)
    order = [phase.value for phase in p.Phase]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {order[0]}"]
    for before, after in sorted(arrows, key=lambda pair: (order.index(pair[0]), order.index(pair[1]))):
        lines.append(f"    {before} --> {after}: {' / '.join(sorted(arrows[before, after]))}")
    return "\n".join([*lines, "```"])


def fill(page: str, text: str) -> str:
    """The page with `text` between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    text = diagram(changes())
    if "--write" in sys.argv:
        PAGE.write_text(fill(PAGE.read_text(), text))
    else:
        os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main()
