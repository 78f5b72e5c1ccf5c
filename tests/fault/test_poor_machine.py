"""Machines that lack what others have: a host name that resolves, shared memory, room on the disk.

Each test runs a script in namespaces of its own, where it is root and may take things away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("unshare", "mount", "hostname")

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0
SCRIPT = """
import json, sys
from jupyter_ddp import Cluster
told = {}
REDUCE = "t = torch.ones(1); dist.all_reduce(t); t.item()"
with Cluster(2) as cluster:
    told["said"] = cluster.announcements()
"""


def run(tmp_path: Path, script: str, *taken_away: str, **environ: str) -> dict[str, Any]:
    """What a script with a cluster of two ranks has found, on a machine that commands have changed."""
    file = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(script).strip(), "    ")
    file.write_text(f"{SCRIPT}{body}\nprint(json.dumps(told))\n")
    commands = " && ".join([*taken_away, f"exec {sys.executable} {file}"])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--uts", "--mount", "sh", "-c", commands],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.promise("a host name that does not resolve is none of a local pool's business")
def test_a_host_name_that_does_not_resolve(tmp_path: Path) -> None:
    """Ranks meet on numeric loopback: the pool's group, one of the user's, and a script's `env://`."""
    told = run(
        tmp_path,
        """
        import socket
        try:
            socket.gethostbyname(socket.gethostname())
        except OSError as error:
            told["resolver"] = str(error)
        told["pool"] = [r.value.text for r in cluster.run(REDUCE)]
        cluster.run("pair = dist.new_group([0, 1])")
        reduce = "t = torch.ones(1); dist.all_reduce(t, group=pair); t.item()"
        told["user"] = [r.value.text for r in cluster.run(reduce)]
        told["script"] = [r.value.text for r in cluster.run(f"dist.init_process_group('gloo')\\n{REDUCE}")]
        """,
        "hostname nowhere.invalid",
    )
    assert told["resolver"]
    assert told["pool"] == told["user"] == told["script"] == ["2.0", "2.0"]


@pytest.mark.promise(
    "a small /dev/shm is said when the pool starts; what does not fit is an error of the cell"
)
def test_a_small_shared_memory(tmp_path: Path) -> None:
    """One remark with the size and the remedy; DataLoader workers name the errno; the ranks live on."""
    told = run(
        tmp_path,
        """
        record = cluster.run(
            "from torch.utils.data import DataLoader\\n"
            "list(DataLoader(torch.zeros(64, 40000), batch_size=16, num_workers=1))",
            check=False,
        )
        told["loader"] = [r.error.evalue if r.error else "" for r in record]
        told["after"] = [r.value.text for r in cluster.run(REDUCE)]
        """,
        "mount -t tmpfs -o size=1m none /dev/shm",
    )
    (remark,) = told["said"]
    assert "/dev/shm has room for 1 MiB" in remark
    assert "--shm-size" in remark
    assert all("No space left on device" in words for words in told["loader"]), told
    assert told["after"] == ["2.0", "2.0"]


@pytest.mark.promise("a full disk: output goes on in memory, the errno named")
def test_a_disk_without_room(tmp_path: Path) -> None:
    """Where 4 MB of output find a file system of 1 MiB, the record is whole all the same."""
    small = tmp_path / "small"
    small.mkdir()
    told = run(
        tmp_path,
        """
        record = cluster.run("for i in range(40_000): print(f'{i:099d}')")
        told["lengths"] = [len(r.stdout) for r in record]
        told["notes"] = sorted({note for r in record for note in r.notices})
        record.close()
        told["after"] = [r.value.text for r in cluster.run(REDUCE)]
        """,
        f"mount -t tmpfs -o size=1m none {small}",
        TMPDIR=str(small),
    )
    assert told["said"] == []
    assert told["lengths"] == [4_000_000] * 2
    (note,) = told["notes"]
    assert note.endswith("No space left on device (ENOSPC)")
    assert told["after"] == ["2.0", "2.0"]
