"""What of an exception's frames is shown: the user's own, and of many the first and the last."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest

from jupyter_ddp.worker.tracebacks import MAX_FRAMES, left_out, user_traceback

DEEP = 300


def is_cell_file(name: str) -> bool:
    return name.startswith("<ipython-input-")


def cell(source: str) -> dict[str, Any]:
    """The names that a cell defines."""
    names: dict[str, Any] = {}
    exec(compile(source, "<ipython-input-1-cell-1>", "exec"), names)
    return names


def raised(run: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        run()
    return caught.value


def shown(error: BaseException) -> tuple[list[str], str]:
    """The functions whose frames are shown, and what is said of the others."""
    with user_traceback(error, error.__traceback__, is_cell_file) as (tb, _):
        words = left_out(error.__traceback__, tb, is_cell_file)
        return [f.tb_frame.f_code.co_name for f in frames(tb)], words


def frames(tb: TracebackType | None) -> list[TracebackType]:
    found = []
    while tb is not None:
        found.append(tb)
        tb = tb.tb_next
    return found


def test_a_deep_recursion_is_shown_by_its_ends() -> None:
    """Of a function that calls itself as many calls are shown as stack_data shows; the rest is counted."""
    names = cell(f"def down(n):\n    return 1 / 0 if n == {DEEP} else down(n + 1)")
    functions, words = shown(raised(lambda: names["down"](0)))
    assert functions.count("down") == 3
    n_frames = DEEP + 1 + 2  # and this test's own
    assert words == f"[… {n_frames - len(functions)} frames of a deep recursion are left out]"


def test_two_functions_that_call_one_another() -> None:
    """Each is shown by its first calls and its last."""
    source = f"def a(n):\n    return b(n)\ndef b(n):\n    return 1 / 0 if n == {DEEP} else a(n + 1)"
    functions, _ = shown(raised(lambda: cell(source)["a"](0)))
    assert [name for name in functions if name in "ab"] == ["a", "b", "a", "b", "a", "b"]


def test_many_functions_are_bounded_too() -> None:
    """A chain of calls without a repetition shows where it began and where it ended."""
    source = "".join(f"def f{n}():\n    f{n + 1}()\n" for n in range(200)) + "def f200():\n    1 / 0\n"
    functions, words = shown(raised(lambda: cell(source)["f0"]()))
    assert len(functions) == MAX_FRAMES
    assert "f0" in functions
    assert functions[-1] == "f200"
    assert words


def test_a_short_traceback_is_whole() -> None:
    """Nothing is left out of what can be read, and nothing is said."""
    names = cell("def down(n):\n    return 1 / 0 if n == 9 else down(n + 1)")
    functions, words = shown(raised(lambda: names["down"](0)))
    assert functions.count("down") == 10
    assert words == ""


def test_a_cause_is_bounded_as_well() -> None:
    """Of an exception that led to another no more is shown; afterwards it has all of its frames again."""
    names = cell(f"def down(n):\n    return 1 / 0 if n == {DEEP} else down(n + 1)")

    def fail() -> None:
        try:
            names["down"](0)
        except ZeroDivisionError as cause:
            raise ValueError from cause

    error = raised(fail)
    assert error.__cause__ is not None
    with user_traceback(error, error.__traceback__, is_cell_file):
        assert len(frames(error.__cause__.__traceback__)) <= MAX_FRAMES
    assert len(frames(error.__cause__.__traceback__)) > DEEP
