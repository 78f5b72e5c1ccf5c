"""Measure jupyter_ddp beside ipyparallel and torchrun, and print the table.

python -m tests.benchmarks [--quick] [--only cells,memory] [--write docs/speed.md]

Leaves out/speed.md and out/speed.json (every single figure). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from jupyter_core.utils import ensure_event_loop

from tests.benchmarks import table
from tests.benchmarks.figures import Figures
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.measures import FULL, MEASURES, QUICK

OUT = Path("out")


def main() -> int:
    """0 when everything could be measured, whatever came out."""
    given = _arguments()
    chosen = given.only.split(",") if given.only else list(MEASURES)
    if unknown := set(chosen) - set(MEASURES):
        sys.exit(f"no such measure: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    signal.signal(signal.SIGTERM, _leave)  # so that what was started is ended
    ensure_event_loop()
    figures, failed = Figures(), []
    load, began = os.getloadavg()[0], time.monotonic()
    for name in chosen:
        started = time.monotonic()
        try:
            MEASURES[name](figures, QUICK if given.quick else FULL)
        except Exception:  # noqa: BLE001  # the other measures are worth having, and the exit status tells
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    facts = [
        f"{datetime.now(UTC):%Y-%m-%d}, {'quick run' if given.quick else 'full run'}: {machine()}",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"load average before the run {load:.2f}; it took {(time.monotonic() - began) / 60:.0f} minutes",
    ]
    if failed:
        facts.append(f"could not be measured: {', '.join(failed)}")
    text = table.markdown(table.rows(figures), facts)
    print(text)
    OUT.mkdir(exist_ok=True)
    (OUT / "speed.md").write_text(text + "\n")
    (OUT / "speed.json").write_text(json.dumps({"facts": facts, "figures": figures.values}, indent=1) + "\n")
    if given.write:
        table.write_into(given.write, text)
    return bool(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: under three minutes")
    parser.add_argument("--only", metavar="MEASURES", help=", ".join(MEASURES))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between this page's marks")
    return parser.parse_args()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
