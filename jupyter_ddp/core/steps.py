"""Do the members of each process group stand at the same collective?

Two questions. `Steps` keeps the cheap counts that come with each cell's end and says whether they are
worth a closer look; `out_of_step` is that look, over what the ranks' flight recorders have, in words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import named

Sight = m.RankSeen | m.RankUnseen
Sights = Mapping[int, Sight]
MAX_PARTS = 4
"""Different calls that one line names."""


def call_words(call: m.Call) -> str:
    """ "all_reduce #7 (line 3)"."""
    where = f"line {call.line}" if call.line else call.place
    return f"{call.op} #{call.number}" + (f" ({where})" if where else "")


def members_of(state: m.GroupState, world_size: int) -> tuple[int, ...]:
    """The group's global ranks."""
    return state.members or tuple(range(world_size))


class Steps:
    """The counts of one generation's groups, as the ranks told them at their cells' ends."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation
        self._entered: dict[str, dict[int, int]] = defaultdict(dict)
        self._agreed: dict[str, dict[int, int]] = {}
        """The counts at which the members were last seen to be in step: they need not be equal."""
        self._members: dict[str, tuple[int, ...]] = {}
        self._touched: set[str] = set()
        self._unfinished = False

    def note(self, finished: m.CellFinished) -> None:
        """Take what came with a rank's end of a cell."""
        self._unfinished |= finished.unfinished
        for count in finished.counts:
            self._entered[count.name][finished.rank] = count.entered
            self._members[count.name] = count.members
            self._touched.add(count.name)

    def suspect(self, world_size: int) -> bool:
        """Some group's members may be out of step. Never says no where they are, after their cells' ends."""
        if not self._touched:
            return False
        return self._unfinished or any(self._differ(name, world_size) for name in self._touched)

    def _differ(self, name: str, world_size: int) -> bool:
        entered, agreed = self._entered[name], self._agreed.get(name, {})
        members = self._members[name] or range(world_size)
        return len({entered.get(rank, 0) - agreed.get(rank, 0) for rank in members}) > 1

    def settle(self, agreed: bool) -> None:
        """The cell has ended; `agreed`: and a closer look has found everyone in step."""
        if agreed:
            for name in self._touched:
                self._agreed[name] = dict(self._entered[name])
        if self._touched:
            self._touched.clear()
            self._unfinished = False


def group_states(sights: Sights) -> dict[str, dict[int, m.GroupState]]:
    """For each group, what each of its members that answered has of it."""
    found: dict[str, dict[int, m.GroupState]] = defaultdict(dict)
    for rank, sight in sights.items():
        if isinstance(sight, m.RankSeen):
            for state in sight.groups:
                found[state.name][rank] = state
    return dict(found)


def mismatch(sights: Sights) -> str:
    """Where members of a group are in different operations at the same number; "" where they are not."""
    for states in group_states(sights).values():
        at: dict[int, dict[int, m.Call]] = defaultdict(dict)
        for rank, state in states.items():
            for call in state.calls:
                if not call.background:
                    at[call.number][rank] = call
        for number in sorted(at):
            if len({call.op for call in at[number].values()}) > 1:
                return f"out of step: {_parts(at[number])}"
    return ""


def _parts(calls: Mapping[int, m.Call]) -> str:
    """ "rank 0: all_reduce #7 (line 3); rank 1: broadcast #7 (line 5)"."""
    by_words: dict[str, list[int]] = defaultdict(list)
    for rank, call in sorted(calls.items()):
        by_words[call_words(call)].append(rank)
    parts = [f"{named(ranks, '-')}: {words}" for words, ranks in by_words.items()]
    more = [f"and {len(parts) - MAX_PARTS} more"] if len(parts) > MAX_PARTS else []
    return "; ".join(parts[:MAX_PARTS] + more)


def out_of_step(sights: Sights) -> str:
    """After a cell has ended everywhere: how the members of a group are out of step; "" if they are not."""
    if words := mismatch(sights):
        return words
    found = []
    for states in group_states(sights).values():
        known = {rank: state for rank, state in states.items() if state.entered >= 0}
        # What the user's own threads do goes on across cells' ends.
        if any(call.background for state in known.values() for call in state.calls[-1:]):
            continue
        entered = {state.entered for state in known.values()}
        if len(entered) > 1:
            found.append(_not_entered(known, min(entered) + 1))
    return f"out of step: {'; '.join(found[:MAX_PARTS])}" if found else ""


def _not_entered(states: Mapping[int, m.GroupState], number: int) -> str:
    absent = [rank for rank, state in states.items() if state.entered < number]
    there = [rank for rank, state in states.items() if state.entered >= number]
    calls = (call for rank in there for call in states[rank].calls if call.number == number)
    call = next(calls, m.Call(number, "collective"))
    return f"{named(absent, '-')} did not enter {call_words(call)} that {named(there, '-')} entered"
