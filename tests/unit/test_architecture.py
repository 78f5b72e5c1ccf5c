"""Who may import whom, that the rules which say so would notice, and what an import brings along."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jupyter_ddp

PACKAGE = Path(jupyter_ddp.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"

DOWN = "Imports go down only"
ALONE = "A rank and a node agent reach core alone"
PURE = "core is pure"

FORBIDDEN = [
    # (a module of this folder, imports this, and these rules must fail)
    ("core", "jupyter_ddp.kernel", {DOWN}),
    ("core", "jupyter_ddp.node", {DOWN}),
    ("core", "jupyter_ddp.worker", {DOWN}),
    ("core", "jupyter_ddp.launch", {DOWN}),
    ("core", "jupyter_ddp.view", {DOWN}),
    *[
        ("core", name, {PURE})
        for name in ("torch", "IPython", "socket", "time", "subprocess", "threading", "psutil", "pynvml")
    ],
    ("launch", "jupyter_ddp.kernel", {DOWN}),
    ("launch", "jupyter_ddp.node", {DOWN}),
    ("launch", "jupyter_ddp.worker", {DOWN}),
    ("launch", "jupyter_ddp.view", {DOWN}),
    ("view", "jupyter_ddp.kernel", {DOWN}),
    ("view", "jupyter_ddp.node", {DOWN}),
    ("view", "jupyter_ddp.worker", {DOWN}),
    ("view", "jupyter_ddp.launch", {DOWN}),
    ("node", "jupyter_ddp.kernel", {DOWN, ALONE}),
    ("node", "jupyter_ddp.worker", {DOWN}),
    ("node", "jupyter_ddp.view", {ALONE}),
    ("node", "jupyter_ddp.launch", {ALONE}),
    ("worker", "jupyter_ddp.kernel", {DOWN, ALONE}),
    ("worker", "jupyter_ddp.node", {DOWN}),
    ("worker", "jupyter_ddp.view", {ALONE}),
    ("worker", "jupyter_ddp.launch", {ALONE}),
    ("kernel", "jupyter_ddp.node", {DOWN}),
    ("kernel", "jupyter_ddp.worker", {DOWN}),
    ("a_new_folder", "jupyter_ddp.core", {DOWN}),  # the rules leave no folder out
]

# lint-imports in each folder named on stdin, by a fork that has import-linter imported already: the same
# rules read from the same file, but 26 times in two seconds. It prints one line of JSON for each.
LINTER = """
import contextlib, io, json, os, sys
from importlinter.application import use_cases
from importlinter.configuration import configure

configure()
for where in sys.stdin.read().split():
    sys.stdout.flush()
    if os.fork() == 0:
        os.chdir(where)
        sys.path.insert(0, where)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            from importlinter.application.output import console
            console.file = said
            use_cases.lint_imports(cache_dir=None, no_logo=True)
        print(json.dumps(said.getvalue()))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def copy_of_the_package(to: Path) -> Path:
    shutil.copytree(PACKAGE, to / "jupyter_ddp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PYPROJECT, to)
    return to


def broken(said: str) -> set[str]:
    """The rules that lint-imports called broken; every rule must have been called one or the other."""
    lines = [line.strip() for line in said.splitlines()]
    for rule in (DOWN, ALONE, PURE):
        assert f"{rule} KEPT" in lines or f"{rule} BROKEN" in lines, said
    return {rule for rule in (DOWN, ALONE, PURE) if f"{rule} BROKEN" in lines}


@pytest.fixture(scope="module")
def lint_results(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """The broken rules of the package as it is, then of a copy for each line of FORBIDDEN."""
    places = [copy_of_the_package(tmp_path_factory.mktemp("as_it_is"))]
    for folder, imported, _ in FORBIDDEN:
        place = copy_of_the_package(tmp_path_factory.mktemp(f"{folder}_{imported}"))
        (place / "jupyter_ddp" / folder).mkdir(exist_ok=True)
        with (place / "jupyter_ddp" / folder / "__init__.py").open("a") as module:
            module.write(f"\nimport {imported}\n")
        places.append(place)
    done = subprocess.run(
        [sys.executable, "-c", LINTER],
        input="\n".join(map(str, places)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [broken(json.loads(line)) for line in done.stdout.splitlines()]


def test_the_package_keeps_its_rules(lint_results: list[set[str]]) -> None:
    """Every import goes the way that pyproject.toml allows."""
    assert lint_results[0] == set()


@pytest.mark.parametrize("number", range(len(FORBIDDEN)), ids=[f"{who}-{what}" for who, what, _ in FORBIDDEN])
def test_one_forbidden_import_breaks_its_rule(lint_results: list[set[str]], number: int) -> None:
    """A rule that cannot fail shows nothing: each of these imports, added to a copy, breaks its rule."""
    assert FORBIDDEN[number][2] <= lint_results[1 + number]


def imported_with(code: str, *suspects: str) -> list[str]:
    """Which of these modules a fresh Python has imported after this code."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {suspects!r} if name in sys.modules]))"
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_importing_the_package_is_light() -> None:
    """`import jupyter_ddp` brings neither torch nor IPython nor a template engine with it."""
    assert imported_with("import jupyter_ddp", "torch", "IPython", "jinja2", "numpy", "zmq") == []


@pytest.mark.parametrize(
    ("folder", "suspects"),
    [
        ("core", ("torch", "IPython", "jinja2", "numpy", "psutil", "pynvml", "socket", "subprocess")),
        ("node", ("torch", "IPython", "jinja2", "numpy", "ipykernel")),
    ],
)
def test_no_module_of_this_folder_imports_what_is_heavy(folder: str, suspects: tuple[str, ...]) -> None:
    """The agent runs beside every pool and the core everywhere: neither brings torch or IPython along."""
    code = f"""
import importlib, pkgutil
import jupyter_ddp.{folder} as folder
for module in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    assert imported_with(code, *suspects) == []
