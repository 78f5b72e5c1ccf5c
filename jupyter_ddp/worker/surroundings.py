"""What the notebook kernel had when the pool started, made true in a rank: environment, directory,
sys.path; and torchrun's environment variables."""

from __future__ import annotations

import os
import sys

import torch

from jupyter_ddp.core import messages as m


def torchrun_environ(surroundings: m.Surroundings, place: m.WorkerPlace) -> dict[str, str]:
    """The variables that torchrun gives a worker (torch/distributed/elastic/agent/server)."""
    return {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(place.node_rank),
        "GROUP_WORLD_SIZE": str(place.n_nodes),
        "ROLE_RANK": str(place.rank),
        "ROLE_WORLD_SIZE": str(place.world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": surroundings.master_addr,
        "MASTER_PORT": str(surroundings.master_port),
        "TORCHELASTIC_RUN_ID": surroundings.run_id,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        # env:// joins our store instead of opening one of its own on a port that is taken.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def apply_surroundings(surroundings: m.Surroundings, place: m.WorkerPlace) -> None:
    """Environment, threads, directory and sys.path, as a process started now would have them."""
    environ = {**surroundings.environ, **torchrun_environ(surroundings, place)}
    if (mark := os.environ.get(m.NODE_MARK)) is not None:  # its children are found by it
        environ[m.NODE_MARK] = mark
    # As torchrun does: ranks that each use all cores stand in each other's way.
    environ.setdefault("OMP_NUM_THREADS", "1")
    environ.setdefault("TORCH_FR_BUFFER_SIZE", "256")
    environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ.clear()
    os.environ.update(environ)
    if environ["OMP_NUM_THREADS"].isdigit():
        # torch read the variable when it was imported, before this rank existed.
        torch.set_num_threads(max(1, int(environ["OMP_NUM_THREADS"])))
    os.chdir(surroundings.cwd)
    sys.path[:] = surroundings.sys_path
    sys.argv[:] = [""]
