"""Ranks and devices from the user's words, and the words for sets of ranks."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.errors import DDPError, UsageError
from jupyter_ddp.core.messages import Gpu
from jupyter_ddp.core.topology import (
    default_world_size,
    make_plan,
    named,
    parse_devices,
    parse_targets,
    ranges,
    visible_gpus,
)

GIB = 1024**3


def gpu(index: int, uuid: str) -> Gpu:
    return Gpu(index, uuid, "NVIDIA H200", 141 * GIB)


GPUS = [gpu(0, "GPU-aa11"), gpu(1, "GPU-aa22"), gpu(2, "GPU-bb33"), gpu(3, "GPU-cc44")]


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("2", (2,)),
        ("0,2-3", (0, 2, 3)),
        ("3,0", (0, 3)),
        ("1,1,0-1", (0, 1)),
        ("::2", (0, 2, 4, 6)),
        ("1:", (1, 2, 3, 4, 5, 6, 7)),
        (":2", (0, 1)),
        ("-2:", (6, 7)),
        ("::-1", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("5:99", (5, 6, 7)),
        ("all", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("[0-2]", (0, 1, 2)),
        ("(4)", (4,)),
        (" 0 , 7 ", (0, 7)),
    ],
)
def test_a_target_specification_names_these_ranks(text: str, ranks: tuple[int, ...]) -> None:
    """Every way to write targets gives the ranks it means, ascending and each once."""
    assert parse_targets(text, 8) == ranks


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "write ranks as 2, 0,2-3, ::2 or all"),
        ("x", "write ranks as 2, 0,2-3, ::2 or all"),
        ("0,,1", "write ranks as 2, 0,2-3, ::2 or all"),
        ("-1", "write ranks as 2, 0,2-3, ::2 or all"),
        ("1-", "write ranks as 2, 0,2-3, ::2 or all"),
        ("1.5", "write ranks as 2, 0,2-3, ::2 or all"),
        ("3-1", "write 1-3"),
        ("8", "the pool has 0-7"),
        ("0-8", "the pool has 0-7"),
        ("9:", "the pool's 8 (0-7)"),
        ("::0", "write ::2"),
        ("-:", "write ranks as 2, 0,2-3, ::2 or all"),
        ("::-", "write ranks as 2, 0,2-3, ::2 or all"),
    ],
)
def test_a_target_that_cannot_be_had_names_the_remedy(text: str, remedy: str) -> None:
    """A specification that names no ranks is refused with the text as typed and what to write instead."""
    with pytest.raises(UsageError) as caught:
        parse_targets(text, 8)
    assert f"-t {text}" in str(caught.value)
    assert remedy in str(caught.value)


def test_a_number_of_any_length_is_refused_in_words() -> None:
    """A rank too long for Python to convert is a usage error like any other, in a line that fits."""
    with pytest.raises(UsageError):
        parse_targets("9" * 5000, 8)


@pytest.mark.parametrize(
    ("text", "devices"), [("0", (0,)), ("1,3", (1, 3)), ("0-3", (0, 1, 2, 3)), (" 3 , 0-1 ", (3, 0, 1))]
)
def test_devices_keep_the_order_they_are_written_in(text: str, devices: tuple[int, ...]) -> None:
    """GPU numbers come out in the user's order, which is the order of the ranks."""
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "1:3", "3-1", "0,3-1", "0,0", "0-2,1"])
def test_devices_that_cannot_be_had_are_refused(text: str) -> None:
    """Anything but a list of distinct GPU numbers is refused with the text as typed."""
    with pytest.raises(UsageError, match="--devices"):
        parse_devices(text)


def test_devices_beyond_any_machine_are_refused_at_once() -> None:
    """A range with a slip of the keyboard in it does not fill the memory first."""
    with pytest.raises(UsageError):
        parse_devices("0-9999999")


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0–1"),
        ([0, 1, 2], "0–2"),
        ([0, 2, 3, 4], "0,2–4"),
        ([5, 4, 3, 0], "0,3–5"),
        (range(1024), "0–1023"),
    ],
)
def test_ranges_say_ranks_in_the_fewest_words(ranks: list[int], words: str) -> None:
    """Runs of three and more are joined, in whatever order the ranks are given."""
    assert ranges(ranks) == words


def test_named_counts() -> None:
    """One rank is a rank, several are ranks, and the dash can be the one of a keyboard."""
    assert named([2]) == "rank 2"
    assert named([0, 1]) == "ranks 0–1"
    assert named([0, 1, 2], "-") == "ranks 0-2"


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "GPU-bb33", "GPU-cc44"]),
        ("", []),
        ("2,0", ["GPU-bb33", "GPU-aa11"]),
        (" 1 , 3 ", ["GPU-aa22", "GPU-cc44"]),
        ("0,9,1", ["GPU-aa11"]),
        ("-1", []),
        ("1,-1,2", ["GPU-aa22"]),
        ("GPU-bb", ["GPU-bb33"]),
        ("GPU-cc44,GPU-aa11", ["GPU-cc44", "GPU-aa11"]),
        ("GPU-aa", []),
        ("GPU-zz,0", []),
        ("MIG-77/1/0", ["MIG-77/1/0"]),
        ("none", []),
        ("²", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting: str | None, seen: list[str]) -> None:
    """Order is kept, prefixes must be unambiguous, and the first item that names no GPU ends the list."""
    assert visible_gpus(GPUS, setting) == seen


