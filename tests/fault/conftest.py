"""The warm pools that a module's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_core.utils import ensure_event_loop

from tests.conftest import Leftovers, check_leftovers
from tests.fault.fuse import Fuse
from tests.fault.pools import Pools
from tests.integration.notebook_kernel import NotebookKernel

RANKS = 2
"""The size of the pool that a test finds, unless its parameter `n` or RANKS in its module says another."""


@pytest.fixture(scope="session", autouse=True)
def _lasting() -> None:
    """What libraries make once and keep: jupyter_client's event loop, the pipe of torch's libuv."""
    ensure_event_loop()
    from jupyter_ddp.kernel.rendezvous import Rendezvous

    Rendezvous().close()


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


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., NotebookKernel]]:
    """Makes notebook kernels that the test has for itself; they are closed after it."""
    made: list[NotebookKernel] = []

    def make(environ: dict[str, str] | None = None) -> NotebookKernel:
        made.append(NotebookKernel(tmp_path / f"kernel{len(made)}", environ))
        return made[-1]

    yield make
    for kernel in made:
        kernel.close()
