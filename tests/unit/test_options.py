"""The magics' argument lines: what is typed, and what is meant by it."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.kernel.options import PoolOptions, parse_cell_line, parse_command_line


def test_a_line_with_everything() -> None:
    """Each option of a cell comes through."""
    options = parse_cell_line("-n 4 -t 0,2-3 -o r --backend gloo --devices 1,3")
    assert options.pool == PoolOptions(4, "gloo", (1, 3))
    assert (options.targets, options.output) == ("0,2-3", "r")


def test_a_plain_line_asks_for_nothing() -> None:
    """Without options everything is as it was."""
    options = parse_cell_line("")
    assert (options.pool, options.targets, options.output) == (PoolOptions(), None, None)


@pytest.mark.parametrize("line", ["-t -2:", "--targets -2:", "-o r -t -2:", "--targets=-2: -o r"])
def test_targets_that_begin_with_a_minus(line: str) -> None:
    """A slice that counts from the end names ranks; it is no option."""
    assert parse_cell_line(line).targets == "-2:"


def test_back_to_the_pools_own_choice() -> None:
    """`auto` and `all` undo an earlier choice."""
    assert parse_cell_line("--backend auto --devices all").pool == PoolOptions(None, "auto", ())


def test_commands() -> None:
    """The line magic's subcommands; none is the panel."""
    assert parse_command_line("").command == "panel"
    assert parse_command_line("start -n 2 --backend gloo").pool == PoolOptions(2, "gloo")
    assert parse_command_line("resize 8").pool.n == 8
    assert [parse_command_line(line).cell for line in ("log", "log 5", "log [12]")] == [None, 5, 12]


@pytest.mark.parametrize(
    "line", ["-n", "-n 0", "-n x", "--foo", "-t", "-o 1x", "--backend mpi", "--devices 1,1", "-n 'x"]
)
def test_what_makes_no_sense_is_said_in_one_line(line: str) -> None:
    """A wrong line raises one line that names what was wrong."""
    with pytest.raises(UsageError) as caught:
        parse_cell_line(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--chekc", "%%ddp: --chekc means nothing here; did you mean --check?"),
        (
            "--target 0",
            "%%ddp: --target 0 means nothing here; did you mean --targets?",
        ),
        ("4", "%%ddp: 4 means nothing here; did you mean -n 4?"),
        ("what is this", "%%ddp: what is this means nothing here; %%ddp? lists the options"),
        ("-t 0, 2", "%%ddp: -t takes ranks without spaces between, as in -t 0,2"),
    ],
)
def test_what_was_meant_by_a_cells_options(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cell_line(line)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stauts", "%ddp stauts: no such command; did you mean %ddp status?"),
        (
            "-n 4",
            "%ddp -n 4: a command is missing; %%ddp -n 4 runs the cell below it, "
            "%ddp start -n 4 starts a pool; %ddp? lists all",
        ),
        ("help", "%ddp? lists the commands and their options"),
        ("resize x", "%ddp resize x: not a number of ranks; write %ddp resize 4"),
        ("resize 0", "%ddp resize 0: a pool has at least one rank; write %ddp resize 1 or more"),
        ("resize", "%ddp resize: the following arguments are required: N; %ddp? lists the options"),
        ("log x", "%ddp log x: not the number of a cell; write what stands beside it, as in %ddp log 5"),
        ("log 1 2", "%ddp log: 2 means nothing here; %ddp? lists the options"),
        ("logs", "%ddp logs: no such command; did you mean %ddp log?"),
        ("restart 2", "%ddp restart: 2 means nothing here; did you mean -n 2?"),
    ],
)
def test_what_was_meant_by_a_command(line: str, words: str) -> None:
    """The help that is named is there: IPython knows `%ddp?`, and no `%ddp resize?`."""
    with pytest.raises(UsageError) as caught:
        parse_command_line(line)
    assert str(caught.value) == words
