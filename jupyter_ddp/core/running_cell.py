"""A cell that runs: whom it waits for, how it has ended elsewhere, and the steps that bring it to its end.

Owns those steps: what is done for ranks that wait for one that failed, died or does not come, what an
interrupt does, and the deadlines of both (when an interrupt goes further, its `Ladder` says). Who the ranks
are and which group they form it only reads.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Set
from typing import assert_never

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.bounds import (
    KILL_TIMEOUT_S,
    PEER_DIED_TIMEOUT_S,
    PEER_FAILED_TIMEOUT_S,
)
from jupyter_ddp.core.events import (
    Announced,
    CellEnded,
    CellRequested,
    CellTookLong,
    Effect,
    signal_ranks,
)
from jupyter_ddp.core.ladder import NOTICE_S, Ladder, Turn
from jupyter_ddp.core.lookout import LOOK_AGAIN_S, LOOKS_AGAIN, Findings, Lookout, Purpose
from jupyter_ddp.core.membership import Membership
from jupyter_ddp.core.topology import named
from jupyter_ddp.core.verdicts import Verdict

OUT_OF_STEP_MEANS = (
    "the cell's results may be wrong; the process group is formed again and variables are kept"
)


class RunningCell:
    """One cell, from the order to run it until it is `over`; the pool then sees to the group."""

    def __init__(self, event: CellRequested, members: Membership, lookout: Lookout, now: float) -> None:
        self.cell, self.targets = event.cell, event.targets
        self.over = False
        """It has ended on every rank, and nothing has to be found out about how."""
        self.group_broken = False
        self.waiting = set(event.targets)
        self.deadline: float | None = None
        """When waits on a failed rank are broken, or ranks that were killed are given up."""
        self._members, self._lookout = members, lookout
        self._ladder = Ladder(event.cell)
        """How far an interrupt of it has gone."""
        self._verdicts: dict[int, Verdict] = {}
        self._reasons: dict[int, str] = {}
        self._deaths: list[m.WorkerExited] = []
        self._warnings: list[str] = []
        self._blocked: set[int] = set()
        self._freeing: frozenset[int] = frozenset()
        """Who is freed in a moment from a wait for ranks that have failed; and the words that say so."""
        self._freeing_words = ""
        self._looks_left = LOOKS_AGAIN
        """How often those are asked again of which it is not clear whether they wait for a failed rank."""
        self._break_sent = self._kill_sent = False
        self._timeout_s = event.timeout_s
        self.timeout_at = now + event.timeout_s if event.timeout_s else None
        """When the user wants it to be interrupted."""
        self._late: set[int] = set()
        """Whom it still waited for at that time."""
        self._hang_timeout_s = event.hang_timeout_s
        self._hang = ""
        """Why the pool has ended it, where it would have hung."""

    @property
    def hang_deadline(self) -> float | None:
        """When a hang that goes on has lasted as long as the user lets it."""
        if not self._lookout.hang_text or self._break_sent:
            return None
        return self._lookout.hang_deadline(self._hang_timeout_s)

    @property
    def climbs_at(self) -> float | None:
        """When an interrupt of it goes a step further of itself."""
        return self._ladder.deadline if self.waiting else None

    # -- ranks end -------------------------------------------------------------------------------

    def finished(self, ends: Iterable[m.CellFinished], now: float) -> list[Effect]:
        """Ranks say that they have ended a cell."""
        before = len(self.waiting)
        for end in ends:
            if end.cell != self.cell or end.rank not in self.waiting:
                continue
            self.group_broken |= end.group_broken
            self._end(end.rank, end.verdict)
            if end.group_broken and end.verdict == "interrupted":
                self._blocked.add(end.rank)
            self._lookout.note(end)
            if end.verdict == "error" or end.group_broken:
                lost = end.group_broken and self._deaths  # whoever waits for this one waits for the dead
                self._leave_peers_until(now + (PEER_DIED_TIMEOUT_S if lost else PEER_FAILED_TIMEOUT_S))
            if end.doomed:
                self._members.doom(end.rank, end.doomed)
        return [] if self.waiting or not before else self._conclude(now)

    def died(self, event: m.WorkerExited, now: float) -> list[Effect]:
        """A rank of the pool has died."""
        effects: list[Effect] = []
        if event.rank in self.waiting:
            self._end(event.rank, "died")
            self._deaths.append(event)
        else:
            effects.append(self._members.death(event, self.cell))
        if event.rank in self.targets:
            self._leave_peers_until(now + PEER_DIED_TIMEOUT_S)
        return effects if self.waiting else [*effects, *self._conclude(now)]

    def give_up(self, verdict: Verdict, why: str) -> list[Effect]:
        """It ends here, wherever it is."""
        for rank in sorted(self.waiting):
            self._end(rank, verdict, why)
        self._be_over()
        return self.ended()

    def _end(self, rank: int, verdict: Verdict, reason: str = "") -> None:
        self.waiting.discard(rank)
        self._verdicts[rank] = verdict
        if reason:
            self._reasons[rank] = reason

    def _conclude(self, now: float) -> list[Effect]:
        """All have ended it. Where they do not seem to be at the same collective, ask them first."""
        suspect = self._lookout.steps.suspect(len(self._members.ranks))
        if suspect and not (self.group_broken or self._members.unfit):
            self.deadline = None
            return self._lookout.look(Purpose.STEPS, self._members.alive, now)
        self._be_over()
        return []

    def _be_over(self, *, in_step: bool = False) -> None:
        self.over = True
        self._lookout.end_cell(in_step=in_step)

    def ended(self) -> list[Effect]:
        """What there is to say of its end.

        The blame goes to the ranks that failed of themselves, not to those that waited for them.
        """
        if not self._ladder.presses:
            self._lay_blame()
        for rank in self._late:
            if self._verdicts[rank] == "interrupted":
                self._reasons.setdefault(rank, f"interrupted by --timeout {self._timeout_s:g}")
        deaths, warnings = tuple(self._deaths), tuple(self._warnings)
        ended = CellEnded(self.cell, self._verdicts, deaths, self._reasons, warnings, self._hang)
        return [*self._ladder.withdraw(), *self._withdraw_freeing(), ended]

    def _lay_blame(self) -> None:
        """On the ranks that have failed of themselves, for those that were freed from a wait for them."""
        culprits = sorted(r for r, v in self._verdicts.items() if v in ("error", "died"))
        dead = self._members.dead
        if not (culprits or dead):
            return
        words = f"blocked by {named(culprits or dead, '-')}"
        if not culprits:  # they were dead before
            which, it = ("which are", "them") if len(dead) > 1 else ("which is", "it")
            words += f", {which} dead; %ddp heal replaces {it}"
        for rank in self._blocked:
            self._reasons.setdefault(rank, words)

    # -- interrupts and broken groups --------------------------------------------------------------

    def interrupt(self, now: float) -> list[Effect]:
        """The user asks (again) to interrupt it."""
        first = not self._ladder.presses
        if first:
            self._lay_blame()  # who is freed from here on is so by the user
        signalled = self._ladder.press(now)
        if not self.waiting:  # it has ended, but for a look at how
            self._be_over()
            return []
        effects: list[Effect] = []
        if first and (hang := self._lookout.hang):  # of which nothing else is left when the ranks are freed
            effects.append(Announced(f"before the interrupt: {hang}", self.cell))
        if signalled:
            effects += [signal_ranks(self.waiting, signal.SIGINT)]
            effects += self._lookout.look(Purpose.INTERRUPT, self._members.alive, now)
        return [*effects, *self._climb(now)]

    def _climb(self, now: float) -> list[Effect]:
        """Take the steps of an interrupt that are due."""
        ladder = self._ladder
        effects: list[Effect] = []
        while self.waiting and (turn := ladder.turn(now)) is not None:
            match turn:
                case Turn.ANNOUNCE:
                    effects += ladder.announce(self.waiting, now)
                case Turn.BREAK:
                    effects += [*ladder.confirm(self.waiting), *self._break(now)]
                case Turn.LOOK:
                    ladder.looked()
                    effects += self._lookout.look(Purpose.INTERRUPT, self._members.alive, now)
                case Turn.KILL:
                    effects += [*ladder.confirm(self.waiting), *self._kill(now)]
                case _:
                    assert_never(turn)
        return effects

    def _kill(self, now: float) -> list[Effect]:
        self._kill_sent = True
        self._ladder.killed()
        self.deadline = now + KILL_TIMEOUT_S
        return [signal_ranks(self.waiting, signal.SIGKILL, group=True)]

    def _leave_peers_until(self, when: float) -> None:
        """A rank has failed; the others have until then to end by themselves."""
        self._looks_left = LOOKS_AGAIN
        self._break_by(when)

    def _break_by(self, when: float) -> None:
        """Whoever still waits for a failed rank at that time is freed."""
        if not self._break_sent:
            self.deadline = when if self.deadline is None else min(self.deadline, when)

    def _break(self, now: float) -> list[Effect]:
        """Free whatever waits in the group: step 2 of the ladder."""
        if self._break_sent:
            return []
        self._break_sent = self.group_broken = True
        self._freeing, self._freeing_words = frozenset(), ""  # what was announced is done
        self._ladder.broke(now)
        self.deadline = None
        effects = self._members.free()
        if self._ladder.presses or self._hang:
            effects.append(signal_ranks(self.waiting, signal.SIGINT))
        if self._hang:
            effects += self._lookout.look(Purpose.INTERRUPT, self._members.alive, now)
        return effects

    def _end_hang(self, now: float) -> list[Effect]:
        """What would not end of itself, or has not for as long as the user has set, is ended."""
        self._hang = self._lookout.hang_text
        return self._break(now)

    # -- looking ---------------------------------------------------------------------------------

    def stuck(self, event: m.RankStuck, now: float) -> list[Effect]:
        """A rank says that it waits for others, or that it goes on again."""
        if event.cell != self.cell or not self.waiting:
            return []
        return self._lookout.hear(event, self.waiting, self._members.alive, now)

    def took_long(self, event: CellTookLong, now: float) -> list[Effect]:
        """Whoever waits for it may wonder whether its ranks live."""
        if event.cell != self.cell or not self.waiting or self._lookout.open_look is not None:
            return []
        return self._lookout.look(Purpose.SILENCE, self._members.alive, now)

    def looked(self, now: float) -> list[Effect]:
        """The answers are there, or as many as there will be."""
        ended, world_size = set(self._verdicts), len(self._members.ranks)
        found = self._lookout.conclude(self.waiting, ended, world_size, broken=self._break_sent)
        if not self.waiting:
            if found.out_of_step:
                self.group_broken = True
                self._warnings.append(f"{found.out_of_step}: {OUT_OF_STEP_MEANS}")
            self._be_over(in_step=found.certain and not found.out_of_step)
            return []
        sees_to_peers = Purpose.PEERS in found.purposes
        if sees_to_peers or (self._failed and not self._ladder.presses):
            if blocked := self._to_be_freed(found):
                return self._announce_freeing(blocked, now)
            if sees_to_peers and self._looks_left and (found.silent or found.doubtful):
                self._looks_left -= 1
                self._break_by(now + LOOK_AGAIN_S)
        if Purpose.INTERRUPT in found.purposes and found.unheard:
            return self._lookout.tell(self.cell, found.unheard)
        effects: list[Effect] = []
        if found.purposes & {Purpose.HANG, Purpose.SILENCE}:
            words = self._lookout.words(found, pressed=bool(self._ladder.presses))
            effects += self._lookout.tell(self.cell, words)
        if Purpose.HANG in found.purposes and found.hang is not None and found.hang.out_of_step:
            effects += self._end_hang(now)
        return effects

    def _to_be_freed(self, found: Findings) -> Set[int]:
        """Who waits for ranks that have failed.

        None of those that did not answer: what would free a rank is what answers for it, its control thread.
        They are asked again a few times, as is who may just have been on its way into a collective, or out.
        Then whoever comes to wait says so by itself: a control thread that runs at all tells each ten seconds
        that its rank is stuck, which causes the next look. One that never runs leaves its rank in C code, or
        stopped, of which the user is told, and which the third interrupt ends.
        """
        if found.blocked:
            return found.blocked
        settled = Purpose.PEERS in found.purposes and not self._looks_left
        return found.doubtful if settled else found.doubtful & self._lookout.stuck

    @property
    def _failed(self) -> bool:
        """On some rank it has ended otherwise than well."""
        return any(verdict != "ok" for verdict in self._verdicts.values())

    # -- deadlines -------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects = self._pass_look(now)
        if not self.over:
            effects += self._pass_deadline(now)
        if not self.over:
            effects += self._stop_late(now)
        if not self.over:
            effects += self._climb(now)
        return effects

    def _pass_look(self, now: float) -> list[Effect]:
        """Answers that have not come by now never will; a hang has lasted as long as it may."""
        overdue, hang = self._lookout.deadline, self.hang_deadline
        effects = self.looked(now) if overdue is not None and now >= overdue else []
        if not self.over and hang is not None and now >= hang:
            effects += self._end_hang(now)
        return effects

    def _pass_deadline(self, now: float) -> list[Effect]:
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        if self._kill_sent:
            return self._give_up_unkillable(now)
        return self._free(now) if self._freeing else self._see_to_peers(now)

    def _see_to_peers(self, now: float) -> list[Effect]:
        if not self._ladder.presses:
            return self._lookout.look(Purpose.PEERS, self._members.alive, now)
        return self._break(now)

    def _announce_freeing(self, blocked: Set[int], now: float) -> list[Effect]:
        """Say who is freed from a wait for ranks that have failed, and what it costs: then it is done."""
        if self._break_sent or self._freeing:
            return []
        self._freeing, self._freeing_words = frozenset(blocked), self._words_of_freeing(blocked)
        self._break_by(now + NOTICE_S)
        return [Announced(self._freeing_words, self.cell)]

    def _free(self, now: float) -> list[Effect]:
        """Of those that are to be freed some may have ended since that was announced."""
        ranks = self._freeing & self.waiting
        if not ranks:
            return [*self._withdraw_freeing(), *self._see_to_peers(now)]
        effects: list[Effect] = []
        if ranks != self._freeing:
            effects = [*self._withdraw_freeing(), Announced(self._words_of_freeing(ranks), self.cell)]
        return [*effects, *self._break(now)]

    def _withdraw_freeing(self) -> list[Effect]:
        words, self._freeing, self._freeing_words = self._freeing_words, frozenset(), ""
        return [Announced(words, self.cell, withdrawn=True)] if words else []

    def _words_of_freeing(self, ranks: Set[int]) -> str:
        failed = sorted(r for r, v in self._verdicts.items() if v in ("error", "died"))
        others = sorted(r for r, v in self._verdicts.items() if v != "ok") or sorted(self._verdicts)
        dead = failed and all(self._verdicts[rank] == "died" for rank in failed)
        what = (
            "died"
            if dead
            else "failed"
            if failed
            else f"{'have' if len(others) > 1 else 'has'} lost the process group"
        )
        it, wait = ("them" if len(failed or others) > 1 else "it"), ("wait" if len(ranks) > 1 else "waits")
        return (
            f"{named(failed or others, '-')} {what}, {named(ranks, '-')} {wait} for {it}: "
            "breaking the process group; variables are kept"
        )

    def _give_up_unkillable(self, now: float) -> list[Effect]:
        for rank in sorted(self.waiting):
            pid = self._members.ranks[rank].pid
            self._end(rank, "unknown", f"the system does not end its process {pid}")
        return self._conclude(now)

    def _stop_late(self, now: float) -> list[Effect]:
        """The cell has had the time that the user gave it: the first steps of an interrupt."""
        if self.timeout_at is None or now < self.timeout_at:
            return []
        self.timeout_at = None
        if self._ladder.presses:
            return []
        self._late = set(self.waiting)
        return self.interrupt(now)
