"""From a process's exit to its cause, in words. Says only what the facts say: no guesses."""

from __future__ import annotations

import os
import signal

from jupyter_ddp.core.messages import WorkerExited


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


def describe_exit(exit: WorkerExited) -> str:
    """Why a rank ended: its status, the kernel's own count of out-of-memory kills, and the line."""
    words = describe_status(exit.status)
    if exit.oom_kills and os.WIFSIGNALED(exit.status) and os.WTERMSIG(exit.status) == signal.SIGKILL:
        times = "a kill" if exit.oom_kills == 1 else f"{exit.oom_kills} kills"
        words += f" (out of memory: the cgroup counted {times})"
    if exit.line:
        words += f" (line {exit.line})"
    return words
