"""A nemesis: kills, stops, interrupts and misleads real ranks at random moments, and keeps the books.

Everything random comes from one seed. Ranks report in a file of their own what they began and what
they wrote, so that it can be held against the records that the cluster gives.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import textwrap
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal

import pytest
from msgspec import Struct

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.record import CellRecord

WORLD = 3
SLOT_BYTES = 24
CELL_S = 12.0
"""The longest that a cell may take which the user need not help along."""
RESCUE_S = 1.5
"""After so long a user presses interrupt (again) where ranks wait for one that will never come."""
NOTICED_S = 1.0
"""How soon the death of an idle rank is known. (Half a second, on a machine with nothing else to do.)"""
ENDED_S = 5.0
"""After so long a rank that was told to end is gone: the pool waits 2 s for it, then kills it."""
MOVE_S = 30.0
"""The longest that a restart may take, on a machine that does much else; others take less."""
HANG_S = 40.0
"""After this a cell hangs for good."""

# What ranks know: how to write numbered lines, and to report them where SIGKILL does not reach.
BOOKS = """
import os
_book = os.open({book!r}, os.O_RDWR)
_begun = os.open({begun!r}, os.O_WRONLY | os.O_APPEND)
"""
PRELUDE = """
import struct, subprocess, sys, time, zlib
token, kept = {token}, []
pair = dist.new_group([0, 1])
every = dist.new_group()

def _line(cell, rank, seq, size):
    body = f"@{{cell}}:{{rank}}:{{seq}}:".ljust(size, "x")
    return f"{{body}}{{zlib.crc32(body.encode()):08x}}\\n"

def begins(cell):
    global _cell, _seq
    _cell, _seq = cell, [0, 0]
    os.write(_begun, f"{{cell}} {{rank}}\\n".encode())
    _report()

def _report():
    os.pwrite(_book, struct.pack("<qqq", _cell, *_seq), {slot} * rank)

def writes(fd, count, size):
    for _ in range(count):
        text = _line(_cell, rank, _seq[fd - 1], size)
        if fd == 1:
            sys.stdout.write(text)
        else:
            os.write(2, text.encode())
        _seq[fd - 1] += 1
        _report()

def reduces(group=None):
    t = torch.ones(64)
    dist.all_reduce(t, group=group)
    return t[0].item()
