"""What the soak's processes have from the start."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _lasting(pipe_of_libuv: None) -> None:
    """What this process keeps is there before anything is counted."""
