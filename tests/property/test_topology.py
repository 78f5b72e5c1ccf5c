"""Ranks in words, for every input."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.core.topology import parse_devices, parse_targets, ranges, visible_gpus


@given(st.sets(st.integers(0, 63), min_size=1))
def test_what_ranges_says_parse_targets_understands(ranks: set[int]) -> None:
    """The words for a set of ranks, pasted behind -t, name the same ranks."""
    assert parse_targets(ranges(ranks, "-"), 64) == tuple(sorted(ranks))


@given(
    st.tuples(*[st.none() | st.integers(-10, 10)] * 2, st.none() | st.integers(-4, 4).filter(bool)),
    st.integers(1, 9),
)
def test_a_slice_means_what_it_means_in_python(bounds: tuple[int | None, ...], world_size: int) -> None:
    """start:stop:step picks the ranks that Python's slicing picks, or says that there are none."""
    text = ":".join("" if b is None else str(b) for b in bounds)
    expected = tuple(sorted(range(world_size)[slice(*bounds)]))
    try:
        assert parse_targets(text, world_size) == expected
    except UsageError:
        assert expected == ()


@given(st.text(alphabet="0123456789-:,all []()²٣ x", max_size=12), st.integers(1, 9))
@example("-:", 4)
def test_any_targets_name_ranks_of_the_pool_or_are_refused(text: str, world_size: int) -> None:
    """Whatever is typed behind -t, the outcome is ranks that exist or a UsageError, never another error."""
    try:
        ranks = parse_targets(text, world_size)
    except UsageError:
        return
    assert ranks
    assert list(ranks) == sorted(set(ranks))
    assert set(ranks) <= set(range(world_size))


@given(st.text(alphabet="0123456789-, ²٣x", max_size=6))
def test_any_devices_are_distinct_or_are_refused(text: str) -> None:
    """Whatever is typed behind --devices, the outcome is distinct GPU numbers or a UsageError."""
    try:
        devices = parse_devices(text)
    except UsageError:
        return
    assert devices
    assert len(set(devices)) == len(devices)


@given(st.text(alphabet="0123456789-,GPUMIG ²٣x"))
@example("²")
def test_any_cuda_visible_devices_can_be_read(setting: str) -> None:
    """The variable is the user's and may hold anything: what names no GPU is no error."""
    assert len(set(visible_gpus([], setting))) == len(visible_gpus([], setting))