def test_a_gpu_listed_twice_leaves_none() -> None:
    """CUDA sees no GPU when one is repeated (so does torch.cuda._parse_visible_devices)."""
    assert visible_gpus(GPUS, "0,0") == []


def test_each_rank_has_a_gpu_and_nccl() -> None:
    """With a GPU for each rank, NCCL is chosen and needs no reason; devices follow the local rank."""
    plan = make_plan(2, ["GPU-aa11", "GPU-aa22", "GPU-bb33"])
    assert (plan.backend, plan.reason, plan.visible_devices) == ("nccl", "", None)
    assert [p.device for p in plan.places] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("world_size", "gpus", "backend", "devices", "reason"),
    [
        (2, [], None, ["cpu", "cpu"], "no GPU"),
        (3, ["a", "b"], None, ["cuda:0", "cuda:1", "cuda:0"], "more ranks than GPUs: 2 GPUs for 3 ranks"),
        (2, ["a"], None, ["cuda:0", "cuda:0"], "more ranks than GPUs: 1 GPU for 2 ranks"),
        (2, ["a", "b"], "gloo", ["cuda:0", "cuda:1"], "as asked"),
    ],
)
def test_gloo_and_why(
    world_size: int, gpus: list[str], backend: str | None, devices: list[str], reason: str
) -> None:
    """Where NCCL is not used, the plan says why in words, and ranks take turns on the GPUs there are."""
    plan = make_plan(world_size, gpus, backend)  # type: ignore[arg-type]
    assert (plan.backend, plan.reason) == ("gloo", reason)
    assert [p.device for p in plan.places] == devices


def test_places_are_torchruns_numbers() -> None:
    """On one machine rank and local rank agree, and every place knows both sizes."""
    plan = make_plan(3, [])
    assert [(p.rank, p.local_rank, p.world_size, p.local_world_size) for p in plan.places] == [
        (0, 0, 3, 3),
        (1, 1, 3, 3),
        (2, 2, 3, 3),
    ]
    assert {(p.node_rank, p.n_nodes) for p in plan.places} == {(0, 1)}


def test_chosen_devices_become_the_visible_ones() -> None:
    """`--devices` narrows what the ranks see, and counts as the user counts: among the visible GPUs."""
    plan = make_plan(2, ["GPU-bb33", "GPU-aa11", "GPU-cc44"], devices=[2, 0])
    assert plan.visible_devices == "GPU-cc44,GPU-bb33"
    assert [p.device for p in plan.places] == ["cuda:0", "cuda:1"]
    assert plan.backend == "nccl"


@pytest.mark.parametrize(
    ("gpus", "backend", "devices", "message"),
    [
        ([], "nccl", None, "4 ranks, no GPUs; use --backend gloo"),
        (["a"], "nccl", None, "4 ranks, 1 GPU; use --backend gloo or -n 1"),
        (["a", "b"], "nccl", None, "4 ranks, 2 GPUs; use --backend gloo or -n 2"),
        (["a", "b", "c", "d"], "nccl", [1, 2], "4 ranks, 2 GPUs; use --backend gloo or -n 2"),
        (["a", "b"], None, [0, 5], "there is no GPU 5; write some of 0-1"),
        ([], None, [0], "there is no GPU 0; none is visible"),
    ],
)
def test_a_plan_that_cannot_be_had_names_the_remedy(
    gpus: list[str], backend: str | None, devices: list[int] | None, message: str
) -> None:
    """A choice that the machine cannot meet says what it has and what would work."""
    with pytest.raises(UsageError) as caught:
        make_plan(4, gpus, backend, devices)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("n_gpus", "n_cores", "world_size"), [(8, 2, 8), (1, 64, 1), (0, 1, 2), (0, 2, 2), (0, 3, 3), (0, 64, 4)]
)
def test_the_size_of_a_pool_that_nobody_gave(n_gpus: int, n_cores: int, world_size: int) -> None:
    """One rank per GPU; on CPU as many as cores, but at least two and at most four."""
    assert default_world_size(n_gpus, n_cores) == world_size


def test_an_error_shows_itself_as_one_line() -> None:
    """IPython shows our errors without a traceback: the name and the message are all there is to say."""
    assert UsageError("-t 9: no")._render_traceback_() == ["UsageError: -t 9: no"]
    assert issubclass(UsageError, DDPError)
    assert issubclass(UsageError, ValueError)
