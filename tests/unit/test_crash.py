"""What a rank's crash says: the cell's line, and words without anything that differs from run to run."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.crash import line_of_crash, words_of_crash

CRASH = """what the cell wrote before
Fatal Python error: Segmentation fault

Thread 0x00007f12 [jupyter_ddp control] (most recent call first):
  File "/site/jupyter_ddp/worker/control.py", line 67 in _serve
  File "<ipython-input-9-cell-9>", line 99 in elsewhere

Current thread 0x00007f13 [python] (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 500 in string_at
  File "<ipython-input-2-cell-3>", line 7 in defined_earlier
  File "<ipython-input-8-cell-9>", line 3 in <module>
  File "/site/jupyter_ddp/worker/shell.py", line 201 in _run_codes

Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)"""


def test_the_line_of_a_crash_is_the_cells_own() -> None:
    """Of the thread that crashed, in the cell that ran: not another thread's, not an earlier cell's."""
    assert line_of_crash(CRASH, 9) == 3
    assert line_of_crash(CRASH, 3) == 7


@pytest.mark.parametrize("dump", ["", "Current thread 0x1 (most recent", CRASH[:150], "\n" * 9])
def test_without_the_words_of_a_crash_there_is_no_line(dump: str) -> None:
    """What is cut short, or is no crash's text, gives no line."""
    assert line_of_crash(dump, 9) == 0


IN_C_THREAD = """Fatal Python error: Aborted

Thread 0x00007f12 (most recent call first):
  File "/site/jupyter_ddp/worker/control.py", line 66 in _serve

Thread 0x00007f88 (most recent call first):
  File "/site/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "<ipython-input-26-cell-26>", line 2 in <module>
  File "/site/jupyter_ddp/worker/shell.py", line 206 in _run_codes

Extension modules: torch._C (total: 1)
"""


def test_a_crash_in_a_thread_without_python_is_the_cells() -> None:
    """gloo ends the process from a thread of its own: the line is the one that the cell waits on."""
    assert line_of_crash(IN_C_THREAD, 26) == 2
    assert line_of_crash(IN_C_THREAD, 25) == 0


def test_the_words_shown_hold_no_address_and_no_frame_of_ours() -> None:
    """The cause, then the stack from where it happened down to the cell."""
    assert words_of_crash(IN_C_THREAD, 26) == (
        "Fatal Python error: Aborted\n"
        '  File "/site/torch/distributed/distributed_c10d.py", line 3252 in all_reduce\n'
        '  File "<cell>", line 2 in <module>\n'
    )
    assert words_of_crash(CRASH, 9) == (
        "Fatal Python error: Segmentation fault\n"
        '  File "/usr/lib/python3.11/ctypes/__init__.py", line 500 in string_at\n'
        '  File "<cell>", line 7 in defined_earlier\n'
        '  File "<cell>", line 3 in <module>\n'
    )


def test_a_crash_outside_any_cell_has_its_cause_alone() -> None:
    assert words_of_crash(IN_C_THREAD, 0) == "Fatal Python error: Aborted\n"
    assert words_of_crash("", 3) == ""
    assert words_of_crash("what somebody wrote", 3) == ""
