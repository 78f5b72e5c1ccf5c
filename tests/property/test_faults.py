"""Exits in words, for every status."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.messages import WorkerExited

CODES = st.integers(0, 255).map(lambda code: code << 8)
SIGNALS = st.tuples(st.integers(1, 64), st.sampled_from([0, 0x80])).map(lambda pair: pair[0] | pair[1])


@given(CODES | SIGNALS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_exit_has_words_on_one_line(status: int, line: int, oom_kills: int) -> None:
    """Whatever waitpid gave, the words are one line that starts with what happened."""
    words = describe_exit(WorkerExited(0, 1, status, 1, line, "", oom_kills))
    assert words.startswith(("killed by SIG", "killed by signal ", "exited with code "))
    assert len(words.splitlines()) == 1
