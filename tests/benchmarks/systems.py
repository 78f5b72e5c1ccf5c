"""What a user types for each system: cell sources, and nothing else."""

from __future__ import annotations

import textwrap
from typing import Protocol


class System(Protocol):
    """One way to run a notebook's code on several ranks."""

    name: str

    def set_up(self, n: int) -> list[str]:
        """Cells that come before the first one on the ranks."""
        ...

    def on_ranks(self, code: str, n: int) -> str:
        """The cell that runs this code on every rank, with `rank`, `torch` and `dist` defined."""
        ...

    def keeping(self, code: str, n: int) -> str:
        """The same; where a system keeps what the ranks wrote, `record` is bound to it."""
        ...


class JupyterDDP:
    """This package."""

    name = "jupyter_ddp"

    def set_up(self, n: int) -> list[str]:
        return ["%load_ext jupyter_ddp"]

    def on_ranks(self, code: str, n: int) -> str:
        return f"%%ddp -n {n}\n{code}"

    def keeping(self, code: str, n: int) -> str:
        return f"%%ddp -n {n} -o record\n{code}"


class IpyParallel:
    """ipyparallel: a cluster of engines, a direct view, `%%px`; the process group is formed by hand."""

    name = "ipyparallel"

    def set_up(self, n: int) -> list[str]:
        engines = f"""\
            import socket
            import ipyparallel
            engines = ipyparallel.Cluster(n={n}).start_and_connect_sync(activate=True)
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            for rank, engine in enumerate(engines):
                engine.push(dict(rank=rank, port=port), block=True)"""
        group = f"""\
            %%px
            import torch, torch.distributed as dist
            address = f"tcp://127.0.0.1:{{port}}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size={n})"""
        return [textwrap.dedent(engines), textwrap.dedent(group)]

    def on_ranks(self, code: str, n: int) -> str:
        return f"%%px\n{code}"

    def keeping(self, code: str, n: int) -> str:
        return self.on_ranks(code, n)


class TorchRun:
    """torchrun: each cell is a script that `!torchrun` runs on fresh processes."""

    name = "torchrun"

    def set_up(self, n: int) -> list[str]:
        return []

    def on_ranks(self, code: str, n: int) -> str:
        head = "import torch, torch.distributed as dist\ndist.init_process_group('gloo')"
        script = f"{head}\nrank = dist.get_rank()\n{code}\ndist.destroy_process_group()\n"
        return (
            f"import pathlib\n_ = pathlib.Path('cell.py').write_text({script!r})\n"
            f"!torchrun --standalone --nproc_per_node={n} cell.py"
        )

    def keeping(self, code: str, n: int) -> str:
        return self.on_ranks(code, n)


OURS, IPYPARALLEL, TORCHRUN = JupyterDDP(), IpyParallel(), TorchRun()
