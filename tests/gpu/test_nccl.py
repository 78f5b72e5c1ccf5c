"""What needs an NVIDIA GPU. Run by hand where there is one: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_ddp import Cluster, PoolError

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.processes]


@pytest.fixture
def one_rank() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        yield cluster


def test_one_rank_on_one_gpu_forms_nccl(one_rank: Cluster) -> None:
    """With a GPU for each rank the group is NCCL, on a device of the rank's own."""
    assert one_rank.backend == "nccl"
    record = one_rank.run(
        "t = torch.ones(4, device=device); dist.all_reduce(t); str(t.device), t.sum().item()"
    )
    assert record[0].value is not None
    assert record[0].value.text == "('cuda:0', 4.0)"


def test_several_ranks_on_one_gpu_use_gloo() -> None:
    """NCCL refuses two ranks on one GPU: gloo is chosen, and the line says why."""
    if torch.cuda.device_count() >= 4:
        pytest.skip("four GPUs are a GPU for each rank")
    cluster = Cluster()
    try:
        choice = cluster.start(4)
        assert "gloo (more ranks than GPUs" in choice
        record = cluster.run("t = torch.ones(1, device=device); dist.all_reduce(t); t.item()")
        assert {r.value.text for r in record if r.value} == {"4.0"}
    finally:
        cluster.close()


def test_cuda_in_the_notebook_kernel_does_no_harm() -> None:
    """Ranks are not forked from the process that has initialised CUDA."""
    torch.ones(1, device="cuda").sum().item()
    with Cluster(1) as cluster:
        record = cluster.run("torch.ones(1, device=device).sum().item()")
        assert record[0].value is not None
        assert record[0].value.text == "1.0"


def test_the_devices_that_are_named() -> None:
    """`devices` restricts what the ranks see, so that local_rank is a device's number."""
    with Cluster(1, devices=[torch.cuda.device_count() - 1]) as cluster:
        record = cluster.run("torch.cuda.device_count(), torch.cuda.current_device()")
        assert record[0].value is not None
        assert record[0].value.text == "(1, 0)"


def test_a_group_that_was_broken_is_formed_again(one_rank: Cluster) -> None:
    """The communicator is aborted from the control thread; the next cell has a new group, and x."""
    one_rank.run("x = torch.arange(3, device=device)")
    before = one_rank.status()[0].pid
    record = one_rank.run(
        "dist.distributed_c10d._abort_process_group()\n"
        "raise RuntimeError('NCCL communicator was aborted on rank 0')",
        check=False,
    )
    assert record[0].verdict == "interrupted"
    after = one_rank.run("t = torch.ones(1, device=device); dist.all_reduce(t); x.tolist()")
    assert after[0].value is not None
    assert after[0].value.text == "[0, 1, 2]"
    assert one_rank.status()[0].pid == before


def test_a_device_side_assert_dooms_the_rank_and_a_heal_replaces_it(one_rank: Cluster) -> None:
    """The GPU, the cause and a line are named; the next cell is refused; the new rank computes."""
    one_rank.run("x = torch.ones(1, device=device)")
    failed = one_rank.run(
        "table = torch.zeros(4, device=device)\n"
        "table[torch.tensor([9], device=device)]\n"
        "torch.cuda.synchronize()",
        check=False,
    )
    assert failed[0].verdict == "error"
    (notice,) = [note for note in failed[0].notices if "doomed" in note]
    assert notice.startswith("rank 0 is doomed: cuda:0 (")
    assert "CUDA error" in notice
    assert "(line " in notice
    before = one_rank.status()[0]
    assert before.state == "doomed"
    with pytest.raises(PoolError, match="rank 0 is doomed: cuda:0"):
        one_rank.run("pass")
    assert one_rank.heal() == "rank 0 replaced"
    assert one_rank.status()[0].pid != before.pid
    after = one_rank.run("t = torch.ones(1, device=device); dist.all_reduce(t); t.item()")
    assert after[0].value is not None
    assert after[0].value.text == "1.0"


def test_out_of_memory_dooms_nobody(one_rank: Cluster) -> None:
    """The GPU works, and the memory of the failed cell is free for the next."""
    free = "torch.cuda.mem_get_info()[0]"
    failed = one_rank.run(
        f"kept = torch.empty({free} // 2, dtype=torch.uint8, device=device)\n"
        f"del kept; torch.empty(4 * {free}, dtype=torch.uint8, device=device)",
        check=False,
    )
    assert failed[0].error is not None
    assert failed[0].error.ename == "OutOfMemoryError"
    assert one_rank.status()[0].state == "idle"
    assert one_rank.run("torch.ones(1, device=device).item()").ok
