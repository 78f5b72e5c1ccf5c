"""What the soak's processes have from the start."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _lasting() -> None:
    """The pipe that torch's libuv makes once and keeps."""
    from jupyter_ddp.kernel.rendezvous import Rendezvous

    Rendezvous().close()
