"""The notebook kernels that a module's tests share. RANKS in a module sets its pool's size (2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.notebook_kernel import NotebookKernel


@pytest.fixture(scope="session", autouse=True)
def _lasting(event_loop_of_jupyter_client: None) -> None:
    """What this process keeps is there before anything is counted."""


@pytest.fixture(scope="module")
def kernel(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[NotebookKernel]:
    """A notebook kernel with a pool, shared by the module's tests."""
    with NotebookKernel(tmp_path_factory.mktemp("notebook")) as kernel:
        kernel.start_pool(getattr(request.module, "RANKS", 2))
        yield kernel


@pytest.fixture(autouse=True)
def _earlier_cells_have_ended(request: pytest.FixtureRequest) -> None:
    """A cell that hangs fails its own test; the module's other tests do not wait for it each in turn."""
    if "kernel" in request.fixturenames:
        stuck = request.getfixturevalue("kernel").unfinished
        assert not stuck, f"an earlier test's cell has not ended: {stuck}"


@pytest.fixture
def nb(kernel: NotebookKernel) -> NotebookKernel:
    """The shared kernel as a batch front end has it: nobody watches, each output is shown once."""
    kernel.live = False
    return kernel


@pytest.fixture
def lab(kernel: NotebookKernel) -> NotebookKernel:
    """The shared kernel as JupyterLab has it: output is shown while the cell runs."""
    kernel.live = True
    return kernel
