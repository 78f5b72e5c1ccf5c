"""The states of this rank's random generators: torch's, Python's, NumPy's and CUDA's.

Owns what they were when they were last looked at. They are kept where they outlive the rank, whenever a
cell has drawn from one of them. A cell that has not pays for a look at some bytes:
all but CUDA's are Mersenne twisters, of which each draw moves the index, or else makes a new first word.
"""

from __future__ import annotations

import random
import struct
import sys
from ctypes import c_char, string_at
from functools import cache
from typing import Any

import torch
from msgspec import Struct, msgpack

from jupyter_ddp.core.kept_states import KeptStates

_WORDS = struct.Struct("=625I")
_STATE_BYTES = 624 * 4
# CPython's generator (Modules/_randommodule.c): the object's head, `int index`, `uint32_t state[624]`.
_PYTHON_STATE = id(random._inst) + object.__basicsize__  # what random.random is of
_PEEP_BYTES = 16
_TORCH_HEAD_BYTES, _TORCH_TAIL_BYTES = 20, 28
_TORCH_SEARCHED_BYTES = 128


@cache
def python_state_is_readable() -> bool:
    """The state of Python's generator lies where this CPython has it."""
    return _WORDS.unpack(string_at(_PYTHON_STATE, _WORDS.size)) == _python_words()


@cache
def peepholes() -> tuple[Any, ...]:
    """Onto the bytes of torch's and Python's generators that a draw changes. Made before ranks are forked."""
    python = [_peephole(_PYTHON_STATE, _PEEP_BYTES)] if python_state_is_readable() else []
    state = torch_state_address()
    if not state:
        return tuple(python)
    # c10/core's mt19937_data_pod, with seed, left, seeded and next before its state; behind it, in
    # CPUGeneratorImpl, the second normal deviates of a pair.
    head = _peephole(state - _TORCH_HEAD_BYTES, _TORCH_HEAD_BYTES + _PEEP_BYTES)
    return (*python, head, _peephole(state + _STATE_BYTES, _TORCH_TAIL_BYTES))


def _peephole(address: int, n_bytes: int) -> Any:
    return (c_char * n_bytes).from_address(address)


@cache
def torch_state_address() -> int:
    """Where torch's default generator has its 624 words; 0 where they are not found."""
    generator = torch.default_generator
    told = bytes(_torch_state(generator))  # ATen/CPUGeneratorImpl.cpp: seed, left, seeded, next, state
    words = struct.pack("=624I", *(word & 0xFFFFFFFF for word in struct.unpack_from("=624Q", told, 24)))
    start = int(generator._cdata)  # type: ignore[attr-defined]  # its stub leaves it out
    head = string_at(start, _TORCH_SEARCHED_BYTES)  # of an object that is longer than its 624 words
    for at in range(_TORCH_HEAD_BYTES, _TORCH_SEARCHED_BYTES - 8, 4):
        if head[at : at + 8] == words[:8] and string_at(start + at, _STATE_BYTES) == words:
            return start + at
    return 0


class _States(Struct, frozen=True):
    torch: bytes
    python: bytes
    """The index, then the state."""
    gauss: float | None
    """The second of the two numbers that random.gauss makes at a time, if it is still to be drawn."""
    numpy: bytes = b""
    """The state, then the index."""
    numpy_gauss: float | None = None
    cuda: bytes = b""


