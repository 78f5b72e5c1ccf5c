"""Preloaded by a forkserver, which then forks ranks, and tells of none when it gets SIGUSR1."""

from __future__ import annotations

import signal

from jupyter_ddp.node import forkserver

_fork_batch = forkserver._fork_batch


def _fork_and_keep_silent(fds: list[int], begin: object) -> list[int]:
    _fork_batch(fds, begin)
    signal.sigwait({signal.SIGUSR1})
    return []


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
forkserver._fork_batch = _fork_and_keep_silent
