"""What ranks compare before a collective, and the words for a difference."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_ddp.core.collective_call import (
    CollectiveCall,
    exact_text,
    mismatch,
    pack,
    tensor_text,
    tensors_text,
    unpack,
)


def reduce(line: int = 3, shown: str = "float32[4]", **fields: Any) -> CollectiveCall:
    return CollectiveCall("allreduce", "all_reduce", line, shown, reduce_op=fields.pop("op", "SUM"), **fields)


def broadcast(root: int, line: int = 5) -> CollectiveCall:
    return CollectiveCall("broadcast", "broadcast", line, "float32[4]", root=root)


def exchange(sends: tuple[int, ...], receives: tuple[int, ...], line: int = 2) -> CollectiveCall:
    return CollectiveCall(
        "alltoall_base", "all_to_all_single", line, "int64[6]", "rows", sends=sends, receives=receives
    )


SAME = [
    {0: reduce(), 1: reduce()},
    {0: reduce(line=3), 1: reduce(line=9)},  # both branches of an if
    {2: broadcast(2), 5: broadcast(2)},
    {0: exchange((1, 2), (1, 3)), 1: exchange((3, 4), (2, 4))},
    {0: reduce(shown="float32[1]", agrees="x"), 1: reduce(shown="float32[2]", agrees="x")},
]


@pytest.mark.parametrize("calls", SAME)
def test_calls_that_go_together(calls: dict[int, CollectiveCall]) -> None:
    assert mismatch(calls) == ""


DIFFERENT = {
    "shape": (
        {0: reduce(), 1: reduce(5, "float32[8]")},
        "rank 0: all_reduce of float32[4] (line 3); rank 1: all_reduce of float32[8] (line 5)",
    ),
    "dtype, and a line that nobody knows": (
        {0: reduce(), 1: reduce(0, "float64[4]")},
        "rank 0: all_reduce of float32[4] (line 3); rank 1: all_reduce of float64[4]",
    ),
    "operation": (
        {0: reduce(), 1: broadcast(0)},
        "rank 0: all_reduce of float32[4] (line 3); rank 1: broadcast of float32[4] (line 5)",
    ),
    "reduce op": (
        {0: reduce(), 1: reduce(op="MAX")},
        "rank 0: all_reduce(SUM) of float32[4] (line 3); rank 1: all_reduce(MAX) of float32[4] (line 3)",
    ),
    "root": (
        {0: broadcast(0), 1: broadcast(1)},
        "rank 0: broadcast of float32[4], root rank 0 (line 5); "
        "rank 1: broadcast of float32[4], root rank 1 (line 5)",
    ),
    "one of four, ranks out of order": (
        {3: reduce(), 0: reduce(), 1: reduce(), 2: CollectiveCall("barrier", "barrier", 8)},
        "ranks 0-1,3: all_reduce of float32[4] (line 3); rank 2: barrier (line 8)",
    ),
    "splits": (
        {4: exchange((1, 2), (1, 3)), 7: exchange((2, 4), (2, 4), line=6)},
        "rank 7: all_to_all_single of int64[6] (line 6) sends 2 elements to rank 4; "
        "rank 4: all_to_all_single of int64[6] (line 2) expects 3 from it",
    ),
    "only what is not shown": (
        {0: reduce(agrees="2 tensors, aa"), 1: reduce(agrees="2 tensors, bb")},
        "rank 0: all_reduce of float32[4] (line 3), 2 tensors, aa; "
        "rank 1: all_reduce of float32[4] (line 3), 2 tensors, bb",
    ),
}


@pytest.mark.parametrize(("calls", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_difference_in_words(calls: dict[int, CollectiveCall], words: str) -> None:
    """Each rank's call with its line, ranks that call the same together, what differs always shown."""
    assert mismatch(calls) == words


def test_a_call_survives_the_store() -> None:
    """What one rank writes is what the others read."""
    call = exchange((1, 2), (3, 4))
    assert unpack(pack(((7, 2), call))) == ((7, 2), call)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], ""),
        (["int64[]"], "int64[]"),
        (["a[1]", "a[1]"], "2 × a[1]"),
        (["a[1]", "b[2]", "c[3]"], "a[1], b[2], c[3]"),
        (["a[1]", "b[2]", "c[3]", "d[4]", "e[5]"], "a[1], b[2], c[3] and 2 more"),
    ],
)
def test_lists_of_tensors_in_few_words(texts: list[str], words: str) -> None:
    assert tensors_text(texts) == words


def test_many_tensors_are_compared_without_loss() -> None:
    """A difference in one of a thousand tensors shows, and does not take a thousand words."""
    texts = [tensor_text("torch.float32", (n, 3)) for n in range(1000)]
    other = [*texts[:-1], "float32[0, 3]"]
    assert texts[2] == "float32[2, 3]"
    assert exact_text(texts) != exact_text(other)
    assert len(exact_text(texts)) < 100
    assert exact_text(texts[:2]) == "float32[0, 3], float32[1, 3]"
