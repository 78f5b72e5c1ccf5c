"""How much a running cell may tell the browser."""

from __future__ import annotations

from jupyter_ddp.view.pacing import BURST_BYTES, RATE_BYTES_PER_S, Allowance

SERVER_BYTES_PER_S = 1_000_000
"""Jupyter Server drops output beyond this, averaged over 3 s."""


def test_over_any_three_seconds_it_stays_within_the_servers_rate() -> None:
    """Whoever sends all that there is room for, ten times a second, is never above the rate."""
    allowance = Allowance(0.0)
    sent = []
    for tick in range(200):
        room = allowance.room(tick / 10)
        allowance.spend(room)
        sent.append(room)
    assert max(sum(sent[at : at + 31]) for at in range(len(sent))) < 3 * SERVER_BYTES_PER_S


def test_it_fills_while_nothing_is_said() -> None:
    """After a pause there is a burst, and no more than that."""
    allowance = Allowance(0.0)
    allowance.spend(BURST_BYTES)
    assert allowance.room(0.5) == RATE_BYTES_PER_S // 2
    assert allowance.room(100.0) == BURST_BYTES
    allowance.spend(2 * BURST_BYTES)
    assert allowance.room(100.0) == 0
