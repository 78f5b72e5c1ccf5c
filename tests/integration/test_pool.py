"""Points 1 and 2 of the issue: what the pool is made of, and what a rank finds around it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 4
TORCHRUN = {
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "4",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_WORLD_SIZE": "4",
    "ROLE_NAME": "default",
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
_LISTENING = "0A"


def listeners(pid: int) -> set[str]:
    """The addresses that a process listens on for TCP, as /proc has them."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(fd))  # noqa: PTH115 - it names no file
        except FileNotFoundError:
            continue  # closed while we looked
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTENING and f"socket:[{inode}]" in sockets:
                raw = local.partition(":")[0]
                words = [struct.pack("<I", int(raw[i : i + 8], 16)) for i in range(0, len(raw), 8)]
                family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
                addresses.add(socket.inet_ntop(family, b"".join(words)))
    return addresses


# --- processes ------------------------------------------------------------------------------------


def test_nothing_listens_beyond_loopback(nb: NotebookKernel) -> None:
    """Kernel, agent, forkserver and ranks listen on 127.0.0.1 only, also after a group of a cell's own."""
    nb.ranks("extra = dist.new_group([0, 1]); dist.all_reduce(torch.ones(1))")
    found = {pid: listeners(pid) for pid in [nb.pid, *nb.others()]}
    assert found[nb.pid] == {"127.0.0.1"}  # the store, and Jupyter's own channels
    assert all(found[pid] == {"127.0.0.1"} for pid in nb.rank_pids())  # gloo
    assert set().union(*found.values()) == {"127.0.0.1"}


def test_the_store_is_in_the_kernel(nb: NotebookKernel) -> None:
    """MASTER_PORT on the ranks is a port that the notebook kernel's own process listens on."""
    port = nb.ranks("import os; int(os.environ['MASTER_PORT'])").values[0]
    table = Path(f"/proc/{nb.pid}/net/tcp").read_text()
    inode = next(line.split()[9] for line in table.splitlines() if f":{port:04X} 00000000:0000 0A" in line)
    links = [os.readlink(fd) for fd in Path(f"/proc/{nb.pid}/fd").iterdir()]  # noqa: PTH115 - no files
    assert f"socket:[{inode}]" in links


def test_the_agent_is_without_torch_and_in_a_session_of_its_own(nb: NotebookKernel) -> None:
    """No library of torch is mapped in the agent, and a terminal's signals to the kernel miss it."""
    agent = nb.agent_pid
    assert "libtorch" not in Path(f"/proc/{agent}/maps").read_text()
    assert os.getsid(agent) == agent != os.getsid(nb.pid)


def test_load_ext_returns_at_once(fresh: Callable[..., NotebookKernel]) -> None:
    """`%load_ext` takes less than half a second; what it starts goes on behind it."""
    kernel = fresh()
    cell = kernel.good("%load_ext jupyter_ddp")
    assert cell.execution_s < 0.5
    assert not cell.outputs


# --- what a rank has ------------------------------------------------------------------------------


def test_names(nb: NotebookKernel) -> None:
    """rank, local_rank, world_size, device, torch and dist are there before the first cell."""
    ranks = nb.ranks(
        "(rank, local_rank, world_size, str(device), torch.__name__, dist.__name__, "
        "dist.get_rank(), dist.get_world_size(), dist.get_backend())"
    )
    names = ("cpu", "torch", "torch.distributed")
    assert ranks.values == [(r, r, 4, *names, r, 4, "gloo") for r in range(4)]


