"""What all tests share: kinds and their markers, what is skipped and why, and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest

from tests.promises import MARKER, Promises, Stopwatch

if TYPE_CHECKING:
    from tests.integration.notebook_kernel import NotebookKernel

TESTS = Path(__file__).parent
STARTING_PROCESSES = {"integration", "fault", "soak", "browser", "notebook", "gpu", "benchmarks"}
"""Kinds of test that carry the marker `processes` without saying so."""

LEFT_TIMEOUT_S = 5.0
"""How long a process or thread that a test has told to end may take to do so."""

# Threads of other people's libraries that live as long as the process, by design.
LASTING_THREADS = ("IPythonHistorySavingThread", "tqdm_monitor")

hypothesis.settings.register_profile("short", max_examples=60, deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)
hypothesis.settings.register_profile(  # whether anything is found, not the smallest example of it
    "mutants", phases=[hypothesis.Phase.generate], derandomize=True, database=None, deadline=None
)
hypothesis.settings.load_profile("short")


# --- which tests run ------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked `slow`")
    parser.addoption("--nemesis-seed", type=int, help="the one schedule of faults to play (tests/fault)")


_PROMISES = pytest.StashKey[Promises]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    promises = config.stash[_PROMISES] = Promises()
    config.pluginmanager.register(promises)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if kind in STARTING_PROCESSES:
            item.add_marker("processes")
        if kind == "gpu":
            item.add_marker("gpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if not _installed(program):
                pytest.skip(f"{program} is not installed; `.ci/debian-packages` as root installs it")
    if item.get_closest_marker("slow") and not item.config.getoption("--all"):
        pytest.skip("slow: `make test-all` runs it")
    if item.get_closest_marker("gpu") and not any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("no NVIDIA GPU")


def _installed(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None


@pytest.fixture
def promised(request: pytest.FixtureRequest) -> Stopwatch:
    """`with promised():` measures what the test's marker `promise` gives a bound for."""
    return request.config.stash[_PROMISES].stopwatch(request)


# --- what several kinds use -----------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., NotebookKernel]]:
    """Makes notebook kernels that the test has for itself; they are closed after it."""
    from tests.integration.notebook_kernel import NotebookKernel  # which few kinds need

    made: list[NotebookKernel] = []

    def make(environ: dict[str, str] | None = None) -> NotebookKernel:
        made.append(NotebookKernel(tmp_path / f"kernel{len(made)}", environ))
        return made[-1]

    yield make
    for kernel in made:
        kernel.close()


@pytest.fixture(scope="session")
def event_loop_of_jupyter_client() -> None:
    """It is made once and kept: it belongs to no module's leftovers."""
    from jupyter_core.utils import ensure_event_loop

    ensure_event_loop()


@pytest.fixture(scope="session")
def pipe_of_libuv() -> None:
    """It is made once, by the first store of torch's in a process, and kept."""
    from jupyter_ddp.kernel.rendezvous import Rendezvous

    Rendezvous().close()


# --- nothing is left ------------------------------------------------------------------------------


class Leftovers:
    """The children, threads and descriptors of this process at one moment, to compare with later."""

    def __init__(self) -> None:
        self.children = set(_descendants(os.getpid()))
        self.threads = set(threading.enumerate())
        self.descriptors = _descriptors()

    def since(self) -> list[str]:
        """What is there now beyond what was there then, in words.

        Numbers count, not identities: a pool that several tests share may replace a rank. What has
        been told to end is given LEFT_TIMEOUT_S to do so.
        """
        return [*self._children_left(), *self._threads_left(), *self._descriptors_left()]

    def _children_left(self) -> list[str]:
        if len(_descendants(os.getpid())) <= len(self.children):
            return []
        now = psutil.Process().children(recursive=True)
        _, left = psutil.wait_procs([p for p in now if p.pid not in self.children], LEFT_TIMEOUT_S)
        excess = len(_descendants(os.getpid())) > len(self.children)
        return [f"process {_words(p)}" for p in left if excess]

    def _threads_left(self) -> list[str]:
        new = [t for t in threading.enumerate() if t not in self.threads and t.name not in LASTING_THREADS]
        gone = [t for t in self.threads if not t.is_alive()]
        if len(new) <= len(gone):
            return []
        for thread in new:
            thread.join(LEFT_TIMEOUT_S / len(new))
        left = [t for t in new if t.is_alive()]
        return [f"thread {t.name}" for t in left if len(left) > len(gone)]

    def _descriptors_left(self) -> list[str]:
        now = _descriptors()
        if len(now) > len(self.descriptors):
            gc.collect()  # a socket in a reference cycle is closed by the collector
            now = _descriptors()
        if len(now) <= len(self.descriptors):
            return []
        return [f"descriptor {fd} → {to}" for fd, to in now.items() if self.descriptors.get(fd) != to]


def _descendants(pid: int) -> list[int]:
    """As psutil's children(recursive=True), which reads all of /proc: too slow around each test."""
    found: list[int] = []
    for task in _listing(f"/proc/{pid}/task"):
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text()
        except OSError:
            continue  # the thread, or the process, has ended
        for child in map(int, children.split()):
            found += [child, *_descendants(child)]
    return found


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all it takes
    except OSError:
        return []


def _words(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}): {' '.join(process.cmdline())[:200] or process.name()}"
    except psutil.Error:
        return str(process.pid)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in _listing("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - the name as it is
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found


def check_leftovers(before: Leftovers, whom: str) -> None:
    if left := before.since():
        pytest.fail(f"left behind by {whom}:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing() -> Iterator[None]:
    """Set up before the module's own fixtures and torn down after them: a shared pool must be gone."""
    before = Leftovers()
    yield
    check_leftovers(before, "the fixtures of this module")


@pytest.fixture(autouse=True)
def _test_leaves_nothing(_module_leaves_nothing: None) -> Iterator[None]:
    """Set up after the module's fixtures that the test uses, so a shared pool is in the baseline."""
    before = Leftovers()
    yield
    check_leftovers(before, "this test")
