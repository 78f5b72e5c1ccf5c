"""Make the pictures of README.md: cells run on four ranks in JupyterLab, photographed in Chromium.

make pictures        (or this file by itself; it needs what tests/browser needs, and Pillow)

Nothing is posed: the ranks train, and rank 2 is killed from outside while they do.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, FloatRect, Locator, sync_playwright

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
MAX_BYTES = {".png": 250_000, ".gif": 700_000}
MARGIN = 6
WIDTH, SHARPNESS = 880, 1.5
FILM_WIDTH, FILM_HEIGHT = 960, 720
START_S = 120.0  # at most, on a busy machine
COLOURS = 200  # of the animated picture

LOAD = "%load_ext jupyter_ddp"
FIRST_CELL = [
    LOAD,
    '%%ddp -n 4\nprint(f"hello from rank {rank} of {world_size}")',
    "%%ddp\nt = torch.tensor([rank + 1.0])\ndist.all_reduce(t)\nt",
]
ERROR = [
    f"{LOAD}\n%ddp start -n 4",
    "%%ddp\nbatches = [32, 32, 0, 32]\nmean = torch.tensor(1000 // batches[rank])\ndist.all_reduce(mean)",
    "%%ddp\nbatches[rank]",
]
MODEL = """\
%%ddp -n 4
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

X, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
model = DistributedDataParallel(torch.nn.Linear(64, 10))
optimizer, epoch = torch.optim.Adam(model.parameters()), 0"""
TRAINING = """\
%%ddp
while epoch < {epochs}:
    for batch in torch.randperm(len(X))[rank::world_size].split(8):
        loss = torch.nn.functional.cross_entropy(model(X[batch].float()), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    epoch += 1
    print(f"epoch {{epoch}}: loss {{loss.item():.4f}}")"""
WHO = "%%ddp\nimport os, pathlib\n_ = pathlib.Path(f'pid-{rank}').write_text(str(os.getpid()))"
HEAL = "%ddp heal --from 0"
EPOCHS = 24

# What is no part of the story: other people's buttons, and names of this machine.
PLAIN = """
.jp-cell-toolbar, .jp-Notebook-footer, #jp-bottom-panel, #jp-main-statusbar { display: none !important; }
.jp-Notebook { overflow: hidden !important; }
.jddp-panel th:nth-child(2), .jddp-panel td:nth-child(2) { display: none; }
* { caret-color: transparent !important; }
#pointer { position: fixed; z-index: 9999; width: 18px; pointer-events: none; }
"""
POINTER = """() => {
  const pointer = document.createElement("div");
  pointer.id = "pointer";
  pointer.innerHTML = `<svg viewBox="0 0 18 26"><path d="M1 1v19l5-4 3 8 4-2-3-8h7z" fill="#111" stroke="#fff"
    stroke-width="1.5"/></svg>`;
  document.body.append(pointer);
  document.addEventListener("mousemove", ({ clientX, clientY }) => {
    pointer.style.left = `${clientX}px`;
    pointer.style.top = `${clientY}px`;
  });
}"""


def opened(context: BrowserContext, server: JupyterServer, name: str, sources: list[str]) -> NotebookPage:
    """A notebook of these cells, without what surrounds it in JupyterLab."""
    write_notebook(server.root / f"{name}.ipynb", [*sources, ""])
    page = NotebookPage(context, server, "lab", f"{name}.ipynb")
    page.page.get_by_role("tab", name="File Browser").first.click()  # it closes, and makes room
    page.page.set_viewport_size({"width": WIDTH, "height": 1400})
    page.page.add_style_tag(content=PLAIN)
    return page


def save(path: Path) -> None:
    size = path.stat().st_size
    assert size < MAX_BYTES[path.suffix], f"{path.relative_to(ROOT)}: {size:,} bytes"


def area(first: Locator, last: Locator) -> FloatRect:
    top, bottom = first.bounding_box(), last.bounding_box()
    assert top
    assert bottom
    height = bottom["y"] + bottom["height"] - top["y"] + MARGIN
    return {"x": top["x"], "y": top["y"] - MARGIN, "width": top["width"], "height": height}


def still(page: NotebookPage, name: str, first: int, last: int) -> None:
    """Photograph the cells from `first` to `last`."""
    page.page.mouse.move(0, 0)
    path = PICTURES / f"{name}.png"
    clip = area(page.cell(first), page.cell(last))
    page.page.screenshot(path=path, clip=clip, animations="disabled")
    save(path)


def cells(browser: Browser, server: JupyterServer, name: str, sources: list[str], first: int = 0) -> None:
    """Cells that are run one by one, from the cell number `first` on."""
    context = browser.new_context(viewport={"width": 1200, "height": 1200}, device_scale_factor=SHARPNESS)
    page = opened(context, server, name, sources)
    for i in range(len(sources)):
        page.run(i, START_S)
    page.cell(len(sources)).click()  # so that none of the others is marked
    still(page, name, first, len(sources) - 1)
    context.close()


def live(browser: Browser, server: JupyterServer) -> None:
    """The panel, and below it a cell that trains."""
    context = browser.new_context(viewport={"width": 1200, "height": 1200}, device_scale_factor=SHARPNESS)
    page = opened(context, server, "live", [LOAD, MODEL, "%ddp", TRAINING.format(epochs=1000)])
    for i in range(3):
        page.run(i, START_S)
    page.start(3)
    page.see(3, "epoch 12:", START_S)
    page.page.wait_for_timeout(3000)  # the panel's history
    still(page, "live", 2, 3)
    context.close()
    server.end_kernels()


class Film:
    """Frames of one part of the page, each shown about as long as it was there to be seen."""

    MIN_S, MAX_S = 0.12, 0.5  # of a frame
    MOST_S = 4.0  # while nothing changes

    def __init__(self, page: NotebookPage, clip: FloatRect) -> None:
        self._page, self._clip = page.page, clip
        self._frames: list[tuple[Image.Image, float]] = []
        self._at = 0.0

    def take(self, hold_s: float = 0.0) -> None:
        """One more frame, which stays for `hold_s` at least."""
        shot = self._page.screenshot(clip=self._clip, animations="disabled")
        image, now = Image.open(io.BytesIO(shot)).convert("RGB"), time.monotonic()
        if self._frames:
            before, held_s = self._frames[-1]
            held_s = max(held_s, min(self.MAX_S, max(self.MIN_S, now - self._at)))
            self._frames[-1] = before, held_s
        self._frames.append((image, hold_s))
        self._at = now

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.take()
            self._page.wait_for_timeout(60)

    def save(self, path: Path) -> None:
        # One palette for all, of the commonest colours, so that what does not change is not stored again.
        seen: Counter[tuple[int, int, int]] = Counter()
        for image, _ in self._frames:
            seen.update({colour: count for count, colour in image.getcolors(2**24) or ()})
        palette = Image.new("P", (1, 1))
        palette.putpalette([level for colour, _ in seen.most_common(COLOURS) for level in colour])
        frames: list[Image.Image] = []
        times: list[int] = []
        for image, held_s in self._frames:
            frame = image.quantize(palette=palette, dither=Image.Dither.NONE)
            if frames and frame.tobytes() == frames[-1].tobytes():
                times[-1] = min(times[-1] + round(1000 * max(held_s, self.MIN_S)), round(1000 * self.MOST_S))
                continue
            frames.append(frame)
            times.append(round(1000 * max(held_s, self.MIN_S)))
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=False)
        save(path)


def death(browser: Browser, server: JupyterServer) -> None:
    """A training is watched, loses a rank, is healed and goes on."""
    context = browser.new_context(viewport={"width": 1200, "height": 1200})
    page = opened(
        context,
        server,
        "death",
        [f"{LOAD}\n%ddp start -n 4", WHO, MODEL, TRAINING.format(epochs=EPOCHS), HEAL],
    )
    model, training, heal = 2, 3, 4
    for i in range(training):
        page.run(i, START_S)
    page.page.set_viewport_size({"width": FILM_WIDTH, "height": FILM_HEIGHT})
    page.page.evaluate(POINTER)
    window, cell = page.page.locator(".jp-WindowedPanel-outer").bounding_box(), page.cell(0).bounding_box()
    assert window
    assert cell
    film = Film(page, {**window, "x": cell["x"], "width": cell["width"]})

    show(page.cell(model))
    film.take(hold_s=2.5)
    page.start(training)
    page.see(training, "epoch 1:", START_S)
    show(page.cell(training))
    film.watch(3)
    page.output(training).get_by_role("tab", name="rank 1").click()
    film.watch(3)
    os.kill(int((server.root / "pid-2").read_text()), signal.SIGKILL)
    while page.runs(training):
        film.take()
    show(page.output(training))
    film.take(hold_s=3.5)
    show(page.output(training), "end")
    film.take(hold_s=4.0)
    page.start(heal)
    show(page.cell(heal), "end")
    film.take()
    page.wait(heal, START_S)
    show(page.cell(heal), "end")
    film.take(hold_s=4.0)
    show(page.cell(training))
    page.start(training)
    while page.runs(training) or page.prompt(training) == "[4]:":
        film.take()
    film.take(hold_s=4.0)
    film.save(PICTURES / "death.gif")
    context.close()


def show(part: Locator, edge: str = "start") -> None:
    """Scroll to a part of the notebook."""
    part.evaluate("(it, block) => it.scrollIntoView({ block })", edge)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        JupyterServer(Path(folder) / "jupyter") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        wanted = sys.argv[1:] or ["first-cell", "error", "live", "death"]
        if "first-cell" in wanted:
            cells(browser, server, "first-cell", FIRST_CELL)
        if "error" in wanted:
            cells(browser, server, "error", ERROR, first=1)
        if "live" in wanted:
            live(browser, server)
        if "death" in wanted:
            death(browser, server)
        browser.close()


if __name__ == "__main__":
    main()
