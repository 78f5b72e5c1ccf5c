"""From the facts of an exit to words."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.faults import describe_exit, describe_status, line_of_crash, signal_name
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


CRASH = """what the cell wrote before
Fatal Python error: Segmentation fault

Thread 0x00007f12 [jupyter_ddp control] (most recent call first):
  File "/site/jupyter_ddp/worker/control.py", line 67 in _serve
  File "<ipython-input-9-cell-9>", line 99 in elsewhere

Current thread 0x00007f13 [python] (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 500 in string_at
  File "<ipython-input-2-cell-3>", line 7 in defined_earlier
  File "<ipython-input-8-cell-9>", line 3 in <module>
  File "/site/jupyter_ddp/worker/shell.py", line 201 in _run_codes

Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)"""


def test_the_line_of_a_crash_is_the_cells_own() -> None:
    """Of the thread that crashed, in the cell that ran: not another thread's, not an earlier cell's."""
    assert line_of_crash(CRASH, 9) == 3
    assert line_of_crash(CRASH, 3) == 7


@pytest.mark.parametrize("stderr", ["", "Current thread 0x1 (most recent", CRASH[:250], "\n" * 9])
def test_without_the_words_of_a_crash_there_is_no_line(stderr: str) -> None:
    """What is cut short, or is no crash's text, gives no line."""
    assert line_of_crash(stderr, 9) == 0
