"""The warm pools that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Leftovers, check_leftovers
from tests.fault.fuse import Fuse
from tests.fault.pools import Pools

RANKS = 2
"""The size of the pool that a test finds, unless its parameter `n` or RANKS in its module says another."""


@pytest.fixture(scope="session", autouse=True)
def _lasting(event_loop_of_jupyter_client: None, pipe_of_libuv: None) -> None:
    """What this process keeps is there before anything is counted."""


@pytest.fixture(scope="module")
def pools(request: pytest.FixtureRequest) -> Iterator[Pools]:
    """`pools.of(4)` is a pool of four living, idle ranks; the module's tests share its forkserver.

    The module's SETTINGS, if it has any, are those of the cluster.
    """
    with Pools(**getattr(request.module, "SETTINGS", {})) as pools:
        yield pools


@pytest.fixture(autouse=True)
def _test_leaves_nothing(_module_leaves_nothing: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """As for all tests, from when the shared pool is whole and of the size that the test will use."""
    if "pools" in request.fixturenames:
        params = getattr(request.node, "callspec", None)
        size = params.params.get("n") if params else None
        request.getfixturevalue("pools").of(size or getattr(request.module, "RANKS", RANKS))
    before = Leftovers()
    yield
    check_leftovers(before, "this test")


@pytest.fixture
def fuse(tmp_path: Path) -> Fuse:
    return Fuse(tmp_path)
