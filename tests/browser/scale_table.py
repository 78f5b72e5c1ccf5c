"""How far the browser is behind ranks that all write, as a table: docs/speed.md has it.

python -m tests.browser.scale_table [--ranks 64,1024] [--write docs/speed.md]
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.benchmarks.machine import machine
from tests.browser.driver import CHROMIUM, CHROMIUM_OPTIONS, JupyterServer
from tests.browser.test_scale import MAX_BLOCKED_MS, MAX_LAG_S, OVER_S, Seen, stream

SECONDS = 10
BEGIN = "<!-- live view: `make scale` writes what stands between these lines -->"
END = "<!-- end of live view -->"
HEAD = (
    "| ranks | behind at the end | aim | longest task of the page | aim "
    "| messages/s, busiest 3 s | MB/s | the notebook's file | lines missing |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def row(n_ranks: int, seen: Seen) -> str:
    blocked = MAX_BLOCKED_MS.get(n_ranks)
    windows = [[size for time, size in seen.told if at <= time < at + OVER_S] for at, _ in seen.told] or [[]]
    cells = [
        f"{n_ranks:,}",
        f"{seen.lag_s:.2f} s",
        f"{MAX_LAG_S[n_ranks]} s",
        f"{seen.blocked_ms / 1000:.2f} s",
        f"{blocked / 1000} s" if blocked else "",
        f"{max(map(len, windows)) / OVER_S:.1f}",
        f"{max(map(sum, windows)) / OVER_S / 1e6:.2f}",
        f"{seen.file_bytes / 1e6:.2f} MB",
        "none" if not seen.wrong else f"on ranks {seen.wrong}",
    ]
    return f"| {' | '.join(cells)} |"


def rows(sizes: list[int]) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory() as folder,
        JupyterServer(Path(folder) / "jupyter") as server,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        context = chromium.new_context(viewport={"width": 1280, "height": 1000})
        for n_ranks in sizes:
            yield row(n_ranks, stream(server, context, n_ranks, SECONDS))
        chromium.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[*MAX_LAG_S])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between this page's marks")
    given = parser.parse_args()
    load = f"load average before the run {os.getloadavg()[0]:.2f}"
    text = f"{datetime.date.today()}: {machine()}; {load}.\n\n{HEAD}\n" + "\n".join(rows(given.ranks))
    print(text)
    if given.write:
        page = given.write.read_text()
        before, _, rest = page.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            parser.error(f"{given.write} has no marks for the table")
        given.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
