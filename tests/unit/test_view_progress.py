"""A pool that starts, in one line."""

from __future__ import annotations

from types import SimpleNamespace

from jupyter_ddp.view.status import progress_text


def rank(number: int, state: str, device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(rank=number, state=state, device=device)


def test_each_rank_ticks_off_its_step() -> None:
    """A sign and a number for each; the time once it takes long."""
    ranks = [rank(0, "idle"), rank(1, "connected"), rank(2, "forked"), rank(3, "waiting")]
    assert progress_text(0.5, ranks) == "starting 4 ranks: ✓0 ◑1 ◔2 ·3"
    assert progress_text(3.0, ranks) == "starting 4 ranks (3 s): ✓0 ◑1 ◔2 ·3"


def test_before_there_is_any_process() -> None:
    """What is waited for then is torch."""
    assert progress_text(2.5, []) == "starting the ranks (2 s): importing torch"
    assert progress_text(0.1, [rank(0, "waiting")]) == "starting 1 rank: importing torch"


def test_gpus_that_have_to_be_shared_are_said_while_ranks_start() -> None:
    """And not only once they have."""
    two = [rank(n, "waiting", f"cuda:{n % 2}") for n in range(4)]
    assert progress_text(0.1, two) == "starting 4 ranks on 2 GPUs: importing torch"
    one = [rank(n, "forked", "cuda:0") for n in range(2)]
    assert progress_text(0.1, one) == "starting 2 ranks on 1 GPU: ◔0 ◔1"
    enough = [rank(n, "forked", f"cuda:{n}") for n in range(2)]
    assert progress_text(0.1, enough) == "starting 2 ranks: ◔0 ◔1"


def test_of_many_ranks_the_ready_ones_are_counted() -> None:
    """A hundred signs are no news."""
    ranks = [rank(n, "idle" if n < 60 else "forked") for n in range(100)]
    assert progress_text(0.1, ranks) == "starting 100 ranks: 60 ready"
