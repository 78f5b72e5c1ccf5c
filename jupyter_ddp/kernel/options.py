"""The magics' argument lines, parsed: what the user typed to what was meant, or a one-line error."""

from __future__ import annotations

import argparse
import difflib
import keyword
import shlex
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NoReturn, get_args

from msgspec import Struct

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.core.messages import Backend
from jupyter_ddp.core.topology import parse_devices
from jupyter_ddp.kernel.limits import check_timeout

SUBCOMMANDS = (
    "panel", "status", "start", "stop", "restart", "resize", "heal", "interrupt", "where", "dump",
    "log",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        magic = self.prog.partition(" ")[0]
        raise UsageError(f"{self.prog}: {message}; {magic}? lists the options")

    def understand(self, words: list[str]) -> argparse.Namespace:
        """What the words mean. Raises UsageError, with what may have been meant by one that means nothing."""
        given, unknown = self.parse_known_args(words)
        if unknown:
            known = list(self._option_string_actions)
            number = unknown[0].isdecimal() and "-n" in known
            meant = f"; did you mean -n {unknown[0]}?" if number else _guess(unknown[0], known)
            what = f"{' '.join(unknown)} means nothing here"
            if meant:
                raise UsageError(f"{self.prog}: {what}{meant}")
            self.error(what)
        return given


def _guess(word: str, known: Sequence[str], prefix: str = "") -> str:
    meant = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {prefix}{meant[0]}?" if meant else ""


class PoolOptions(Struct, frozen=True):
    """What a new pool is to be; None leaves it as it was, "auto" and () leave the choice to the pool."""

    n: int | None = None
    backend: Backend | Literal["auto"] | None = None
    devices: tuple[int, ...] | None = None


class CellOptions(Struct, frozen=True):
    """`%%ddp`'s line."""

    pool: PoolOptions
    targets: str | None = None
    output: str | None = None
    check: bool = False
    """Compare every collective among its ranks."""
    timeout_s: float | None = None


class CommandOptions(Struct, frozen=True):
    """`%ddp`'s line."""

    command: str
    pool: PoolOptions
    source: int | None = None
    """The rank that `heal --from` names."""
    cell: int | None = None
    """The prompt number that `log` is given."""


@lru_cache(maxsize=64)  # users repeat a line from cell to cell
def parse_cell_line(line: str) -> CellOptions:
    """The options of `%%ddp`. Raises UsageError."""
    parser = _parser("%%ddp")
    _add_pool_options(parser)
    parser.add_argument("-t", "--targets", metavar="RANKS")
    parser.add_argument("-o", "--output", metavar="NAME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--timeout", metavar="SECONDS")
    given = _parse(parser, line)
    if (name := given.output) is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise UsageError(f"-o {name}: not a name that a variable can have")
    timeout_s = None if given.timeout is None else _seconds(given.timeout)
    return CellOptions(_pool_options(given), given.targets, given.output, given.check, timeout_s)


def parse_command_line(line: str) -> CommandOptions:
    """The subcommand of `%ddp` and its options; an empty line means the panel. Raises UsageError."""
    words = _split("%ddp", line) or ["panel"]
    command = words[0]
    if command in ("help", "-h", "--help"):
        raise UsageError("%ddp? lists the commands and their options")
    if command.startswith("-"):
        raise UsageError(
            f"%ddp {line.strip()}: a command is missing; %%ddp {line.strip()} runs the cell below it, "
            f"%ddp start {line.strip()} starts a pool; %ddp? lists all"
        )
    if command not in SUBCOMMANDS:
        meant = _guess(command, SUBCOMMANDS, "%ddp ") or f"; there are {', '.join(SUBCOMMANDS)}"
        raise UsageError(f"%ddp {command}: no such command{meant}")
    parser = _parser(f"%ddp {command}")
    if command in ("start", "restart"):
        _add_pool_options(parser)
    if command == "resize":
        parser.add_argument("n", metavar="N")
    if command == "heal":
        parser.add_argument("--from", dest="source", metavar="RANK")
    if command == "log":
        parser.add_argument("cell", metavar="CELL", nargs="?")
    given = parser.understand(words[1:])
    count = "%ddp resize" if command == "resize" else "-n"
    source, cell = _source(getattr(given, "source", None)), _cell(getattr(given, "cell", None))
    return CommandOptions(command, _pool_options(given, count), source, cell)


def _cell(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.removeprefix("[").removesuffix("]")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 9):
        raise UsageError(
            f"%ddp log {text}: not the number of a cell; write what stands beside it, as in %ddp log 5"
        )
    return int(digits)


def _source(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise UsageError(f"--from {text}: not a rank; name a living one, as in --from 0")
    return None if text is None else int(text)


def _parser(name: str) -> _Parser:
    return _Parser(prog=name, add_help=False, allow_abbrev=False)


def _add_pool_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", metavar="N")
    parser.add_argument("--backend", choices=(*get_args(Backend), "auto"))
    parser.add_argument("--devices", metavar="GPUS")


def _count(text: str, option: str) -> int:
    try:
        n = int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: not a number of ranks; write {option} 4") from None
    if n < 1:
        raise UsageError(f"{option} {text}: a pool has at least one rank; write {option} 1 or more")
    return n


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError(f"--timeout {text}: not a number of seconds; write --timeout 60") from None
    check_timeout(seconds)
    return seconds


def _split(name: str, line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{name} {line}: {error}") from None


def _parse(parser: _Parser, line: str) -> argparse.Namespace:
    words = _split(parser.prog, line)
    for at, word in enumerate(words[:-1]):
        if word in ("-t", "--targets") and words[at + 1].startswith("-"):
            words[at : at + 2] = [f"--targets={words[at + 1]}"]  # `-t -2:` names ranks, and is no option
            break
        if word in ("-t", "--targets") and words[at + 1].endswith(","):
            raise UsageError(f"{parser.prog}: {word} takes ranks without spaces between, as in {word} 0,2")
    return parser.understand(words)


def _pool_options(given: argparse.Namespace, count: str = "-n") -> PoolOptions:
    devices: tuple[int, ...] | None = None
    if getattr(given, "devices", None) is not None:
        devices = () if given.devices == "all" else parse_devices(given.devices)
    n = getattr(given, "n", None)
    return PoolOptions(None if n is None else _count(n, count), getattr(given, "backend", None), devices)
