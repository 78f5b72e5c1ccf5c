"""Ranks, their places and devices: the numbers of a pool, and the words for sets of ranks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import get_args

from msgspec import Struct

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.core.messages import Backend, Gpu, WorkerPlace

MAX_WORLD_SIZE = 4096
_BOUND = r"(?:-?\d{1,9})?"  # of a slice


def parse_targets(text: str, world_size: int) -> tuple[int, ...]:
    """The ranks that a target specification names, ascending: "2", "0,2-3", "::2", "1:", "all".

    Raises UsageError for anything else, and for a rank that the pool does not have.
    """
    ranks: set[int] = set()
    for part in text.strip().strip("[]()").split(","):
        ranks.update(_parse_part(part.strip(), text, world_size))
    if not ranks:
        raise UsageError(f"-t {text}: names no rank of the pool's {world_size} (0-{world_size - 1})")
    return tuple(sorted(ranks))


def _parse_part(part: str, whole: str, world_size: int) -> range:
    if part == "all":
        return range(world_size)
    if re.fullmatch(rf"{_BOUND}:{_BOUND}(:{_BOUND})?", part):
        bounds = [int(b) if b else None for b in part.split(":")]
        if bounds[2:] == [0]:
            raise UsageError(f"-t {whole}: a step of 0; write ::2 for every second rank")
        return range(world_size)[slice(*bounds)]
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
    if not found:
        raise UsageError(f"-t {whole}: not understood; write ranks as 2, 0,2-3, ::2 or all")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise UsageError(f"-t {whole}: {first}-{last} runs backwards; write {last}-{first}")
    if last >= world_size:
        raise UsageError(f"-t {whole}: there is no rank {last}; the pool has 0-{world_size - 1}")
    return range(first, last + 1)


def parse_devices(text: str) -> tuple[int, ...]:
    """GPU numbers as the user counts them: "1,3" or "0-3". Raises UsageError."""
    devices: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not found:
            raise UsageError(f"--devices {text}: not understood; write GPU numbers as 1,3 or 0-3")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(f"--devices {text}: {first}-{last} runs backwards; write {last}-{first}")
        devices.extend(range(first, last + 1))
    if len(set(devices)) != len(devices):
        raise UsageError(f"--devices {text}: names a GPU twice; write each once")
    return tuple(devices)


def ranges(ranks: Iterable[int], dash: str = "–") -> str:
    """Ranks in the fewest words: 0, 2, 3, 4 as "0,2–4"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}{dash}{b}" for a, b in parts)


def named(ranks: Collection[int], dash: str = "–") -> str:
    """ "rank 1" or "ranks 0–3"."""
    return f"rank{'s' if len(ranks) != 1 else ''} {ranges(ranks, dash)}"


class Plan(Struct, frozen=True):
    """What a pool will be: each rank's place, the backend, and why it is not NCCL (else "")."""

    places: tuple[WorkerPlace, ...]
    backend: Backend
    reason: str
    visible_devices: str | None
    """CUDA_VISIBLE_DEVICES for every rank; None leaves it as the user has it."""


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> list[str]:
    """Identifiers of the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in CUDA's order.

    As CUDA reads it: a comma-separated list of indices or UUID prefixes, cut at the first that names
    no GPU (CUDA C++ Programming Guide, "CUDA Environment Variables"); a GPU named twice leaves none.
    """
    if setting is None:
        return [gpu.uuid for gpu in gpus]
    seen: list[str] = []
    for raw in setting.split(","):
        item = raw.strip()
        if item.isdecimal():
            match = [gpu.uuid for gpu in gpus if gpu.index == int(item)]
        elif item.startswith("MIG-"):
            match = [item]  # a slice of a GPU; the driver alone knows whether it exists
        else:
            match = [gpu.uuid for gpu in gpus if item and gpu.uuid.startswith(item)]
        if len(match) != 1:
            break
        if match[0] in seen:
            return []
        seen += match
    return seen


def make_plan(
    world_size: int,
    gpus: Sequence[str],
    backend: Backend | None = None,
    devices: Sequence[int] | None = None,
) -> Plan:
    """Devices and backend for a pool on one machine whose visible GPUs are `gpus`.

    NCCL needs a GPU for each rank and is then the default. Raises UsageError where a choice cannot
    be had.
    """
    if devices is not None:
        missing = [d for d in devices if d >= len(gpus)]
        if missing:
            there = f"write some of {ranges(range(len(gpus)), '-')}" if gpus else "none is visible"
            raise UsageError(f"--devices: there is no GPU {missing[0]}; {there}, or leave it out")
    if backend not in (None, *get_args(Backend)):
        raise UsageError(f"backend {backend!r}: there are nccl, gloo and auto")
    n_gpus = len(gpus if devices is None else devices)
    if backend == "nccl" and n_gpus < world_size:
        raise UsageError(
            f"--backend nccl needs a GPU for each rank: {world_size} ranks, {n_gpus or 'no'} "
            f"GPU{'s' if n_gpus != 1 else ''}; use --backend gloo" + (f" or -n {n_gpus}" if n_gpus else "")
        )
    chosen: Backend = backend or ("nccl" if n_gpus >= world_size else "gloo")
    places = tuple(
        WorkerPlace(
            rank=rank,
            local_rank=rank,
            world_size=world_size,
            local_world_size=world_size,
            node_rank=0,
            n_nodes=1,
            device=f"cuda:{rank % n_gpus}" if n_gpus else "cpu",
        )
        for rank in range(world_size)
    )
    visible = None if devices is None else ",".join(gpus[d] for d in devices)
    return Plan(places, chosen, _reason(chosen, backend, world_size, n_gpus), visible)


def _reason(chosen: Backend, asked: Backend | None, world_size: int, n_gpus: int) -> str:
    if chosen == "nccl":
        return ""
    if asked == "gloo":
        return "as asked"
    if not n_gpus:
        return "no GPU"
    return f"more ranks than GPUs: {n_gpus} GPU{'s' if n_gpus != 1 else ''} for {world_size} ranks"


def default_world_size(n_gpus: int, n_cores: int) -> int:
    """One rank per GPU; without GPUs one per core, at least 2 (to be distributed) and at most 4."""
    return n_gpus or max(2, min(4, n_cores))
