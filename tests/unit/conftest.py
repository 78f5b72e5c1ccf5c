"""Pools on a desk."""

from __future__ import annotations

import pytest

from tests.unit.desk import Desk


@pytest.fixture
def desk() -> Desk:
    """Without a pool."""
    return Desk()


@pytest.fixture
def three() -> Desk:
    """A pool of three ranks that takes cells."""
    desk = Desk()
    desk.come_up(3)
    return desk