"""


class Fault(Struct, frozen=True):
    """What is done to the pool, so long after the cell was given to it (or after the fault before)."""

    after_s: float
    kind: str
    rank: int = 0

    def __str__(self) -> str:
        whom = f" rank {self.rank}" if self.kind.startswith("SIG") else ""
        return f"{1000 * self.after_s:.0f} ms later: {self.kind}{whom}"


class Move(Struct, frozen=True):
    """What the user asks of the pool after a cell, and what happens meanwhile."""

    kind: Literal["restart", "resize", "heal"]
    size: int = WORLD
    fault: Fault | None = None

    def __str__(self) -> str:
        size = f" to {self.size}" if self.kind == "resize" else ""
        return f"{self.kind}{size}{f', {self.fault}' if self.fault else ''}"


class Step(Struct, frozen=True):
    """A cell, and what happens to it."""

    source: str
    faults: tuple[Fault, ...]
    raises: frozenset[int]
    """Ranks on which the cell raises by itself, if it gets so far."""
    waits_for_nobody: bool
    """A rank leaves out what others wait for: nobody but the user can help."""
    afterwards: Fault | None = None
    """What is done when the cell has just ended, and its group is perhaps being formed again."""
    move: Move | None = None
    """What is asked of the pool when it is whole again."""
    healing: Fault | None = None
    """What happens while it is healed, if a rank has died."""


class Schedule:
    """The steps that one seed stands for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._further = random.Random(f"{seed}: moves")  # what was added later leaves a seed's cells alone
        self.steps = [self._step(number) for number in range(self._random.randint(2, 4))]

    def _step(self, number: int) -> Step:
        chance = self._random
        acts = [self._act() for _ in range(chance.randint(2, 7))]
        raises: set[int] = set()
        lonely = False
        desync = chance.choices(["none", "raise", "skip", "sleep", "exit"], [6, 3, 1, 2, 1])[0]
        rank, at = chance.randrange(WORLD), chance.randrange(len(acts))
        if desync == "raise":
            raises.add(rank)
            acts.insert(at, f"if rank == {rank}: raise ValueError('on purpose')")
        elif desync == "exit":
            raises.add(rank)
            acts.insert(at, f"if rank == {rank}: sys.exit(3)")
        elif desync == "sleep":
            acts.insert(at, f"if rank == {rank}: time.sleep({chance.uniform(0.05, 0.4):.3f})")
        elif desync == "skip":
            lonely = True
            acts.insert(at, f"if rank != {rank}: reduces()")
        body = "\n".join([f"begins({self._cell(number)})", *acts, f"kept.append({self._cell(number)})"])
        faults = tuple(self._faults())
        last = None
        if chance.random() < 0.3:
            kind = chance.choice(["SIGKILL", "SIGKILL", "interrupt"])
            last = Fault(chance.choice([0, chance.uniform(0, 0.02)]), kind, chance.randrange(WORLD))
        more = self._further
        if (servant := more.choices(["", "agent", "forkserver"], [96, 2, 2])[0]) != "":
            faults += (Fault(more.uniform(0, 0.1), servant),)
        move = self._move() if more.random() < 0.2 else None
        healing = self._fault_of_a_rank() if more.random() < 0.15 else None
        return Step(body, faults, frozenset(raises), lonely, last, move, healing)

    def _move(self) -> Move:
        kind: Literal["restart", "resize", "heal"] = self._further.choice(
            ["restart", "resize", "resize", "heal"]
        )
        size = self._further.choice([1, WORLD - 1, WORLD + 1])
        return Move(kind, size, self._fault_of_a_rank() if self._further.random() < 0.4 else None)

    def _fault_of_a_rank(self) -> Fault:
        kind = self._further.choice(["SIGKILL", "SIGKILL", "interrupt"])
        return Fault(self._further.uniform(0, 0.4), kind, self._further.randrange(WORLD))

    def _cell(self, number: int) -> int:
        return self.seed * 100 + number

    def _act(self) -> str:
        chance = self._random
        match chance.choices(range(10), [5, 3, 4, 2, 2, 1, 1, 1, 1, 1])[0]:
            case 0:
                return f"writes(1, {chance.choice([1, 10, 100, 400])}, {chance.randint(20, 200)})"
            case 1:  # more than a pipe takes at once would be no single write
                return f"writes(2, {chance.choice([1, 10, 100])}, {chance.choice([30, 300, 4000])})"
            case 2:
                return f"assert reduces() == {WORLD}"
            case 3:
                return "dist.barrier()"
            case 4:
                return "assert rank > 1 or reduces(pair) == 2"
            case 5:
                return (
                    f"got = [None] * {WORLD}; dist.all_gather_object(got, rank); "
                    f"assert got == list(range({WORLD}))"
                )
            case 6:
                return f"assert reduces(every) == {WORLD}"
            case 7:  # more than the page that a rank shares with its agent holds
                return f"writes(1, 2, {chance.choice([5000, 66_000, 1_200_000])})"
            case 8:
                return f"time.sleep({chance.uniform(0.01, 0.2):.3f})"
            case _:
                return (
                    "dist.send(torch.ones(1), 1) if rank == 0 else "
                    "dist.recv(torch.empty(1), 0) if rank == 1 else None"
                )

    def _faults(self) -> Iterator[Fault]:
        chance = self._random
        kind = chance.choices(["none", "interrupt", "kill", "stop", "both"], [3, 5, 4, 2, 2])[0]
        if kind in ("interrupt", "both"):
            yield Fault(chance.choice([0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)]), "interrupt")
            for _ in range(chance.choices([0, 1, 2], [4, 3, 2])[0]):
                yield Fault(chance.choice([0, chance.uniform(0, 0.05), chance.uniform(0, 0.5)]), "interrupt")
        if kind == "stop":
            rank = chance.randrange(WORLD)
            yield Fault(chance.uniform(0, 0.1), "SIGSTOP", rank)
            if chance.random() < 0.3:
                yield Fault(chance.uniform(0, 0.1), "interrupt")
            yield Fault(chance.uniform(0, 0.3), "SIGCONT", rank)
        if kind in ("kill", "both"):
            moment = chance.choice([0, chance.uniform(0, 0.03), chance.uniform(0, 0.3)])
            yield Fault(moment, "SIGKILL", chance.randrange(WORLD))
            if chance.random() < 0.25:
                yield Fault(chance.uniform(0, 0.05), "SIGKILL", chance.randrange(WORLD))