def test_torchrun_environment(nb: NotebookKernel) -> None:
    """Each rank has every variable that torchrun sets, with its own numbers."""
    found = nb.ranks("import os; dict(os.environ)").values
    for rank, environ in enumerate(found):
        assert {name: environ.get(name) for name in TORCHRUN} == TORCHRUN
        assert [environ[name] for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")] == [str(rank)] * 3
        assert environ["TORCHELASTIC_RUN_ID"]
        assert int(environ["MASTER_PORT"]) > 0


def test_each_rank_has_a_seed_of_its_own(nb: NotebookKernel) -> None:
    """torch, random and NumPy draw differently on each rank."""
    drawn = nb.ranks(
        "import random, numpy\n"
        "(torch.initial_seed(), torch.rand(1).item(), random.random(), numpy.random.rand())"
    ).values
    for draws in zip(*drawn, strict=True):
        assert len(set(draws)) == 4, draws


def test_variables_persist(nb: NotebookKernel) -> None:
    """A cell finds what earlier cells bound, imported and defined, and `__name__` is `__main__`."""
    nb.ranks("import math\nkept = rank * 10\ndef twice(x):\n    return 2 * x")
    assert nb.ranks("(twice(kept), math.floor(1.5), __name__)").values == [
        (20 * r, 1, "__main__") for r in range(4)
    ]


def test_all_reduce(nb: NotebookKernel) -> None:
    """The group works in the first cell, and in the next."""
    for _ in range(2):
        assert nb.ranks("t = torch.tensor([rank]); dist.all_reduce(t); t.item()").values == [6] * 4


def test_surroundings_at_the_pools_start(fresh: Callable[..., NotebookKernel]) -> None:
    """Environment, directory and sys.path set in the kernel after `%load_ext` hold on the ranks."""
    kernel = fresh()
    (kernel.folder / "deeper").mkdir()
    (kernel.folder / "library").mkdir()
    (kernel.folder / "library" / "from_library.py").write_text("WHERE = 'library'")
    (kernel.folder / "deeper" / "beside.py").write_text("WHERE = 'beside'")
    kernel.good("%load_ext jupyter_ddp")
    kernel.good(
        "import os, sys\nos.environ['MY_SETTING'] = 'ünï 1'\n"
        "sys.path.append(os.path.abspath('library'))\nos.chdir('deeper')"
    )
    kernel.good("%%ddp -n 2\nimport beside, from_library, os", 60)
    found = kernel.ranks("(os.getcwd(), os.environ['MY_SETTING'], beside.WHERE, from_library.WHERE)").values
    assert found == [(str(kernel.folder / "deeper"), "ünï 1", "beside", "library")] * 2


def test_import_at_once_after_load_ext(fresh: Callable[..., NotebookKernel]) -> None:
    """The very next cells may import torch in any order: they never meet a half-imported module."""
    for first in ("import torch", "import torch.nn as nn", "from torch.distributed import fsdp"):
        kernel = fresh()
        loading = kernel.send("%load_ext jupyter_ddp")
        cells = [kernel.send(code) for code in (first, "import torch, torch.distributed; torch.ones(1)")]
        for cell in [loading, *cells]:
            assert kernel.wait(cell, 60).ok, (first, cell)
        kernel.close()


def test_the_kernel_is_left_as_it_was(nb: NotebookKernel) -> None:
    """The notebook's own namespace gets none of the ranks' names, its environment none of torchrun's."""
    assert (
        nb.evaluate("[n for n in ('rank', 'world_size', 'torch', 'dist', 'device') if n in globals()]") == []
    )
    assert (
        nb.evaluate("[n for n in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR') if n in __import__('os').environ]")
        == []
    )


# --- modules, classes and functions ---------------------------------------------------------------


def test_autoreload(nb: NotebookKernel) -> None:
    """A module beside the notebook imports on the ranks; edited, `%autoreload` takes the new text."""
    module = nb.folder / "edited_beside.py"
    module.write_text("def answer():\n    return 'before'\n")
    os.utime(module, (1, 1))
    nb.ranks("%load_ext autoreload\n%autoreload 2\nimport edited_beside")
    assert nb.ranks("edited_beside.answer()").values == ["before"] * 4
    module.write_text("def answer():\n    return 'after the edit'\n")
    assert nb.ranks("edited_beside.answer()").values == ["after the edit"] * 4
    nb.ranks("%autoreload 0")


def test_pickling_of_what_cells_define(nb: NotebookKernel) -> None:
    """Instances, classes and functions of an earlier cell pickle, and torch.save and load take them."""
    nb.ranks("class Point:\n    def __init__(self, x):\n        self.x = x\ndef double(x):\n    return 2 * x")
    ranks = nb.ranks(
        "import pickle, io\n"
        "again = pickle.loads(pickle.dumps([Point(rank), double, Point]))\n"
        "file = io.BytesIO()\n"
        "torch.save({'model': torch.nn.Linear(2, 1), 'point': Point(7)}, file)\n"
        "file.seek(0)\n"
        "loaded = torch.load(file, weights_only=False)\n"
        "(again[0].x, again[1](2), again[2] is Point, loaded['point'].x)"
    )
    assert ranks.values == [(rank, 4, True, 7) for rank in range(4)]


def test_data_loader_workers(nb: NotebookKernel) -> None:
    """A Dataset and a collate function from cells work in a DataLoader with two worker processes."""
    nb.ranks(
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Squares(Dataset):\n"
        "    def __len__(self):\n        return 8\n"
        "    def __getitem__(self, i):\n        return torch.tensor(i * i)\n"
        "def collate(items):\n    return torch.stack(items)"
    )
    ranks = nb.ranks(
        "sum(b.sum().item() for b in DataLoader(Squares(), 2, num_workers=2, collate_fn=collate))",
        timeout_s=60,
    )
    assert ranks.values == [140] * 4
    assert ranks.all("stderr") == [""] * 4


def test_getsource(nb: NotebookKernel) -> None:
    """inspect.getsource finds a function, a class and a method of earlier cells."""
    nb.ranks("def f(x):\n    return x + 1\n\n\nclass C:\n    y = 1\n\n    def m(self):\n        return 2")
    nb.ranks("# another cell in between")
    values = nb.ranks("import inspect\n[inspect.getsource(it) for it in (f, C, C.m)]").values
    function = "def f(x):\n    return x + 1\n"
    method = "    def m(self):\n        return 2\n"
    for sources in values:
        assert [source.rstrip("\n") + "\n" for source in sources] == [
            function,
            "class C:\n    y = 1\n\n" + method,
            method,
        ]


# --- the group ------------------------------------------------------------------------------------


def test_gloo_is_said_in_one_line(fresh: Callable[..., NotebookKernel]) -> None:
    """Without GPUs the first cell says once, in one line, what was chosen and why; later ones nothing."""
    kernel = fresh()
    kernel.good("%load_ext jupyter_ddp")
    first = kernel.good("%%ddp -n 2\npass", 60)
    assert first.text.strip() == "2 ranks on cpu, gloo (no GPU)"
    assert kernel.good("%%ddp -n 2\npass").outputs == []
    assert kernel.good("%%ddp\npass").outputs == []


def test_a_sensible_number_of_ranks_without_n(fresh: Callable[..., NotebookKernel]) -> None:
    """`%%ddp` alone starts as many ranks as make sense on this CPU, and says how many."""
    kernel = fresh()
    kernel.good("%load_ext jupyter_ddp")
    cell = kernel.good("%%ddp\nprint(world_size)", 60)
    size = max(2, min(4, len(os.sched_getaffinity(0))))
    assert cell.texts[0].strip() == f"{size} ranks on cpu, gloo (no GPU)"


def test_nccl_without_gpus(nb: NotebookKernel) -> None:
    """Asking for NCCL fails in one line that names the way out, whether there is a pool or not."""
    before = nb.rank_pids()
    cell = nb.bad("%%ddp --backend nccl\nprint('ran')")
    assert "nccl" in cell.error
    assert "ran" not in cell.text
    assert nb.rank_pids() == before
    nb.good("from jupyter_ddp import Cluster\nasked = Cluster(2, backend='nccl')")
    error = nb.bad("asked.start()").error
    nb.good("asked.close()")
    assert error.startswith("UsageError: --backend nccl needs a GPU for each rank")
    assert "--backend gloo" in error


def test_devices_without_gpus(nb: NotebookKernel) -> None:
    """`--devices` on a machine without a GPU fails in one line before anything starts."""
    nb.good("from jupyter_ddp import Cluster\nasked = Cluster(2, devices=[1])")
    error = nb.bad("asked.start()").error
    nb.good("asked.close()")
    assert error.startswith("UsageError: --devices: there is no GPU 1")
