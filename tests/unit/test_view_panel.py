"""The panel's state, made from what a cluster says of its ranks."""

from __future__ import annotations

import json
import re

import pytest

from jupyter_ddp.core.messages import RankUsage
from jupyter_ddp.kernel.roster import RankStatus
from jupyter_ddp.view.panel import duration, panel_state, size
from jupyter_ddp.view.status import saved_table, status_table, status_text

GIB = 2**30


def usage(rank: int, **fields: object) -> RankUsage:
    values = {"memory_bytes": 33 * 2**20, "cpu": 0.5, "line": 0, "process_state": "S"} | fields
    return RankUsage(rank, **values)  # type: ignore[arg-type]


def status(rank: int, state: str = "idle", **fields: object) -> RankStatus:
    return RankStatus(rank, 1000 + rank, "cpu", state, node="here", **fields)  # type: ignore[arg-type]


def test_no_pool() -> None:
    """Without a pool the panel says how to start one, and offers nothing to act on."""
    state = panel_state([], "", "stopped")
    assert "%ddp start -n 4" in state["title"]
    assert not state["pool"]
    assert not state["running"]
    assert state["ranks"] == []


def test_a_running_rank_says_where_it_is() -> None:
    """Cell, line, memory, use and age stand in the row, in words."""
    running = status(1, "running", cell=7, line=3, age_s=130.0, usage=(usage(1), usage(1, cpu=1.25)))
    state = panel_state([status(0), running], "gloo", "running")
    row = state["ranks"][1]
    assert state["title"] == "2 ranks · gloo · running"
    assert state["running"]
    assert (row["where"], row["age"], row["memory"], row["use"]) == (
        "In [7], line 3",
        "2 min",
        "33 MiB",
        "125 % CPU",
    )
    assert (row["glyph"], row["state"]) == ("▶", "running")
    assert row["uses"] == [0.5, 1.25]
    assert len(row["memories"]) == 2


def test_a_dead_rank_has_its_reason_and_no_figures() -> None:
    """What a dead process used last is no news; the title names the way on."""
    dead = status(1, "dead", error="killed by SIGKILL", usage=(usage(1),))
    state = panel_state([status(0), dead], "gloo", "ready")
    assert state["lost"] == [1]
    assert "rank 1 died" in state["title"]
    assert "heal" in state["title"].lower()
    row = state["ranks"][1]
    assert (row["glyph"], row["error"], row["memory"], row["use"]) == ("☠", "killed by SIGKILL", "", "")


def test_a_doomed_rank_is_to_be_healed_too() -> None:
    """It has a sign of its own and its reason, and what its process still uses."""
    doomed = status(1, "doomed", error="cuda:1: CUDA error: device-side assert triggered", usage=(usage(1),))
    state = panel_state([status(0), doomed, status(2, "dead")], "nccl", "ready")
    assert state["lost"] == [1, 2]
    assert state["title"] == "3 ranks · nccl · rank 2 died, rank 1 is doomed: Heal, or %ddp heal"
    row = state["ranks"][1]
    assert (row["glyph"], row["state"], row["memory"]) == ("⚠", "doomed", "33 MiB")
    assert "device-side assert" in row["error"]


def test_a_stopped_process_is_not_dead() -> None:
    """SIGSTOP: the process says T, and so does the row, whatever the cell does."""
    row = panel_state([status(0, "running", usage=(usage(0, process_state="T"),))], "gloo", "running")[
        "ranks"
    ][0]
    assert (row["state"], row["glyph"]) == ("stopped", "⏸")


def test_a_gpu_comes_first() -> None:
    """With a GPU its memory and use are what the history follows."""
    samples = (
        usage(0, gpu=0.1, gpu_memory_bytes=GIB, gpu_total_bytes=8 * GIB),
        usage(0, gpu=0.9, gpu_memory_bytes=2 * GIB, gpu_total_bytes=8 * GIB),
    )
    row = panel_state([status(0, usage=samples)], "nccl", "ready")["ranks"][0]
    assert row["memory"] == "2.0 GiB of 8.0 GiB GPU · 33 MiB"
    assert row["use"] == "90 % GPU · 50 % CPU"
    assert row["memories"] == [GIB, 2 * GIB]
    assert row["uses"] == [0.1, 0.9]


