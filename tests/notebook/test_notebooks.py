"""The example notebooks: what is saved in them is what comes out, and holds nothing of the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "01-first-cell.ipynb"
DIGITS = ROOT / "notebooks" / "02-digits.ipynb"

# What must not be saved: it would differ in the next run, or belongs to one machine.
_OF_A_RUN = {
    "an address or a port": r"\b\d{1,3}(\.\d{1,3}){3}\b|localhost|\bport\b",
    "a process": r"(?i)\bpid\b",
    "an object's address": r"\b0x[0-9a-f]{6,}",
    "an id": r"\b[0-9a-f]{8}-[0-9a-f]{4}-|\b[0-9a-f]{32}\b",
    "a path": r"(?<![\w</:])/(home|root|tmp|usr|work|opt|mnt|var|proc|Users)\b",
    "a control sequence": r"\x1b",
    "a script or style sheet": r"<(script|style|iframe|link)\b",
}
_PICTURE = re.compile(r"data:image/[\w+]+;base64,[A-Za-z0-9+/=]+")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def nbval(path: Path) -> subprocess.CompletedProcess[str]:
    """pytest --nbval on one notebook: every output is compared with the saved one."""
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_are_notebooks() -> None:
    """The tests below run on something."""
    assert [path.stem for path in NOTEBOOKS] == ["01-first-cell", "02-digits"]


def test_what_is_saved_is_what_comes_out(path: Path) -> None:
    """Strict nbval passes on the notebook as it was saved after a live run."""
    done = nbval(path)
    assert done.returncode == 0, done.stdout[-6000:]


def test_another_output_is_noticed(tmp_path: Path) -> None:
    """The test above can fail: with one number of one rank changed in the saved page, it does."""
    notebook = nbformat.read(FIRST, as_version=4)
    page = next(o.data for cell in code_cells(notebook) for o in cell.outputs if "tensor([10.])" in str(o))
    page["text/html"] = page["text/html"].replace("tensor([10.])", "tensor([11.])")
    nbformat.write(notebook, tmp_path / "other.ipynb")
    done = nbval(tmp_path / "other.ipynb")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "text/html" in done.stdout


def test_only_the_static_bundle_is_saved(path: Path) -> None:
    """Streams, values and our page: no widget, no display id, no error, no metadata."""
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.execution_count is not None, "not run"
        assert cell.metadata == {}
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result")
            if output.output_type == "display_data":
                assert {"text/plain"} <= set(output.data) <= {"text/plain", "text/html"}
            assert output.get("metadata", {}) == {}


def test_nothing_of_the_run_is_saved(path: Path) -> None:
    """No ids, ports, PIDs, addresses or paths in what the cells show."""
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for text in texts(cell):
            for what, pattern in _OF_A_RUN.items():
                found = re.search(pattern, _PICTURE.sub("", text))
                assert found is None, f"{what}: {found} in the output of {cell.source!r}"


def test_run_from_the_top(path: Path) -> None:
    """The cells were run once each, in order, in a fresh notebook kernel."""
    counts = [cell.execution_count for cell in code_cells(nbformat.read(path, as_version=4))]
    assert counts == list(range(1, len(counts) + 1))


def test_the_digits_are_learned() -> None:
    """The saved outputs say so: at least 95 % right, one network on all ranks, a picture of the losses."""
    shown = [text for cell in code_cells(nbformat.read(DIGITS, as_version=4)) for text in texts(cell)]
    whole = "\n".join(shown)
    assert "accuracy >= 95 %: True" in whole
    assert "largest difference of a weight between ranks: 0.0" in whole
    assert "ranks 0–3 · identical" in whole
    assert len(_PICTURE.findall(whole)) == 1


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """All that a cell shows, as text or HTML."""
    shown: list[str] = []
    for output in cell.outputs:
        shown += [output.text] if "text" in output else output.data.values()
    return shown
