"""From a process's exit to its cause, in words. Says only what the facts say: no guesses."""

from __future__ import annotations

import os
import re
import signal

from jupyter_ddp.core.messages import WorkerExited

# As faulthandler writes it; of all threads' stacks, that of the one that failed.
_FAILED_STACK = re.compile(r"^Current thread 0x\w+.*\n((?:  .*\n?)*)", re.MULTILINE)


def signal_name(number: int) -> str:
    """ "SIGKILL" for 9; "signal 99" for a number that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_status(status: int) -> str:
    """A waitpid status in words: "killed by SIGKILL", "exited with code 3"."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal_name(os.WTERMSIG(status))}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


def line_of_crash(stderr: str, cell: int) -> int:
    """The line of this cell that a crash came from, by faulthandler's own words; 0 where it wrote none."""
    stacks = _FAILED_STACK.findall(stderr)
    found = re.search(rf'File "<[^"\n]*-cell-{cell}>", line (\d+)', stacks[-1]) if stacks else None
    return int(found[1]) if found else 0


def describe_exit(exit: WorkerExited) -> str:
    """Why a rank ended: its status, the kernel's own count of out-of-memory kills, and the line."""
    words = describe_status(exit.status)
    if exit.oom_kills and os.WIFSIGNALED(exit.status) and os.WTERMSIG(exit.status) == signal.SIGKILL:
        times = "a kill" if exit.oom_kills == 1 else f"{exit.oom_kills} kills"
        words += f" (out of memory: the cgroup counted {times})"
    if exit.line:
        words += f" (line {exit.line})"
    return words
