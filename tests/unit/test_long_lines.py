"""What is left of a line that is too long, and the words in place of the rest."""

import pytest

from jupyter_ddp.core.long_lines import end_of, is_cut, without_middle


def test_both_ends_are_left() -> None:
    """With how many characters are missing between them."""
    assert (
        without_middle("a" * 10 + "b" * 5000 + "c" * 10, 20)
        == "a" * 10 + " … 5,000 characters not shown … " + "c" * 10
    )
    assert (
        without_middle("a" * 10 + "b" + "c" * 10, 20) == "a" * 10 + " … 1 character not shown … " + "c" * 10
    )
    assert without_middle("a" * 20, 20) == "a" * 20


def test_a_cut_line_that_grows_is_cut_as_if_at_once() -> None:
    """The count goes on, and what was cut enough is left alone."""
    line = "".join(str(n % 10) for n in range(1000))
    grown = ""
    for at in range(0, len(line), 7):
        grown = without_middle(grown + line[at : at + 7], 40)
    assert grown == without_middle(line, 40) == without_middle(grown, 40)
    assert is_cut(grown)


@pytest.mark.parametrize("room", [5, 20, 30, 45])
def test_the_end_of_a_cut_line_counts_what_was_missing_before(room: int) -> None:
    """However much is left, it and what is said to be missing are the whole line."""
    line = "x" * 1000
    end = end_of(without_middle(line, 40), room)
    gap, _, rest = end.removeprefix("… ").partition(" characters not shown … ")
    assert end.startswith("… ")
    assert int(gap) + len(rest) == 1000
    assert len(rest) <= room
    assert end_of("short", 5) == "short"


def test_ordinary_text_is_not_cut() -> None:
    assert not is_cut("a … b\nnot shown … and more")
