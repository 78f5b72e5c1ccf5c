"""Cells in front ends that write each output once, as text: IPython and jupyter console."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_ddp.view.ansi import strip

SESSION = r"""
%load_ext jupyter_ddp
run = get_ipython().run_cell_magic
run("ddp", "-n 2", "import time\nprint('first of', rank)\ntime.sleep(0.5)\nprint('last of', rank)")
run("ddp", "", "print('before'); 1 / rank")
%ddp status
%ddp
run("ddp", "", "print('after', rank)")
exit
"""
TOOLS = {
    "ipython": [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner"],
    "jupyter console": [sys.executable, "-m", "jupyter_console", "--simple-prompt"],
}


def typed(tool: str, lines: str, folder: Path) -> str:
    """What the tool prints for the lines."""
    if "console" in tool:
        pytest.importorskip("jupyter_console")
    own = {"IPYTHONDIR": str(folder / ".ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    done = subprocess.run(
        TOOLS[tool],
        input=lines,
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return strip(done.stdout + done.stderr)


@pytest.mark.processes
@pytest.mark.parametrize("tool", TOOLS)
def test_a_terminal(tool: str, tmp_path: Path) -> None:
    """All that the ranks wrote stands there once, as text; an error is one line, and the next cell runs."""
    said = typed(tool, SESSION, tmp_path)
    for rank in range(2):
        assert said.count(f"[rank {rank}]\nfirst of {rank}\nlast of {rank}\n") == 1, said
        assert f"[rank {rank}]\nafter {rank}\n" in said
    assert said.count("ZeroDivisionError: division by zero\n[rank 1]\nbefore\n") == 1, said
    assert said.count("RankError: rank 0: ZeroDivisionError: division by zero (line ") == 1, said
    assert len(re.findall(r"2 ranks, gloo, ready\nrank +pid +device +state +age", said)) == 2, said
    assert not any(
        sign in said for sign in ("◔", "widget", "<details", "Traceback (most recent call last)\n\n")
    )