class RandomStates:
    """What a rank has drawn so far. `kept` is where it is noted. `seeded`: NumPy's generator just was."""

    def __init__(self, kept: KeptStates, seeded: bool = False) -> None:
        self._kept = kept
        self._last: tuple[Any, ...] = ()
        self._generator, self._holes = torch.default_generator, peepholes()
        # What cannot change is not asked for at every cell's end.
        self._hidden = not torch_state_address(), not python_state_is_readable()
        self._has_cuda = torch.backends.cuda.is_built()
        self._numpy_holes: tuple[Any, Any, Any] = (None, None, None)
        self._numpy = _numpy_state() if seeded else b""
        self._numpy_gauss: float | None = None
        """A number that randn has made and not given yet. It is not in the state, and takes long to find."""

    def keep(self) -> None:
        """Note the states, if any of them is not what it was."""
        if self._glance() != self._last:
            self._kept.put(self.capture())
            self._last = self._glance()  # knowing what NumPy has in store

    def _glance(self) -> tuple[Any, ...]:
        """All that changes when a number is drawn, read in the quickest way there is."""
        torch_hidden, python_hidden = self._hidden
        return (
            [hole.raw for hole in self._holes],
            random._inst.gauss_next,  # type: ignore[attr-defined]  # see above
            _torch_state(self._generator) if torch_hidden else None,
            _python_state() if python_hidden else None,
            self._glance_at_numpy() if "numpy.random.mtrand" in sys.modules else None,
            _cuda_state() if self._has_cuda and torch.cuda.is_initialized() else None,
        )

    def _glance_at_numpy(self) -> Any:
        generator = _numpy_generator()
        if generator is None:
            return None
        if generator._bit_generator is not self._numpy_holes[0]:
            address = generator._bit_generator.ctypes.state_address
            ends = _peephole(address, _PEEP_BYTES), _peephole(address + _STATE_BYTES, 4)
            self._numpy_holes = (generator._bit_generator, *ends)
        _, begin, end = self._numpy_holes
        return begin.raw, end.raw, None if self._numpy_gauss is None else _find_numpy_gauss()

    def capture(self) -> bytes:
        """All states now."""
        numpy = _numpy_state()
        if numpy != self._numpy or self._numpy_gauss is not None:
            self._numpy, self._numpy_gauss = numpy, _find_numpy_gauss()
        states = _States(
            torch=_torch_state(self._generator),
            python=_python_state(),
            gauss=random._inst.gauss_next,  # type: ignore[attr-defined]  # see above
            numpy=numpy,
            numpy_gauss=self._numpy_gauss,
            cuda=_cuda_state() if torch.cuda.is_initialized() else b"",
        )
        return msgpack.encode(states)

    def restore(self, captured: bytes) -> None:
        """Go on with these."""
        states = msgpack.decode(captured, type=_States)
        self._generator.set_state(_tensor(states.torch))
        index, *words = _WORDS.unpack(states.python)
        random.setstate((3, (*words, index), states.gauss))
        if states.numpy:
            from numpy import random as numpy_random  # the rank before this one had it

            *key, position = _WORDS.unpack(states.numpy)
            gauss = states.numpy_gauss
            state: Any = ("MT19937", key, position, int(gauss is not None), gauss or 0.0)
            numpy_random.set_state(state)
            self._numpy = b""  # look closely
        if states.cuda:
            torch.cuda.set_rng_state(_tensor(states.cuda))  # when CUDA is initialised, if it is not yet
        self.keep()


def _torch_state(generator: torch.Generator) -> bytes:
    state = generator.get_state()
    return string_at(state.data_ptr(), len(state))


def _python_state() -> bytes:
    if python_state_is_readable():
        return string_at(_PYTHON_STATE, _WORDS.size)
    return _WORDS.pack(*_python_words())


def _python_words() -> tuple[int, ...]:
    *words, index = random.getstate()[1]
    return (index, *words)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _cuda_state() -> bytes:
    state = torch.cuda.get_rng_state()
    return string_at(state.data_ptr(), len(state))


def _numpy_generator() -> Any:
    """The generator behind numpy.random's functions; None when they were not imported or it is another."""
    module = sys.modules.get("numpy.random.mtrand")
    generator = getattr(module, "_rand", None)
    if generator is None or type(generator._bit_generator).__name__ != "MT19937":
        return None
    return generator


def _numpy_state() -> bytes:
    """NumPy's `mt19937_state` (numpy/random/src/mt19937/mt19937.h): `uint32_t key[624]`, `int pos`."""
    generator = _numpy_generator()
    return b"" if generator is None else string_at(generator._bit_generator.ctypes.state_address, _WORDS.size)


def _find_numpy_gauss() -> float | None:
    generator = _numpy_generator()
    if generator is None:
        return None
    state = generator.get_state(legacy=False)
    return state["gauss"] if state["has_gauss"] else None
