"""`make mutants`: change the modules that decide, in small ways, and see whether the tests notice.

Each mutant is tried in a process of its own that has everything else imported: the unit tests first, then
the pool's machine under a few hundred random sequences. Survivors are listed.
`python -m tests.mutants --at-least 90 [NAME …]`; ends with 1 below that. With `--tests property` it shows
what the sequences alone notice.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.mutations import Mutant, mutants

_MACHINE = [
    "tests/unit/test_pool_start.py",
    "tests/unit/test_pool_cells.py",
    "tests/unit/test_pool_resize.py",
    "tests/unit/test_pool_stop.py",
    "tests/unit/test_pool_looks.py",
    "tests/unit/test_pool_ladder.py",
    "tests/unit/test_healing.py",
    "tests/property/test_pool_machine.py",
]
MODULES = {
    "jupyter_ddp.core.pool": _MACHINE,
    "jupyter_ddp.core.membership": _MACHINE,
    "jupyter_ddp.core.running_cell": _MACHINE,
    "jupyter_ddp.core.ladder": ["tests/unit/test_pool_ladder.py", *_MACHINE],
    "jupyter_ddp.core.healing": ["tests/unit/test_healing.py", *_MACHINE],
    "jupyter_ddp.core.lookout": ["tests/unit/test_lookout.py", *_MACHINE],
    "jupyter_ddp.core.steps": ["tests/unit/test_hang.py", "tests/unit/test_lookout.py"],
    "jupyter_ddp.core.hang": ["tests/unit/test_hang.py", "tests/unit/test_lookout.py"],
    "jupyter_ddp.core.faults": ["tests/unit/test_faults.py", "tests/property/test_faults.py"],
}
"""The modules that decide, and the tests that are to notice, the quickest first."""
EXAMPLES = 300
PATIENCE = 10
"""A mutant that takes so many times as long as the module itself loops, and the tests would have noticed."""
ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-least", type=float, default=90.0, help="percent to be killed")
    parser.add_argument("--tests", default="", help="only by the tests whose path has this in it")
    parser.add_argument("--every", type=int, default=1, help="try one mutant of so many")
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    chosen = parser.parse_args()
    for name, tests in MODULES.items():
        MODULES[name] = [test for test in tests if chosen.tests in test]
    os.environ["JUPYTER_DDP_POOL_EXAMPLES"] = str(EXAMPLES)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others' plugins take longer to load than the tests
    share = 100.0
    for name in chosen.modules:
        share = min(share, _try_all(name, chosen.every))
    return int(share < chosen.at_least)


def _try_all(name: str, step: int) -> float:
    """Percent of this module's mutants, or of one of so many, that were killed."""
    path = ROOT / (name.replace(".", "/") + ".py")
    source = path.read_text()
    began = time.monotonic()
    assert _survives(name, path, Mutant(0, "", source), 600), "the tests fail without any mutation"
    limit_s = PATIENCE * (time.monotonic() - began)
    every = list(mutants(source))[::step]
    began = time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        survived = list(threads.map(lambda mutant: _survives(name, path, mutant, limit_s), every))
    left = [mutant for mutant, alive in zip(every, survived, strict=True) if alive]
    killed = 100 * (len(every) - len(left)) / len(every)
    seconds = time.monotonic() - began
    print(f"{name}: {len(every) - len(left)} of {len(every)} killed, {killed:.1f} % ({seconds:.0f} s)")
    for mutant in left:
        print(f"  survived: {mutant}")
    sys.stdout.flush()
    return killed


def _survives(name: str, path: Path, mutant: Mutant, limit_s: float) -> bool:
    """No test of this module's notices."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _run(name, path, mutant)
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def _run(name: str, path: Path, mutant: Mutant) -> int:
    """In the child: put the mutant in the module's place, then run the tests that are its own."""
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    module = sys.modules[name] = types.ModuleType(name)
    try:
        exec(compile(mutant.source, str(path), "exec"), module.__dict__)
    except Exception:  # noqa: BLE001  # a mutant that cannot be imported is dead
        return 1
    setattr(sys.modules["jupyter_ddp.core"], name.rpartition(".")[2], module)
    plugins = ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "-p", "pytest_timeout"]
    options = ["-x", "-q", *plugins, "--hypothesis-profile=mutants"]
    return int(pytest.main([*options, *MODULES[name]]))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    # What every mutant needs is imported once, before the forks; what is mutated, and its users, are not.
    for needed in (
        "pytest",
        "hypothesis.strategies",
        "psutil",
        "jupyter_ddp.core.codec",
        "jupyter_ddp.core.faults",
    ):
        importlib.import_module(needed)
    sys.exit(main())
