"""A cell that needs none of IPython's transformations is the same with and without them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.kernel.source import prepare

PIECES = [
    "x = 1",
    "x",
    "if x:\n    y = 2",
    "for i in range(3):\n\n    pass",
    "'''\ntext\n  more\n'''",
    "f'{x:>4}'",
    "a[1:2, ...]",
    "(\n1,\n2)",
    "@decorator\ndef f(): return 1",
    "await g()",
    "# a comment",
    "",
    "x = y; z",
    "%time x",
    "!ls",
    "x = !ls",
    "y = %magic",
    "x?",
    ">>> x",
    "... y",
    "In [3]: x",
    "/f x",
    ",f x",
    ";f x",
    "    indented",
    "\tx",
    "x = 5 % 3",
    "x != 1",
]


def through_ipython(cell: str) -> str:
    return str(TransformerManager().transform_cell(cell))


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("\n".join))
def test_the_short_way_and_the_long_way_agree(cell: str) -> None:
    """What a rank gets is what IPython's own transformations make of the cell, line numbers kept."""
    leading = len(cell) - len(cell.lstrip("\n"))
    try:
        prepared = prepare(cell)
    except UsageError:
        return  # empty, or no Python after IPython's transformations either
    assert prepared.source.rstrip() == ("\n" * leading + through_ipython(cell)).rstrip()


def test_what_a_cell_shows_and_awaits() -> None:
    """Whether the last statement has a value, and whether there is anything to wait for."""
    for cell, awaits, shows in (("x = 1\nx", False, True), ("await f()\ny = 2", True, False)):
        prepared = prepare(cell)
        assert (prepared.source, prepared.awaits, prepared.shows) == (cell + "\n", awaits, shows)


def test_code_is_made_once_where_all_ranks_would_make_the_same() -> None:
    """Not where a value is to be shown or the compiler warns: that is for each rank to do."""
    assert prepare("x = 1").packed("<cell>")
    assert prepare("await f()").code is None
    assert prepare("x = 1\nx").packed("<cell>") == b""
    assert prepare("x = 1 is 1").code is None
    assert prepare("x = '\\d'").code is None
