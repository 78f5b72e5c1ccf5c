"""What a rank keeps beyond its death: the layout, and the states of its random generators."""

from __future__ import annotations

import random
import struct
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyter_ddp.core.kept_states import KEPT_BYTES, SLOT_BYTES, KeptStates

torch = pytest.importorskip("torch")
numpy_random = pytest.importorskip("numpy.random")

from jupyter_ddp.worker import random_states  # noqa: E402  # it needs torch
from jupyter_ddp.worker.random_states import RandomStates  # noqa: E402  # it needs torch

DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(3).tolist(),
    "torch.randn": lambda: torch.randn(1, dtype=torch.float64).item(),
    "random": random.random,
    "random.gauss": lambda: random.gauss(0, 1),
    "numpy": numpy_random.rand,
    "numpy.randn": numpy_random.randn,
}


@pytest.fixture
def region() -> memoryview:
    return memoryview(bytearray(KEPT_BYTES))


@pytest.fixture(autouse=True)
def _states_as_before() -> Iterator[None]:
    before = random.getstate(), torch.get_rng_state(), numpy_random.get_state()
    yield
    random.setstate(before[0])
    torch.set_rng_state(before[1])
    numpy_random.set_state(before[2])


def test_the_newest_is_what_was_put_last(region: memoryview) -> None:
    """Another look at the same memory finds it; nothing at all before the first."""
    kept, seen = KeptStates(region), KeptStates(region)
    assert seen.newest() == b""
    for states in (b"first", b"second, longer", b"3", b"x" * SLOT_BYTES):
        assert kept.put(states)
        assert seen.newest() == states
    assert not kept.put(b"x" * (SLOT_BYTES + 1))
    assert seen.newest() == b"x" * SLOT_BYTES


def test_a_put_that_is_cut_off_leaves_what_was_before(region: memoryview) -> None:
    """Whatever part of the next one was written, up to the count, the last whole one is found."""
    kept = KeptStates(region)
    kept.put(b"one")
    kept.put(b"two")
    before = bytes(region)
    kept.put(b"three")
    after = bytes(region)
    for cut in [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b and at >= 8]:
        torn = bytearray(before)
        torn[8 : cut + 1] = after[8 : cut + 1]  # all but the count, which is stored last
        assert KeptStates(memoryview(torn)).newest() == b"two"


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_kept_and_the_next_ones_come_again(region: memoryview, name: str) -> None:
    """After any number of draws, whoever restores what was kept draws what would have come next."""
    states, draw = RandomStates(KeptStates(region)), DRAWS[name]
    states.keep()
    for _ in range(3):  # an odd and an even number of normal deviates, which are made in pairs
        draw()
        states.keep()
        kept = KeptStates(region).newest()
        expected = [draw() for _ in range(3)]
        RandomStates(KeptStates(memoryview(bytearray(KEPT_BYTES)))).restore(kept)
        assert [draw() for _ in range(3)] == expected


def test_nothing_is_written_where_nothing_was_drawn(region: memoryview) -> None:
    """The memory stays as it is, and a look costs microseconds."""
    states = RandomStates(KeptStates(region))
    states.keep()
    before = bytes(region)
    assert min(timeit.repeat(states.keep, number=1000, repeat=5)) / 1000 < 20e-6
    assert bytes(region) == before


def test_the_states_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in place is what the slow way gives, which can take its place."""
    assert random_states.python_state_is_readable()
    assert random_states.torch_state_address()
    quick = random_states._python_state()
    monkeypatch.setattr(random_states, "python_state_is_readable", lambda: False)
    assert random_states._python_state() == quick
    _, key, position, *_ = numpy_random.get_state()
    assert random_states._numpy_state() == struct.pack("=625I", *key, position)


@pytest.mark.parametrize("name", DRAWS)
def test_every_single_draw_is_noticed(region: memoryview, name: str) -> None:
    """Also the one that goes round the generator's 624 words, and the second of a pair."""
    states, draw = RandomStates(KeptStates(region)), DRAWS[name]
    states.keep()
    for n in (*[1] * 1300, 2, 3, 312, 624, 1248):
        before = bytes(region[:8])
        for _ in range(n):
            draw()
        states.keep()
        assert bytes(region[:8]) != before


@pytest.mark.parametrize("name", DRAWS)
def test_where_nothing_can_be_read_the_generators_are_asked(
    region: memoryview, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With a Python and a torch that keep their states elsewhere, a draw is noticed too."""
    monkeypatch.setattr(random_states, "python_state_is_readable", lambda: False)
    monkeypatch.setattr(random_states, "torch_state_address", lambda: 0)
    monkeypatch.setattr(random_states, "peepholes", lambda: ())
    states = RandomStates(KeptStates(region))
    states.keep()
    before = KeptStates(region).newest()
    DRAWS[name]()
    states.keep()
    assert KeptStates(region).newest() != before
