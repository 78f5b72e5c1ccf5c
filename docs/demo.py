"""Run a notebook without a browser, print what its ranks said, and save it as it was run.

python docs/demo.py notebooks/02-digits.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

CELL_TIMEOUT_S = 600


def texts(output: nbformat.NotebookNode) -> list[str]:
    """An output's plain text, in lines."""
    if output.output_type == "stream":
        return output.text.splitlines()
    if output.output_type == "error":
        return [f"{output.ename}: {output.evalue}"]
    return str(output.data.get("text/plain", "")).splitlines()


def show(cell: nbformat.NotebookNode, **_: object) -> None:
    """Print the first lines of a cell that has run on ranks, and what stands below it."""
    if cell.cell_type != "code" or not cell.source.startswith(("%%ddp", "%%rank", "%ddp")):
        return
    print("", *cell.source.splitlines()[:2], sep="\n")
    for output in cell.outputs:
        for line in texts(output):
            print(f"    {line}")
    sys.stdout.flush()


def main(path: Path) -> int:
    """Execute the notebook at `path` in its own folder; 0 if every cell ended well."""
    notebook = nbformat.read(path, as_version=4)
    executed = Path("out") / path.name
    executed.parent.mkdir(exist_ok=True)
    print(f"running {path}", flush=True)
    failed = False
    try:
        where = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources=where, on_cell_executed=show)
        client.execute()
    except CellExecutionError:
        failed = True  # the cell's own outputs say why
    finally:
        nbformat.write(notebook, executed)
    print(f"\nexecuted notebook: {executed.resolve()}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