def test_the_state_is_plain_data() -> None:
    """It goes to the browser as JSON; a hostile text stays a text."""
    hostile = "<script>alert(1)</script>"
    state = panel_state([status(0, error=hostile, usage=(usage(0),))], "gloo", "ready")
    assert json.loads(json.dumps(state)) == state
    assert state["ranks"][0]["error"] == hostile


def test_the_table_says_what_the_panel_says() -> None:
    """`%ddp status` in a terminal: also where a rank is, how old, what it holds and how it failed."""
    ranks = [
        status(0, "running", cell=7, line=3, age_s=130.0, usage=(usage(0),)),
        status(1, "dead", age_s=130.0, error="killed by SIGKILL (line 4)"),
    ]
    assert status_text(ranks, "gloo", "ready").splitlines() == [
        "2 ranks, gloo, rank 1 died: %ddp heal",
        "rank   pid  device    state    age  memory              at  last error",
        "   0  1000     cpu  running  2 min  33 MiB  In [7], line 3",
        "   1  1001     cpu     dead  2 min                          killed by SIGKILL (line 4)",
    ]


def test_what_is_saved_of_a_panel_is_the_same_in_the_next_run() -> None:
    """No node, process, time or amount is in it, however the panel looked at that moment."""
    quiet = [status(0), status(1, error="ValueError: no (line 2)")]
    later = [
        RankStatus(r.rank, r.pid + 1, r.device, r.state, node="there", age_s=9.0, error=r.error)
        for r in quiet
    ]
    table = saved_table(quiet, "gloo", "ready")
    assert table == saved_table(later, "gloo", "ready") == saved_table(later, "gloo", "forming")
    assert table["text/plain"].splitlines() == [
        "2 ranks, gloo, ready",
        "rank  device  state  last error",
        "   0     cpu   idle",
        "   1     cpu   idle  ValueError: no (line 2)",
    ]
    bare = re.sub(r"<style>.*?</style>", "", table["text/html"])
    words = re.sub(r"<[^>]*>", " ", bare).split()
    told = "2 ranks · gloo · ready rank device state last error 0 cpu idle 1 cpu idle ValueError: no (line 2)"
    assert words == told.split()


def test_a_notebook_s_status_is_what_is_saved_of_a_panel() -> None:
    """`%ddp status` in a notebook; beside a panel it stays where it is, and hides nothing."""
    ranks = [status(0), status(1, "dead", error="killed by SIGKILL (line 4)")]
    table, panels = status_table(ranks, "gloo", "ready"), saved_table(ranks, "gloo", "ready")
    assert table["text/plain"] == panels["text/plain"]
    assert table["text/html"] in panels["text/html"]
    assert "<style>" not in table["text/html"]
    assert "jupyter-ddp-table" not in table["text/html"]


def test_a_saved_table_escapes() -> None:
    """An error's text from a rank becomes no markup, and moves no cursor."""
    table = saved_table([status(0, error="<script>alert(1)</script>\x1b[2J\nmore")], "gloo", "ready")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; more" in table["text/html"]
    assert "\x1b" not in table["text/plain"] + table["text/html"]


def test_without_a_pool_there_is_no_table() -> None:
    """Only how to start one."""
    table = saved_table([], "", "stopped")
    assert table["text/plain"] == "no pool: %%ddp -n 4, or %ddp start -n 4, starts one"
    assert "<table" not in table["text/html"]


@pytest.mark.parametrize(
    ("n", "words"),
    [(0, "0 MiB"), (33 * 2**20, "33 MiB"), (999 * 2**20, "999 MiB"), (3 * GIB // 2, "1.5 GiB")],
)
def test_sizes(n: int, words: str) -> None:
    """Mebibytes until there are a thousand of them."""
    assert size(n) == words


@pytest.mark.parametrize(("s", "words"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(s: float, words: str) -> None:
    """The unit that a glance can take in."""
    assert duration(s) == words
