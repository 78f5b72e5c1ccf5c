"""From the facts of an exit to words."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.faults import describe_exit, describe_status, signal_name
from jupyter_ddp.core.messages import WorkerExited


def exited(status: int, *, line: int = 0, oom_kills: int = 0) -> WorkerExited:
    return WorkerExited(1, 4711, status, 3, line, "", oom_kills)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0x0000, "exited with code 0"),
        (0x0300, "exited with code 3"),
        (0xFF00, "exited with code 255"),
        (9, "killed by SIGKILL"),
        (11 | 0x80, "killed by SIGSEGV"),  # with a core dump
        (6, "killed by SIGABRT"),
        (35, "killed by signal 35"),
    ],
)
def test_a_status_in_words(status: int, words: str) -> None:
    """A waitpid status is told as the exit code or as the signal's name."""
    assert describe_status(status) == words


def test_a_signal_without_a_name_keeps_its_number() -> None:
    """Real-time signals and nonsense have no name and are not given one."""
    assert signal_name(2) == "SIGINT"
    assert signal_name(99) == "signal 99"


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (exited(9), "killed by SIGKILL"),
        (exited(9, line=4), "killed by SIGKILL (line 4)"),
        (exited(9, oom_kills=1), "killed by SIGKILL (out of memory: the cgroup counted a kill)"),
        (
            exited(9, line=2, oom_kills=3),
            "killed by SIGKILL (out of memory: the cgroup counted 3 kills) (line 2)",
        ),
        (exited(0x0300, line=1), "exited with code 3 (line 1)"),
    ],
)
def test_an_exit_says_what_the_facts_say(exit: WorkerExited, words: str) -> None:
    """The cause is the status, the cgroup's own count where it was SIGKILL, and the line it was on."""
    assert describe_exit(exit) == words


@pytest.mark.parametrize("status", [11, 15, 0x0100])
def test_memory_is_not_blamed_for_other_ends(status: int) -> None:
    """A count of out-of-memory kills beside another signal or an exit code is no cause."""
    assert "memory" not in describe_exit(exited(status, oom_kills=2))


GLOO = (
    "terminate called after throwing an instance of 'gloo::EnforceNotMet'\n  what():  [enforce fail at "
    "/w/gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 32 vs 16. Received data size doesn't"
)
ABORTED = 6


def test_gloos_abort_is_explained_with_its_sizes_and_the_remedy() -> None:
    """Only where gloo said so, and only for the signal that it ends a process with."""
    why = "gloo received 32 bytes for 16, a mismatch of collectives that %%ddp --check names"
    assert describe_exit(WorkerExited(1, 99, ABORTED, 7, 3, GLOO, 0)) == f"killed by SIGABRT (line 3): {why}"
    assert describe_exit(WorkerExited(1, 99, ABORTED, 7, 3, "", 0)) == "killed by SIGABRT (line 3)"
    assert describe_exit(WorkerExited(1, 99, 9, 7, 3, GLOO, 0)) == "killed by SIGKILL (line 3)"
