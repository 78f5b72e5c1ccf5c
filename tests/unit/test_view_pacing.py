"""How much a running cell may tell the browser."""

from __future__ import annotations

import pytest

from jupyter_ddp.view.pacing import BURST_BYTES, INTERVAL_S, RATE_BYTES_PER_S, Allowance

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


def test_messages_keep_their_distance() -> None:
    """However often somebody asks, each message has a place of its own, an interval after the one before."""
    allowance = Allowance(0.0)
    places = [now + allowance.take_place(now) for now in (0.0, 0.01, 0.02, 0.5, 0.51)]
    assert places == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.6])
    assert not allowance.is_free(0.69)
    assert allowance.is_free(0.7 + 1e-9)


def test_thirty_messages_in_three_seconds() -> None:
    """Whoever takes every place is within ten messages a second over any three."""
    allowance, now, sent = Allowance(0.0), 0.0, []
    for _ in range(100):
        now += allowance.take_place(now)
        sent.append(now)
    assert max(sum(at <= one < at + 3 - 1e-9 for one in sent) for at in sent) == round(3 / INTERVAL_S) == 30
