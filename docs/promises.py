"""docs/promises.md: what the tests promise, the bound, and what was measured; and what the last soak did.

python docs/promises.py          prints the tables
python docs/promises.py --write  puts them between the marks in docs/promises.md

The promises are read from the markers in the tests' sources; the times are those of the last runs, which
pytest keeps in out/promises.json (tests/promises.py). What was not measured here keeps the page's time. A
soak's figures are in out/soak.json (tests/soak_figures.py).
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "promises.md"
MEASURED = ROOT / "out" / "promises.json"
SOAKED = ROOT / "out" / "soak.json"
SOAK_BEGIN, SOAK_END = "<!-- soak: `make soak`, then as above -->", "<!-- end of soak -->"
BEGIN, END = "<!-- promises: `python docs/promises.py --write` -->", "<!-- end of promises -->"


class Promise(NamedTuple):
    """One marker `promise` of a test."""

    what: str
    bound_s: float | None
    test: str


def promises() -> list[Promise]:
    """Of all tests, in the order of their files."""
    return [found for path in sorted((ROOT / "tests").rglob("test_*.py")) for found in _of(path)]


def _of(path: Path) -> Iterator[Promise]:
    constants: dict[str, float] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants |= {ast.unparse(name): node.value.value for name in node.targets}
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                bounds = [_number(word.value, constants) for word in mark.keywords if word.arg == "bound_s"]
                what = ast.literal_eval(mark.args[0])
                yield Promise(what, bounds[0] if bounds else None, f"{path.relative_to(ROOT)}::{node.name}")


def _number(node: ast.expr, constants: dict[str, float]) -> float:
    return constants[node.id] if isinstance(node, ast.Name) else float(ast.literal_eval(node))


def shown(page: str) -> dict[str, str]:
    """The times that the page has, by promise."""
    rows = [line.strip("|").split("|") for line in page.partition(BEGIN)[2].partition(END)[0].split("\n")]
    return {row[0].strip(): row[2].strip() for row in rows if len(row) == 4}


def table(found: list[Promise], measured: dict[str, Any], before: dict[str, str]) -> str:
    """The promises in markdown; of a test with many cases the slowest counts."""
    lines = ["| promise | bound | measured | test |", "|---|--:|--:|---|"]
    for promise in found:
        cases = measured.get(promise.what, {}).get("cases", {})
        time = _words(cases) or before.get(promise.what, "")
        name = promise.test.removeprefix("tests/").replace("::", " · ")
        bound = "" if promise.bound_s is None else f"{promise.bound_s:g} s"
        lines.append(f"| {promise.what} | {bound} | {time} | `{name}` |")
    return "\n".join(lines)


def soak_table(figures: dict[str, dict[str, str]], page: str) -> str:
    """What the last full soak measured; as the page has it where there was none here, line by line."""
    rows = [line for line in page.partition(SOAK_BEGIN)[2].partition(SOAK_END)[0].split("\n") if "|" in line]
    known = {row.split("|")[1].strip(): row for row in rows[2:]}
    for what, figure in figures.items():
        known[what] = f"| {what} | {figure['bound']} | {figure['measured']} |"
    return "\n".join(["| soak | bound | measured |", "|---|---|---|", *known.values()])


def _words(cases: dict[str, float | None]) -> str:
    times = [time for time in cases.values() if time is not None]
    count = f" ({len(cases)} cases)" if len(cases) > 1 else ""
    if not cases:
        return ""
    return f"{max(times):.2f} s{count}" if times else f"kept{count}"


def fill(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with `text` between its marks."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    page = PAGE.read_text()
    text = table(promises(), measured, shown(page))
    soak = soak_table(json.loads(SOAKED.read_text()) if SOAKED.exists() else {}, page)
    if "--write" in sys.argv:
        PAGE.write_text(fill(fill(page, text), soak, SOAK_BEGIN, SOAK_END))
    else:
        os.write(1, f"{text}\n\n{soak}\n".encode())


if __name__ == "__main__":
    main()
