"""Make the pictures of README.md: cells run on four ranks in JupyterLab, photographed in Chromium.

python docs/make_pictures.py        (needs what tests/browser needs)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser.driver import (  # noqa: E402  # found beside this folder, not installed
    CHROMIUM,
    CHROMIUM_OPTIONS,
    JupyterServer,
    NotebookPage,
    write_notebook,
)

PICTURES = ROOT / "docs" / "img"
MAX_BYTES = 200_000
MARGIN = 6

FIRST_CELL = [
    "%load_ext jupyter_ddp",
    '%%ddp -n 4\nprint(f"hello from rank {rank} of {world_size}")',
    "%%ddp\nt = torch.tensor([rank + 1.0])\ndist.all_reduce(t)\nt",
]
ERROR = [
    "%load_ext jupyter_ddp\n%ddp start -n 4",
    "%%ddp\nbatches = [32, 32, 0, 32]\nmean = torch.tensor(1000 // batches[rank])\ndist.all_reduce(mean)",
    "%%ddp\nbatches[rank]",
]


def picture(browser: Browser, server: JupyterServer, name: str, sources: list[str], first: int = 0) -> None:
    """Run the cells one by one, and photograph them from the cell number `first` on."""
    write_notebook(server.root / f"{name}.ipynb", [*sources, ""])
    context = browser.new_context(viewport={"width": 1200, "height": 1200}, device_scale_factor=1.5)
    page = NotebookPage(context, server, "lab", f"{name}.ipynb")
    page.page.get_by_role("tab", name="File Browser").first.click()  # it closes, and makes room
    page.page.set_viewport_size({"width": 800, "height": 1200})
    for i in range(len(sources)):
        page.run(i, 60)
    page.cell(len(sources)).click()  # so that none of the others is marked
    page.page.mouse.move(0, 0)
    top, bottom = page.cell(first).bounding_box(), page.cell(len(sources) - 1).bounding_box()
    assert top
    assert bottom
    area = {
        "x": top["x"],
        "y": top["y"] - MARGIN,
        "width": top["width"],
        "height": bottom["y"] + bottom["height"] - top["y"] + MARGIN,
    }
    path = PICTURES / f"{name}.png"
    page.page.screenshot(path=path, clip=area, animations="disabled")
    context.close()
    assert path.stat().st_size < MAX_BYTES, f"{path}: {path.stat().st_size} bytes"


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        JupyterServer(Path(folder) / "jupyter") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        picture(browser, server, "first-cell", FIRST_CELL)
        picture(browser, server, "error", ERROR, first=1)
        browser.close()


if __name__ == "__main__":
    main()
