"""Schedules of faults at random moments. A seed that fails replays: `pytest … --nemesis-seed N`.

What the seed fixes is what is done and when; what the ranks do meanwhile is up to the machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core import ladder, running_cell
from tests import soak_figures
from tests.fault.nemesis import WORLD, Nemesis, Schedule, seeds


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's patience with ranks that wait, a tenth of what users get: more happens in less time."""
    for module, name in (
        (running_cell, "PEER_FAILED_TIMEOUT_S"),
        (running_cell, "PEER_DIED_TIMEOUT_S"),
        (ladder, "INTERRUPT_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


@pytest.mark.timeout(0)  # every step has its own bound, and their number is the user's choice
def test_schedules_of_faults(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No hang, no lost or altered line, no cell run twice, one verdict each, survivors whole, no orphan."""
    chosen = seeds(request.config)
    with Cluster(WORLD) as cluster:
        nemesis = Nemesis(cluster, tmp_path)
        for seed in chosen:
            nemesis.play(Schedule(seed))
    deeds = ", ".join(f"{n} {deed}" for deed, n in sorted(nemesis.deeds.items()))
    what = f"schedules of faults, seeds {chosen[0]} to {chosen[-1]}"
    soak_figures.note(what, "no hang, no lost byte, no cell run twice, no orphan", f"kept: {deeds}")


def test_a_seed_stands_for_one_schedule() -> None:
    """What a failure prints is what a replay does."""
    assert Schedule(7).steps == Schedule(7).steps
    assert Schedule(7).steps != Schedule(8).steps
