"""`%ddp log`: what a cell's ranks wrote, in a file beside the notebook.

Owns the files' names. Never writes over a file that is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.topology import ranges
from jupyter_ddp.kernel.cells import RECORDS_KEPT


def save(records: Sequence[CellRecord], cell: int | None) -> str:
    """Write the log of the cell with this prompt number, or of the last, to a new file in the working
    directory; say in one line which, and how large it is.

    `records`: those that are kept, oldest first. Raises UsageError where the cell's is none of them,
    PoolError where the file cannot be written.
    """
    record = _find(records, cell)
    number = _number(record)
    if not record.log.streams():
        return f"%ddp log: the ranks wrote no text in cell {number}"
    for attempt in itertools.count(1):
        name = f"ddp-cell-{number}" + (f"-{attempt}" if attempt > 1 else "") + ".log"
        try:
            return f"{name}: {record.save(name)}"
        except FileExistsError:
            continue
        except OSError as error:
            raise PoolError(
                f"%ddp log: {name} cannot be written here: {error.strerror or error}; "
                "%%ddp -o r binds a cell's record, and r.save(path) writes it elsewhere"
            ) from None
    raise AssertionError("itertools.count ends")


def _find(records: Sequence[CellRecord], cell: int | None) -> CellRecord:
    if not records:
        raise UsageError("%ddp log: no cell has run on the ranks; %%ddp runs one")
    if cell is None:
        return records[-1]
    for record in reversed(records):
        if _number(record) == cell:
            return record
    there = sorted({_number(record) for record in records})
    raise UsageError(
        f"%ddp log {cell}: no record of such a cell; the last {RECORDS_KEPT} that ran on the ranks are kept "
        f"(here {ranges(there, '-')}); %%ddp -o r keeps a cell's, and r.save(path) writes it"
    )


def _number(record: CellRecord) -> int:
    """What stands beside the cell in the notebook; of one that a program ran, its place among all."""
    return record.prompt or record.cell
