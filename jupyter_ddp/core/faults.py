"""From a process's exit to its cause, in words. Says only what the facts say: no guesses."""

from __future__ import annotations

import os
import re
import signal

from jupyter_ddp.core.messages import WorkerExited

_GLOO_SIZES = re.compile(r"enforce fail at \S*gloo/.*op\.preamble\.length <= op\.nbytes\. (\d+) vs (\d+)")
"""How gloo ends a process that was sent more than it had asked for (gloo/transport/tcp/pair.cc)."""


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


def explain_abort(stderr: str) -> str:
    """What gloo wrote before it ended the process for a mismatch of sizes; "" if it did not."""
    sizes = _GLOO_SIZES.search(stderr)
    if sizes is None:
        return ""
    came, fits = sizes.groups()
    return f"gloo received {came} bytes for {fits}, a mismatch of collectives that %%ddp --check names"


def describe_exit(exit: WorkerExited) -> str:
    """Why a rank ended: its status, the kernel's own count of out-of-memory kills, and the line."""
    words = describe_status(exit.status)
    if exit.oom_kills and os.WIFSIGNALED(exit.status) and os.WTERMSIG(exit.status) == signal.SIGKILL:
        times = "a kill" if exit.oom_kills == 1 else f"{exit.oom_kills} kills"
        words += f" (out of memory: the cgroup counted {times})"
    if exit.line:
        words += f" (line {exit.line})"
    if os.WIFSIGNALED(exit.status) and os.WTERMSIG(exit.status) == signal.SIGABRT:
        words += f": {why}" if (why := explain_abort(exit.stderr)) else ""
    return words
