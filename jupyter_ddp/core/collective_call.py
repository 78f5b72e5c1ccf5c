"""One rank's call of a collective, in a form that the others can compare: `%%ddp --check`.

Owns what has to be the same on every rank, and the words for a difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from jupyter_ddp.core.topology import named

_MAX_TENSORS_SHOWN = 3
_MAX_EXACT_CHARS = 300


class CollectiveCall(Struct, frozen=True, forbid_unknown_fields=True):
    """What one rank is about to do in a group."""

    method: str
    """What the group is asked for; `operation` is what the user called."""
    operation: str
    line: int = 0
    """The cell's line that the call comes from; 0 if unknown."""
    shown: str = ""
    """The rank's tensors, as `float32[4]`."""
    agrees: str = ""
    """What all ranks must have the same, where that is not what is shown."""
    reduce_op: str = ""
    root: int = -1
    """Global rank of the source or destination; -1: the operation has none."""
    sends: tuple[int, ...] = ()
    """all_to_all: elements for each rank of the group, in the group's order."""
    receives: tuple[int, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[tuple[int, int], CollectiveCall])


def pack(entry: tuple[tuple[int, int], CollectiveCall]) -> bytes:
    """A call and its place: (the cell, how many-th of the group's calls it is there)."""
    return _encoder.encode(entry)


def unpack(data: bytes) -> tuple[tuple[int, int], CollectiveCall]:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(data)


def tensor_text(dtype: str, shape: Sequence[int]) -> str:
    """ "float32[2, 3]": element type and shape."""
    return f"{dtype.removeprefix('torch.')}[{', '.join(map(str, shape))}]"


def tensors_text(texts: Sequence[str]) -> str:
    """A list of tensors in a few words: "4 × float32[2]", "float32[2], int64[1] and 5 more"."""
    if len(texts) > 1 and len(set(texts)) == 1:
        return f"{len(texts)} × {texts[0]}"
    more = len(texts) - _MAX_TENSORS_SHOWN
    return ", ".join(texts[:_MAX_TENSORS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def exact_text(texts: Sequence[str]) -> str:
    """The same list without loss, for comparison: of very many tensors a digest."""
    whole = ", ".join(texts)
    if len(whole) <= _MAX_EXACT_CHARS:
        return whole
    return f"{len(texts)} tensors, {hashlib.blake2s(whole.encode(), digest_size=8).hexdigest()}"


def mismatch(calls: Mapping[int, CollectiveCall]) -> str:
    """How the calls of a group's ranks differ, in one line; "" when they go together.

    `calls` has each member's global rank, in the group's order.
    """
    first = next(iter(calls.values()))
    same = all(_essence(call) == _essence(first) for call in calls.values())
    if same:
        return _split_mismatch(calls) if first.sends else ""
    roots = len({call.root for call in calls.values() if call.root >= 0}) > 1
    ops = len({call.reduce_op for call in calls.values() if call.reduce_op}) > 1
    words = {rank: _described(call, roots, ops) for rank, call in sorted(calls.items())}
    if len(set(words.values())) == 1:  # they differ in what is not shown
        words = {rank: f"{text}, {calls[rank].agrees}" for rank, text in words.items()}
    found: dict[str, list[int]] = {}
    for rank, text in words.items():
        found.setdefault(text, []).append(rank)
    return "; ".join(f"{named(ranks, '-')}: {text}" for text, ranks in found.items())


def described(call: CollectiveCall) -> str:
    """ "all_reduce of float32[4] (line 3)"."""
    return _described(call, root=False, reduce_op=False)


def entered(call: CollectiveCall) -> str:
    """ "all_reduce (line 3)": the call where its tensors are of no interest."""
    return call.operation + _at(call)


def _essence(call: CollectiveCall) -> tuple[str, str, str, int]:
    return call.method, call.agrees or call.shown, call.reduce_op, call.root


def _described(call: CollectiveCall, root: bool, reduce_op: bool) -> str:
    words = call.operation
    if reduce_op and call.reduce_op:
        words += f"({call.reduce_op})"
    if call.shown:
        words += f" of {call.shown}"
    if root and call.root >= 0:
        words += f", root rank {call.root}"
    return words + _at(call)


def _at(call: CollectiveCall) -> str:
    return f" (line {call.line})" if call.line else ""


def _split_mismatch(calls: Mapping[int, CollectiveCall]) -> str:
    """all_to_all: what one rank sends is not what the other expects. The first such pair."""
    for i, (sender, sending) in enumerate(calls.items()):
        for j, (receiver, receiving) in enumerate(calls.items()):
            sent, expected = sending.sends[j], receiving.receives[i]
            if sent != expected:
                return (
                    f"rank {sender}: {described(sending)} sends {sent} elements to rank {receiver}; "
                    f"rank {receiver}: {described(receiving)} expects {expected} from it"
                )
    return ""
