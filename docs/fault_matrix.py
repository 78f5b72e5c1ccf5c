"""docs/promises.md: each fault that the pool was designed for, and the tests that show what comes of it.

python docs/fault_matrix.py          prints the table
python docs/fault_matrix.py --write  puts it between its marks in docs/promises.md

A test is named by its file and function; `tests/unit/test_promises.py` sees to it that it is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent / "promises.md"
BEGIN, END = "<!-- faults: `python docs/fault_matrix.py --write` -->", "<!-- end of faults -->"


class Row(NamedTuple):
    """A fault, the tests (below tests/), and what of it no test shows."""

    fault: str
    tests: tuple[str, ...]
    missing: str = ""


LIFE, CELL, STREAMS = "integration/test_life.py", "integration/test_cell.py", "integration/test_streams.py"
SCRIPTS, DISPLAY = "integration/test_scripts.py", "integration/test_display.py"
CRASH, LOST, HANG = "fault/test_crash_table.py", "fault/test_lost_pool.py", "fault/test_hang.py"
HOSTILE, CHECK, STEP = "fault/test_hostile_cells.py", "fault/test_check.py", "fault/test_out_of_step.py"
OUTPUT, STARTING, POOR = "fault/test_output.py", "fault/test_starting.py", "fault/test_poor_machine.py"
CLUSTER, AGENT, DOOMED = "contract/test_cluster.py", "contract/test_agent.py", "fault/test_doomed.py"
INTERRUPTS, OWNERS = "fault/test_interrupts.py", "fault/test_owners_die.py"
NCCL = "gpu/test_nccl.py"
ON_A_GPU = "the tests in tests/gpu need a GPU"

ROWS = (
    Row(
        "exception on one rank, others wait in a collective",
        (f"{LIFE}::test_one_rank_raises_while_others_wait",),
    ),
    Row(
        "exception on several or all ranks",
        (
            f"{CELL}::test_traceback_has_the_notebooks_line_numbers",
            f"{DISPLAY}::test_identical_tracebacks_are_folded",
        ),
    ),
    Row(
        "`sys.exit(3)`, `exit()`, `quit()`",
        (f"{CELL}::test_system_exit", f"{CRASH}::test_no_death_in_a_cell"),
    ),
    Row("`os._exit`, segfault, `abort()`", (f"{CRASH}::test_in_a_cell",)),
    Row(
        "SIGKILL or OOM kill: idle",
        (
            f"{CRASH}::test_between_cells",
            "unit/test_faults.py::test_an_exit_says_what_the_facts_say",
        ),
        "a kill by the system itself, for want of memory: the words are tested, from made-up facts",
    ),
    Row("SIGKILL: in a collective", (f"{CRASH}::test_in_a_collective",)),
    Row(
        "SIGKILL: while printing",
        (
            f"{OUTPUT}::test_what_was_written_before_a_kill",
            f"{OUTPUT}::test_what_was_written_before_a_kill_from_outside",
        ),
    ),
    Row(
        "SIGKILL: at start-up, in each phase",
        (f"{CRASH}::test_while_the_pool_starts", f"{STARTING}::test_the_end_of_its_stderr"),
    ),
    Row(
        "all ranks killed",
        (f"{LOST}::test_all_ranks_are_killed_in_a_cell", f"{LOST}::test_all_ranks_are_killed_while_idle"),
    ),
    Row(
        "node agent or forkserver killed",
        (
            f"{LOST}::test_the_agent_is_killed_while_ranks_hold_the_gil",
            f"{LOST}::test_the_agent_is_killed_where_ranks_have_children",
            f"{LOST}::test_the_agent_is_ended_while_idle",
            f"{OWNERS}::test_the_agent_is_killed",
            f"{OWNERS}::test_the_forkserver_is_killed",
        ),
    ),
    Row(
        "notebook kernel killed, restarted, or shut down",
        (
            f"{LIFE}::test_kernel_killed",
            f"{LIFE}::test_kernel_that_forked_is_killed",
            f"{LIFE}::test_kernel_restarted",
            f"{LIFE}::test_kernel_shut_down",
            f"{OWNERS}::test_the_notebook_kernel_is_killed",
        ),
        f"that the ranks' GPU memory is free afterwards: {ON_A_GPU}, and none shows this yet",
    ),
    Row("interrupt: Python loop, sleep", (f"{INTERRUPTS}::test_python_code", f"{LIFE}::test_interrupt")),
    Row(
        "interrupt: C code holding the GIL",
        (
            f"{INTERRUPTS}::test_c_code_that_holds_the_gil",
            f"{HANG}::test_an_interrupt_says_who_is_in_c_code",
        ),
    ),
    Row(
        "interrupt: inside a collective",
        (f"{INTERRUPTS}::test_in_a_collective", f"{LIFE}::test_interrupt_in_a_blocked_collective"),
    ),
    Row("interrupt: DataLoader workers running", (f"{LIFE}::test_interrupt_with_data_loader_workers",)),
    Row("interrupt twice, three times", (f"{INTERRUPTS}::test_bursts",)),
    Row(
        "mismatched shape or dtype",
        (
            f"{CHECK}::test_without_check_gloos_abort_is_explained",
            f"{CHECK}::test_a_mismatch_raises_on_every_rank",
        ),
    ),
    Row(
        "mismatched operations",
        (
            f"{HANG}::test_different_operations_are_ended",
            f"{STEP}::test_different_operations_left_behind",
        ),
    ),
    Row(
        "a rank skips a collective",
        (
            f"{STEP}::test_a_rank_skips_a_collective",
            f"{STEP}::test_no_false_alarm",
            f"{STEP}::test_cells_on_part_of_the_ranks",
        ),
    ),
    Row(
        "one rank absent from `new_group`",
        (
            f"{INTERRUPTS}::test_in_a_collective",
            "integration/test_around_the_cell.py::test_a_rank_that_waits_in_the_store",
            f"{HANG}::test_a_stopped_rank_a_receive_and_a_group_that_not_all_form",
        ),
    ),
    Row(
        "deadlock, slow rank",
        (f"{HANG}::test_one_rank_sleeps", f"{HANG}::test_where_nobody_watches_a_hang_ends_the_cell"),
    ),
    Row("unkillable process", (f"{CLUSTER}::test_a_rank_that_cannot_be_killed",)),
    Row(
        "infinite output",
        (f"{OUTPUT}::test_interrupt_of_endless_output", f"{OUTPUT}::test_the_quota"),
    ),
    Row(
        r"giant line, invalid UTF-8, ANSI, `\r`, bytes split mid-character",
        (
            f"{STREAMS}::test_a_giant_line",
            f"{STREAMS}::test_bytes_split_inside_a_character",
            "property/test_transcript.py::test_how_output_is_split_does_not_show",
        ),
    ),
    Row(
        "huge or raising `repr`, unpicklable value",
        (
            f"{HOSTILE}::test_a_hostile_repr",
            f"{HOSTILE}::test_a_huge_repr",
            f"{HOSTILE}::test_a_hostile_object",
            f"{HOSTILE}::test_a_repr_without_end",
        ),
    ),
    Row(
        "output from threads, subprocesses, C code",
        (
            f"{STREAMS}::test_each_way_to_write",
            f"{STREAMS}::test_a_background_thread_prints_between_cells",
            f"{STREAMS}::test_late_output_is_shown_with_its_cell",
        ),
    ),
    Row("fork in a cell", (f"{HOSTILE}::test_a_fork",)),
    Row(
        "the cell forms or destroys the process group itself, sets `MASTER_ADDR`, tests `__name__`",
        (
            f"{SCRIPTS}::test_train",
            f"{SCRIPTS}::test_ways_to_initialise",
            f"{SCRIPTS}::test_destroyed_group_in_the_same_cell",
            f"{SCRIPTS}::test_main_guard_and_argv",
        ),
    ),
    Row(
        "the cell changes `sys.stdout`, signal handlers, cwd, environment",
        (f"{HOSTILE}::test_a_cells_changes_to_its_process",),
    ),
    Row("port taken", (f"{HOSTILE}::test_a_port_that_is_taken",)),
    Row(
        "host name does not resolve, IPv6 only",
        (f"{POOR}::test_a_host_name_that_does_not_resolve",),
        "a machine without 127.0.0.1, which no pool starts on; pools on several machines are not there yet",
    ),
    Row(
        "/dev/shm, disk or descriptors exhausted",
        (
            f"{POOR}::test_a_small_shared_memory",
            f"{POOR}::test_a_disk_without_room",
            "fault/test_exhaustion.py::test_the_notebook_kernel_can_keep_no_file",
            "fault/test_exhaustion.py::test_interrupt_without_descriptors",
        ),
    ),
    Row("clock jump", (f"{HOSTILE}::test_a_clock_jump",)),
    Row(
        "SIGSTOP",
        (
            "fault/test_suspended.py::test_a_rank_is_stopped_in_a_cell",
            "fault/test_suspended.py::test_a_rank_is_stopped_between_cells",
        ),
    ),
    Row("network cut, node lost", (), "pools on several machines are not there yet"),
    Row(
        "duplicate rank, wrong version, wrong token",
        (
            f"{CLUSTER}::test_a_duplicate_rank",
            f"{CLUSTER}::test_a_wrong_version",
            f"{AGENT}::test_a_rank_that_speaks_as_another_is_lost_alone",
        ),
        "a token: links on one machine are inherited, and nobody else can join",
    ),
    Row("fewer GPUs than ranks", (f"{CLUSTER}::test_fewer_gpus_than_ranks",)),
    Row(
        "GPU lost, sticky CUDA error, device-side assert",
        (
            f"{DOOMED}::test_a_rank_is_doomed",
            f"{DOOMED}::test_a_doomed_rank_is_healed",
            f"{NCCL}::test_a_device_side_assert_dooms_the_rank_and_a_heal_replaces_it",
        ),
        f"on a real GPU: {ON_A_GPU}",
    ),
    Row(
        "CUDA out of memory",
        (f"{HOSTILE}::test_a_failed_cells_tensors", f"{NCCL}::test_out_of_memory_dooms_nobody"),
        f"on a real GPU: {ON_A_GPU}",
    ),
    Row("two notebook kernels at once, a stale pool", (f"{LIFE}::test_two_kernels",)),
    Row(
        "two threads run cells",
        ("integration/test_api.py::test_threads", "contract/test_exchange.py::test_eight_threads_run_cells"),
    ),
    Row(
        "the notebook run again from the top; extension reloaded or unloaded",
        (
            f"{LIFE}::test_run_again_from_the_top",
            f"{LIFE}::test_a_different_n_runs_nothing",
            f"{LIFE}::test_reload_ext_keeps_the_pool",
            f"{LIFE}::test_unload_ext",
        ),
    ),
)


def table() -> str:
    """The rows in markdown."""
    lines = ["| fault | shown by | not shown |", "|---|---|---|"]
    for row in ROWS:
        tests = "<br>".join(f"`{test.replace('::', ' · ')}`" for test in row.tests)
        lines.append(f"| {row.fault} | {tests or '–'} | {row.missing} |")
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    if "--write" in sys.argv:
        PAGE.write_text(fill(PAGE.read_text()))
    else:
        os.write(1, f"{table()}\n".encode())


if __name__ == "__main__":
    main()