def seeds(config: pytest.Config) -> range:
    """The schedules that this run of pytest is for: one, or JUPYTER_DDP_SCHEDULES, as "50" or "250:500"."""
    seed = config.getoption("--nemesis-seed")
    if seed is not None:
        return range(seed, seed + 1)
    first, _, end = os.environ.get("JUPYTER_DDP_SCHEDULES", "50").rpartition(":")
    return range(int(first or 0), int(end))


class Broken(AssertionError):
    """A promise that was not kept."""


class Nemesis:
    """One cluster, schedule after schedule."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._book, self._begun = folder / "book", folder / "begun"
        self.history: list[str] = []
        self.deeds: Counter[str] = Counter()
        """How often what was done, in all schedules."""
        self._token = 0
        self._killed: set[int] = set()
        self._pids: list[int] = []
        self._kept: dict[int, list[int]] = {}
        self._presses = 0
        self._servants_killed: set[str] = set()
        self._done = threading.Event()

    # -- one schedule ------------------------------------------------------------------------------

    def play(self, schedule: Schedule) -> None:
        """Raises Broken, with the history, where a promise is not kept."""
        self.history = [f"--nemesis-seed {schedule.seed}"]
        self._began = time.monotonic()
        self._chance = random.Random(schedule.seed)
        try:
            if not self._pids:
                self._start()
            for step in schedule.steps:
                self._take(step)
                if self._recover(step) and step.move is not None:
                    self._make(step.move)
        except (PoolError, AssertionError) as error:
            raise Broken("\n".join([f"{type(error).__name__}: {error}", *self.history])) from error

    def _note(self, text: str) -> None:
        self.history.append(f"{time.monotonic() - self._began:7.3f} {text}")

    def _start(self) -> None:
        self._note("start")
        (self.cluster.restart if self.cluster.running else self.cluster.start)(WORLD)
        self._servants_killed.clear()
        self._introduce()

    def _introduce(self) -> None:
        """Give all ranks what the cells need."""
        self._token += 1
        for file in (self._book, self._begun):
            file.write_bytes(b"")
        self._bounded(self._books() + PRELUDE.format(token=self._token, slot=SLOT_BYTES))
        self._pids = self._rank_pids()
        self._kept = {rank: [] for rank in range(WORLD)}

    def _books(self) -> str:
        return BOOKS.format(book=str(self._book), begun=str(self._begun))

    def _recover(self, step: Step) -> bool:
        """What lives has kept what it had; with the dead replaced, the pool works. False: it is a new one."""
        if "agent" in self._servants_killed:
            _eventually(lambda: all(map(_ended, self._pids)), "the ranks have ended with their agent")
            _eventually(lambda: not self.cluster.running, "the pool is lost")
            self._start()
            return False
        _eventually(lambda: all(_ended(self._pids[rank]) for rank in self._killed), "the killed have ended")
        dead = [rank for rank, pid in enumerate(self._pids) if _ended(pid)]
        asked = set(range(WORLD)) if self._presses >= 3 else self._killed
        assert set(dead) <= asked, f"ranks {dead} died unasked; only {self._killed} were killed"
        if len(dead) == WORLD:
            self._start()
            return False
        _eventually(lambda: self._dead() == dead, f"ranks {dead} are seen to be dead")
        self._check_kept([rank for rank in range(WORLD) if rank not in dead])
        if dead:
            self._replace(dead, step.healing)
        self._check_whole()
        return True

    def _check_whole(self) -> None:
        """Every group works, and nothing is left of those that are gone."""
        record = self._bounded("reduces() + reduces(every) + (reduces(pair) if rank < 2 else 2)")
        values = [rank.value.text if rank.value else "" for rank in record]
        assert values == [f"{2.0 * WORLD + 2}"] * WORLD, values
        _eventually(lambda: not self._strays(), "no orphan is left", ENDED_S)

    def _check_kept(self, ranks: Collection[int]) -> None:
        """These are the processes that they were, with the variables that they had."""
        record = self._bounded("(os.getpid(), token, kept)", list(ranks))
        for rank in ranks:
            value, expected = record[rank].value, (self._pids[rank], self._token, self._kept[rank])
            assert value is not None
            assert value.text == repr(expected), f"rank {rank} has {value.text}, not {expected}"

    def _replace(self, dead: list[int], fault: Fault | None) -> None:
        living = [rank for rank in range(WORLD) if rank not in dead]
        source = self._chance.choice([None, *living])
        if self._chance.random() < 0.2:
            self._start()
            return
        self._note(f"heal {dead} from {source}")
        self.deeds["heal"] += 1
        if fault is not None or self._servants_killed:
            self._attempt(lambda: self.cluster.heal(source), living, fault)
            return
        said = self.cluster.heal(source)
        self._note(said)
        now = self._rank_pids()
        assert all(now[rank] == self._pids[rank] for rank in living), f"{now}, not {self._pids}"
        self._check_kept(living)
        if source is None:
            self._introduce()
            return
        self._bounded(self._books(), dead)
        if source == 2:  # which is no member of `pair`: what it has under that name is of no use to others
            self._bounded("pair = dist.new_group([0, 1])")
        self._pids = now
        for rank in dead:
            self._kept[rank] = list(self._kept[source])
        self._check_kept(list(range(WORLD)))

    # -- what the user asks of the pool ------------------------------------------------------------

    def _make(self, move: Move) -> None:
        """The ranks that stay keep what they have, or the move is refused for a reason."""
        self._note(str(move))
        self.deeds[move.kind] += 1
        self._killed.clear()
        self._presses = 0
        staying = range({"restart": 0, "resize": min(move.size, WORLD), "heal": WORLD}[move.kind])
        if move.fault is not None or self._servants_killed:
            self._attempt(lambda: self._ask(move), staying, move.fault)
            return
        said = self._ask(move)
        self._note(said)
        match move.kind:
            case "heal":
                assert self._rank_pids() == self._pids, said
            case "restart":
                self._introduce()
            case "resize":
                self._check_stayed(staying, move.size)
                self._note(self.cluster.resize(WORLD))
                self._check_stayed(staying, WORLD)
                self._introduce()
        self._check_whole()

    def _ask(self, move: Move) -> str:
        match move.kind:
            case "restart":
                return self.cluster.restart(WORLD)
            case "resize":
                return self.cluster.resize(move.size)
            case "heal":
                return self.cluster.heal()

    def _check_stayed(self, ranks: Collection[int], size: int) -> None:
        assert [self._rank_pids()[rank] for rank in ranks] == [self._pids[rank] for rank in ranks]
        record = self._bounded("t = torch.ones(1); dist.all_reduce(t); t.item()")
        assert [r.value.text for r in record if r.value] == [str(float(size))] * size, record
        self._check_kept(ranks)

    def _attempt(self, act: Callable[[], str], staying: Collection[int], fault: Fault | None) -> None:
        """With something going wrong meanwhile it comes to its end, and no rank goes that nobody killed."""
        suffering = threading.Thread(target=self._suffer, args=(fault,)) if fault else None
        began = time.monotonic()
        if suffering:
            suffering.start()
        try:
            self._note(act())
        except PoolError as error:
            self._note(f"refused: {error}")
        finally:
            if suffering:
                suffering.join()
        took_s = time.monotonic() - began
        assert took_s < MOVE_S, f"it took {took_s:.1f} s"
        whole = [rank for rank in staying if rank not in self._killed]
        assert not (gone := [rank for rank in whole if _ended(self._pids[rank])]), f"ranks {gone} are gone"
        if whole:
            self._check_kept(whole)
        self._start()

    def _dead(self) -> list[int]:
        return [status.rank for status in self.cluster.status() if status.state == "dead"]

    def _strays(self) -> set[int]:
        """Children of the node agent that are neither its forkserver nor a rank."""
        ranks = set(self._rank_pids())
        strays = set(_children(_parent(min(ranks)))) - ranks
        return strays if len(strays) > 1 else set()

    def _rank_pids(self) -> list[int]:
        return [status.pid for status in self.cluster.status()]

    def _bounded(self, source: str, targets: list[int] | None = None) -> CellRecord:
        """A cell that nothing happens to: it ends well, and soon."""
        self._done.clear()
        watch = threading.Thread(target=self._watch, args=(CELL_S, False))
        watch.start()
        try:
            record = self.cluster.run(source, targets, check=False)
        finally:
            self._done.set()
            watch.join()
        assert record.ok, f"{record}: {record.summary()}"
        return record

    # -- one cell ----------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        self.deeds["cells"] += 1
        self._note("cell: " + step.source.replace("\n", "; ")[:600])
        self._killed.clear()
        self._presses = 0
        self._done.clear()
        tormentor = threading.Thread(target=self._torment, args=(step,))
        tormentor.start()
        record, refusal = None, ""
        try:
            record = self.cluster.run(step.source, check=False)
        except PoolError as error:
            refusal = str(error)
        finally:
            self._done.set()
            tormentor.join()
        self._note(f"ended: {record or refusal}; {record.summary() if record and not record.ok else ''}")
        if step.afterwards is not None:
            self._suffer(step.afterwards)
        if record is None:  # a rank died, or the user interrupted, before the cell began
            assert self._killed or self._presses, f"refused without a reason: {refusal}"
            return
        self._check(step, record)

    def _torment(self, step: Step) -> None:
        """Do what the schedule says; then see to it that the cell ends."""
        for fault in step.faults:
            self._suffer(fault)
        self._watch(CELL_S, step.waits_for_nobody)

    def _suffer(self, fault: Fault) -> None:
        _wait(fault.after_s)
        self._note(str(fault))
        self.deeds[fault.kind] += 1
        if fault.kind == "interrupt":
            self._presses += 1
            self.cluster.interrupt()
            return
        if fault.kind in ("agent", "forkserver"):
            self._kill_servant(fault.kind)
            return
        if fault.kind == "SIGKILL":
            self._killed.add(fault.rank)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self._pids[fault.rank], getattr(signal, fault.kind))

    def _kill_servant(self, which: str) -> None:
        """The node agent, with which its ranks end, or the process that they are forked from."""
        agent = next((_parent(pid) for pid in self._pids if not _ended(pid)), 0)
        if agent <= 1 or self._servants_killed:
            return
        if which == "agent":
            self._killed |= set(range(WORLD))
            self._servants_killed.add(which)
            os.kill(agent, signal.SIGKILL)
        for pid in set(_children(agent)) - set(self._pids) if which == "forkserver" else ():
            self._servants_killed.add(which)
            os.kill(pid, signal.SIGKILL)

    def _watch(self, limit_s: float, helps: bool) -> None:
        """Until the cell has ended. One that waits for nobody is interrupted, as a user would."""
        began = pressed = time.monotonic()
        while not self._done.wait(0.05):
            now = time.monotonic()
            if helps and now - pressed > RESCUE_S:
                pressed = now
                self._presses += 1
                self._note("the user helps: interrupt")
                self.cluster.interrupt()
            if now - began > (HANG_S if helps else limit_s):
                self._note(f"HANG: {self.cluster!r} {self.cluster.status()}")
                self._dump()
                self.cluster.close()
                return

    def _dump(self) -> None:
        """Where the ranks hang: at SIGABRT their faulthandlers say it, and the agent keeps what they say."""
        states = dict(self.cluster._pool.ranks)
        for state in states.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGCONT)
                os.kill(state.pid, signal.SIGABRT)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and any(state.alive for state in states.values()):
            _wait(0.02)
        for rank, state in states.items():
            said = state.exited.stderr.rpartition("Fatal")[2] if state.exited else "(does not end)"
            self._note(f"rank {rank}, process {state.pid}:\n{textwrap.indent(said, '    ')}")

    # -- the books ---------------------------------------------------------------------------------

    def _check(self, step: Step, record: CellRecord) -> None:
        cell = int(step.source.partition("begins(")[2].partition(")")[0])
        begun = self._begun.read_text().splitlines()
        book = self._book.read_bytes().ljust(WORLD * SLOT_BYTES, b"\0")
        for rank in range(WORLD):
            verdict = record[rank].verdict
            times = begun.count(f"{cell} {rank}")
            assert times <= 1, f"rank {rank} ran the cell {times} times"
            self._check_verdict(step, record, rank)
            assert verdict != "ok" or times, f"rank {rank} is ok and never began"
            if verdict == "ok":
                self._kept[rank].append(cell)
            reported, *counts = struct.unpack_from("<qqq", book, SLOT_BYTES * rank)
            counts = counts if reported == cell else [0, 0]
            for stream, count in zip(("stdout", "stderr"), counts, strict=True):
                self._check_output(record, rank, stream, cell, count)
            assert record[rank].lost_messages == 0, f"rank {rank} lost messages"

    def _check_verdict(self, step: Step, record: CellRecord, rank: int) -> None:
        verdict, error = record[rank].verdict, record[rank].error
        said = f"rank {rank}: {verdict} {record[rank].death} {error.ename if error else ''}"
        said += f" {error.evalue[:300] if error else ''}"
        match verdict:
            case "ok":
                assert rank not in step.raises, said
            case "error":
                assert rank in step.raises, said
                assert error is not None
                assert error.ename in ("ValueError", "sys.exit(3)", "SystemExit"), said
            case "interrupted":
                reasons = self._presses or self._killed or step.raises
                assert reasons, said
            case "unknown" | "not-run":
                assert "agent" in self._servants_killed, said
            case "died":
                assert rank in self._killed or self._presses >= 3, said
                self._killed.add(rank)
            case _:
                raise Broken(said)

    def _check_output(self, record: CellRecord, rank: int, stream: str, cell: int, count: int) -> None:
        """The lines of this rank, each whole and in its place: all that it reported, at most one more."""
        text: str = getattr(record[rank], stream)
        lines = [line for line in text.splitlines() if line.startswith("@") or stream == "stdout"]
        for seq, line in enumerate(lines):
            body, crc = line[:-8], line[-8:]
            whole = body.startswith(f"@{cell}:{rank}:{seq}:") and crc == f"{zlib.crc32(body.encode()):08x}"
            last = seq == len(lines) - 1 and seq >= count and record[rank].verdict != "ok"
            cut = seq == len(lines) - 1 and "agent" in self._servants_killed
            assert whole or last or cut, f"rank {rank}, {stream}: line {seq} of {len(lines)} is {line[:80]!r}"
        if "agent" in self._servants_killed:  # and with it what it had not passed on yet
            count = min(count, len(lines))
        assert count <= len(lines) <= count + 1, (
            f"rank {rank} ({record[rank].verdict}) reported {count} lines on {stream}, and {len(lines)} came"
        )


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)  # what passes is the schedule's own time: nothing is waited for


def _eventually(so: Callable[[], bool], what: str, limit_s: float = NOTICED_S) -> None:
    deadline = time.monotonic() + limit_s
    while not so():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        _wait(0.005)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
