"""The states of this rank's random generators: torch's, Python's, NumPy's and CUDA's.

Owns what they were when they were last looked at. They are kept where they outlive the rank, whenever a
cell has drawn from one of them; a cell that has not costs two microseconds, after it was reported.
"""

from __future__ import annotations

import random
import struct
import sys
from ctypes import string_at
from functools import cache
from typing import Any

import torch
from msgspec import Struct, msgpack

from jupyter_ddp.core.kept_states import KeptStates

_WORDS = struct.Struct("=625I")
# CPython's generator (Modules/_randommodule.c): the object's head, `int index`, `uint32_t state[624]`.
_PYTHON_STATE = id(random._inst) + object.__basicsize__  # what random.random is of


@cache
def python_state_is_readable() -> bool:
    """The state of Python's generator lies where this CPython has it. Asked before ranks are forked."""
    return _WORDS.unpack(string_at(_PYTHON_STATE, _WORDS.size)) == _python_words()


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
        self._generator = torch.default_generator
        self._numpy = _numpy_state() if seeded else b""
        self._numpy_gauss: float | None = None
        """A number that randn has made and not given yet. It is not in the state, and takes long to find."""

    def keep(self) -> None:
        """Note the states, if any of them is not what it was."""
        now = self._glance()
        if now != self._last:
            self._last = now
            self._kept.put(self.capture())

    def _glance(self) -> tuple[Any, ...]:
        """All that changes when a number is drawn, read in the quickest way there is."""
        return (
            _torch_state(self._generator),
            _python_state(),
            random._inst.gauss_next,  # type: ignore[attr-defined]  # see above
            _numpy_state(),
            None if self._numpy_gauss is None else _find_numpy_gauss(),
            _cuda_state(),
        )

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
            cuda=_cuda_state(),
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
    if not torch.cuda.is_initialized():
        return b""
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
