"""The states of this rank's random generators: torch's, Python's, NumPy's and CUDA's.

Owns what they were when they were last looked at. They are kept where they outlive the rank, whenever a
cell has drawn from one of them; a cell that has not costs two microseconds, after it was reported.
"""

from __future__ import annotations

import random
import struct
import sys
from ctypes import string_at
from typing import Any

import torch
from msgspec import Struct, msgpack

from jupyter_ddp.core.kept_states import KeptStates

_WORDS = struct.Struct("=625I")
# CPython's generator (Modules/_randommodule.c): the object's head, `int index`, `uint32_t state[624]`.
_PYTHON_STATE = id(random._inst) + object.__basicsize__  # what random.random is of


class _States(Struct, frozen=True):
    torch: bytes
    python: bytes
    gauss: float | None
    """The second of the two numbers that random.gauss makes at a time, if it is still to be drawn."""
    numpy: bytes = b""
    numpy_gauss: float | None = None
    cuda: bytes = b""


class RandomStates:
    """What a rank has drawn so far. `kept` is where it is noted."""

    def __init__(self, kept: KeptStates) -> None:
        self._kept = kept
        self._last: tuple[Any, ...] = ()
        self._generator = torch.default_generator
        self._numpy_stores = False
        """A number that randn has made and not given yet, which its bit generator knows nothing of."""
        index, *state = _WORDS.unpack(string_at(_PYTHON_STATE, _WORDS.size))
        self._readable = (*state, index) == random.getstate()[1]

    def keep(self) -> None:
        """Note the states, if any of them is not what it was."""
        now = self._glance()
        if now != self._last:
            self._last = now
            self._kept.put(self.capture())

    def _glance(self) -> tuple[Any, ...]:
        """All that changes when a number is drawn, read in the quickest way there is."""
        state = self._generator.get_state()
        return (
            string_at(state.data_ptr(), len(state)),
            string_at(_PYTHON_STATE, _WORDS.size) if self._readable else random.getstate(),
            random._inst.gauss_next,  # type: ignore[attr-defined]  # see above
            self._glance_at_numpy(),
            _cuda_state() if torch.cuda.is_initialized() else b"",
        )

    def _glance_at_numpy(self) -> Any:
        generator = _numpy_global()
        if generator is None:
            return None
        if self._numpy_stores:
            return _numpy_state()
        return string_at(generator._bit_generator.ctypes.state_address, _WORDS.size)

    def capture(self) -> bytes:
        """All states now."""
        _, words, gauss = random.getstate()
        numpy, numpy_gauss = _numpy_state()
        self._numpy_stores = numpy_gauss is not None
        state = self._generator.get_state()
        return msgpack.encode(
            _States(
                torch=string_at(state.data_ptr(), len(state)),
                python=_WORDS.pack(*words),
                gauss=gauss,
                numpy=numpy,
                numpy_gauss=numpy_gauss,
                cuda=_cuda_state() if torch.cuda.is_initialized() else b"",
            )
        )

    def restore(self, captured: bytes) -> None:
        """Go on with these."""
        states = msgpack.decode(captured, type=_States)
        self._generator.set_state(_tensor(states.torch))
        random.setstate((3, _WORDS.unpack(states.python), states.gauss))
        if states.numpy:
            from numpy import random as numpy_random  # the rank before this one had it

            position, *key = _WORDS.unpack(states.numpy)
            gauss = states.numpy_gauss
            state: Any = ("MT19937", key, position, int(gauss is not None), gauss or 0.0)
            numpy_random.set_state(state)
        if states.cuda:
            torch.cuda.set_rng_state(_tensor(states.cuda))  # when CUDA is initialised, if it is not yet
        self.keep()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _cuda_state() -> bytes:
    state = torch.cuda.get_rng_state()
    return string_at(state.data_ptr(), len(state))


def _numpy_global() -> Any:
    """The generator behind numpy.random's functions; None when they were not imported or it is another."""
    module = sys.modules.get("numpy.random.mtrand")
    generator = getattr(module, "_rand", None)
    if generator is None or type(generator._bit_generator).__name__ != "MT19937":
        return None
    return generator


def _numpy_state() -> tuple[bytes, float | None]:
    generator = _numpy_global()
    if generator is None:
        return b"", None
    state = generator.get_state(legacy=False)
    words = _WORDS.pack(state["state"]["pos"], *state["state"]["key"])
    return words, state["gauss"] if state["has_gauss"] else None
