"""Which ranks are shown as one."""

import pytest

from jupyter_ddp.core.messages import CellError, Stream
from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Rich, Segment, Text
from jupyter_ddp.core.verdicts import Verdict
from jupyter_ddp.view.grouping import groups, notices
from jupyter_ddp.view.wording import strip_of, title


def written(text: str, stream: Stream = "stdout") -> Text:
    run = Text(stream)
    run.append(text)
    return run


def rank(
    number: int,
    *segments: Segment,
    verdict: Verdict | None = "ok",
    error: CellError | None = None,
    death: str = "",
    notices: tuple[str, ...] = (),
) -> RankSnapshot:
    return RankSnapshot(number, verdict, list(segments), error, death, notices)


def ranks_of(*ranks: RankSnapshot) -> list[tuple[int, ...]]:
    return [group.ranks for group in groups(Snapshot(list(ranks)))]


def test_identical_ranks_are_one_group_ordered_by_lowest_rank() -> None:
    """Ranks 0, 2 and 3 wrote the same; rank 1 did not."""
    same = [rank(n, written("a\n")) for n in (0, 2, 3)]
    assert ranks_of(same[0], rank(1, written("b\n")), *same[1:]) == [(0, 2, 3), (1,)]


def png(value: object, **metadata: object) -> Rich:
    return Rich({"image/png": value}, {"image/png": metadata}, "", False)


@pytest.mark.parametrize(
    "other",
    [
        rank(1, written("a\n", "stderr")),
        rank(1, written("a\n"), written("", "stderr")),
        rank(1, written("a")),
        rank(1, written("a\n"), verdict=None),
        rank(1, written("a\n"), death="killed by SIGKILL"),
        rank(1, written("a\n"), error=CellError("E", "v", 1, ["t"])),
        rank(1, written("a\n"), png("QQ==")),
    ],
)
def test_any_difference_that_shows_parts_them(other: RankSnapshot) -> None:
    """Stream, text, verdict, cause, notice, error and values each count."""
    assert ranks_of(rank(0, written("a\n")), other) == [(0,), (1,)]


def test_errors_are_compared_with_their_tracebacks() -> None:
    """The same exception from another line is another group."""
    errors = [CellError("E", "v", line, [f"line {line}"]) for line in (5, 5, 6)]
    assert ranks_of(*(rank(n, verdict="error", error=e) for n, e in enumerate(errors))) == [(0, 1), (2,)]


def test_rich_values_are_compared_with_their_metadata() -> None:
    """Data that JSON tells apart stay apart; a display id, which nobody sees, does not count."""
    result = Rich({"image/png": "QQ=="}, {"image/png": {}}, "an id", True)
    assert ranks_of(rank(0, png("QQ==")), rank(1, result)) == [(0, 1)]
    assert ranks_of(rank(0, png("QQ==")), rank(1, png("QQ==", width=3))) == [(0,), (1,)]
    assert ranks_of(rank(0, png(1)), rank(1, png("1")), rank(2, png(True))) == [(0,), (1,), (2,)]


def test_text_with_a_gap_is_not_called_identical_without_reserve() -> None:
    """What is missing in the middle may differ between ranks."""
    (group,) = groups(Snapshot([rank(n, written("a\n" * 500)) for n in range(2)]))
    assert title(group) == "ranks 0–1 · identical where shown"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["ok", "ok", "error", "interrupted"], "✓0 ✓1 ✗2 ◼3"),
        (["died", "not-run", "unknown", None], "☠0 –1 ?2 …3"),
        (["ok"] * 8 + ["error", "interrupted", "interrupted"], "✓0–7 ✗8 ◼9–10"),
        (["ok", "error"] * 4 + ["ok"], "✓0 ✗1 ✓2 ✗3 ✓4 ✗5 ✓6 ✗7 ✓8"),
    ],
)
def test_the_strip_shows_every_rank(verdicts: list[Verdict | None], expected: str) -> None:
    """Few ranks one by one, many in runs."""
    chips = strip_of(Snapshot([rank(n, verdict=v) for n, v in enumerate(verdicts)]))
    assert " ".join(map(str, chips)) == expected


def test_the_strip_of_a_thousand_mixed_ranks_stays_readable() -> None:
    """One chip for each verdict, with the first ranks and how many there are."""
    chips = strip_of(Snapshot([rank(n, verdict="ok" if n % 2 else "error") for n in range(1000)]))
    assert [str(c)[:6] for c in chips] == ["✗0,2,4", "✓1,3,5"]
    assert all(str(c).endswith(",… (500 ranks)") and len(c.ranks) < 220 for c in chips)


def test_notices_stand_apart() -> None:
    """A remark on how the cell was run shows no output twice; it is told once, with its ranks."""
    snapshot = Snapshot([rank(0, written("a\n"), notices=("careful",)), rank(1, written("a\n"))])
    assert [group.ranks for group in groups(snapshot)] == [(0, 1)]
    assert notices(snapshot) == [((0,), "careful")]
