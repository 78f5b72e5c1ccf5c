"""A cell's output as a MIME bundle."""

import base64
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from jupyter_ddp.core.messages import CellError, Stream
from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Rich, Segment, Text
from jupyter_ddp.core.verdicts import Verdict
from jupyter_ddp.view.bundle import MAX_CHARS, MAX_LIVE_CHARS, bundle
from jupyter_ddp.view.fitting import LIVE, STATIC


def written(text: str, stream: Stream = "stdout") -> Text:
    run = Text(stream)
    run.append(text)
    return run


def rank(
    number: int,
    *segments: Segment,
    verdict: Verdict | None = "ok",
    error: CellError | None = None,
    death: str = "",
    notices: tuple[str, ...] = (),
) -> RankSnapshot:
    return RankSnapshot(number, verdict, list(segments), error, death, notices)


def rich(metadata: dict[str, object] | None = None, **data: object) -> Rich:
    return Rich({mime.replace("__", "/").replace("_xml", "+xml"): d for mime, d in data.items()},
                metadata or {}, "", False)  # fmt: skip


def html(*ranks: RankSnapshot, live: bool = False) -> str:
    return bundle(Snapshot(list(ranks)), live=live)["text/html"]


class _Reader(HTMLParser):
    """What a reader without styles sees: elements with their text, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, str]] = []
        self._open: list[int] = []
        self.feed(page)
        self.close()
        assert not self._open, "unbalanced"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append((tag, ""))
        if tag != "img":
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for at in self._open:
            self.elements[at] = (self.elements[at][0], self.elements[at][1] + data)

    def of(self, *tags: str) -> list[str]:
        return [text for tag, text in self.elements if tag in tags]


FAILED = (
    rank(0, written("a\n"), verdict="ok"),
    rank(1, written("a\n"), verdict="ok"),
    rank(2, written("warned\n", "stderr"), verdict="error",
         error=CellError("ZeroDivisionError", "division by zero", 5, ["\x1b[31mTraceback\x1b[0m", "last"])),
    rank(3, verdict="interrupted", death="blocked by rank 2"),
    rank(4, written("b"), verdict="died", death="killed by SIGKILL (line 5)", notices=("careful",)),
    rank(5),
)  # fmt: skip


def test_exactly_text_and_html() -> None:
    """No other MIME type, which some front end would prefer."""
    assert set(bundle(Snapshot(list(FAILED)))) == {"text/plain", "text/html"}


def test_the_page_without_styles() -> None:
    """Strip, groups by rank, and everything in words, as GitHub would show it."""
    page = _Reader(html(*FAILED))
    assert page.of("p", "summary", "pre") == [
        "✓0 ✓1 ✗2 ◼3 ☠4 ✓5",
        "rank 4 · died",
        "b",
        "☠ rank 4: killed by SIGKILL (line 5)",
        "rank 2 · ZeroDivisionError",
        "warned\n",
        "Traceback\nlast",
        "ranks 0–1 · identical",
        "a\n",
        "rank 3 · blocked by rank 2",
        "rank 5 · no output",
        "note (rank 4): careful",
    ]


def test_a_cell_that_ended_well_has_no_strip() -> None:
    """One rank, too, has a summary of its own."""
    assert _Reader(html(rank(0, written("a")))).of("p", "summary", "pre") == ["rank 0", "a"]


def test_a_running_cell_has_a_strip() -> None:
    """A rank that runs and has shown nothing yet is in the strip alone."""
    page = _Reader(html(rank(0, written("a"), verdict=None), rank(1, verdict=None), rank(2), live=True))
    assert page.of("p", "summary", "pre") == ["…0 …1 ✓2", "rank 0", "a"]


def test_a_snapshot_taken_while_the_cell_runs() -> None:
    """Shown as static, it names the running rank in a line."""
    page = _Reader(html(rank(0, written("a")), rank(1, verdict=None)))
    assert page.of("p") == ["✓0 …1", "rank 1 · running"]


def test_standard_error_is_tinted_with_its_text_colour() -> None:
    """A theme's background never meets another theme's text."""
    (tag,) = re.findall(r"<pre class=\"jupyter-ddp-stderr\"[^>]*>", html(*FAILED))
    assert "background:var(--jp-rendermime-error-background,#fdd);color:var(--jp-content-font-color1," in tag


def test_no_background_comes_without_a_text_colour_of_the_same_kind() -> None:
    """Of a variable and a plain colour JupyterLab's sanitiser would keep one only."""
    with_background = re.findall(r'style="([^"]*background[^"]*)"', html(*FAILED))
    assert with_background
    for style in with_background:
        colours = dict(d.split(":", 1) for d in style.split(";") if d.startswith(("background", "color")))
        assert set(colours) == {"background", "color"}
        assert all(value.startswith("var(") for value in colours.values()), style


def test_lines_left_out_are_counted_in_their_place() -> None:
    """The gap stands between head and tail of one <pre>."""
    page = _Reader(html(rank(0, written("x\n" * 1434))))
    (run,) = page.of("pre")
    assert run == "x\n" * 100 + "… 1,234 lines not shown\n" + "x\n" * 100
    assert page.of("p") == [STATIC.note]


def test_what_is_shown_whole_names_no_way_to_the_rest() -> None:
    """Only a page from which something is missing says where it is."""
    assert "%ddp log" not in html(rank(0, written("x\n" * 200)), *FAILED[1:])
    assert "%ddp log" in html(rank(0, written("x" * 5000)))


@pytest.mark.parametrize("text", ["\nfirst", "\x1b[K\nfirst"])
def test_a_first_empty_line_stays(text: str) -> None:
    """HTML drops a newline right after <pre>, so there is one to drop."""
    assert ">\n\nfirst</pre>" in html(rank(0, written(text)))


PIXEL = "iVBORw0KGgo="


@pytest.mark.parametrize("mime", ["image__png", "image__jpeg", "image__gif"])
def test_images(mime: str) -> None:
    """As a data URI, with its size where the metadata give one and its repr for those who cannot see it."""
    name = mime.replace("__", "/")
    data = {mime: f"{PIXEL[:6]}\n{PIXEL[6:]}\n", "text__plain": '<Figure "1">'}
    page = html(rank(0, rich({name: {"width": 40, "height": 30.4}}, **data)))
    assert f'<img src="data:{name};base64,{PIXEL}" alt="&lt;Figure &#34;1&#34;&gt;"' in page
    assert ' width="40" height="30"' in page


@pytest.mark.parametrize("width", ["4", True, -1, None, [1], 1e12, float("nan"), 'x" onload="alert(1)'])
def test_a_size_that_is_no_number_is_not_used(width: object) -> None:
    """Metadata come from a rank as any JSON."""
    page = html(rank(0, rich({"image/png": {"width": width}}, image__png=PIXEL)))
    assert "width=" not in page
    assert "onload" not in page


def test_svg_is_an_image() -> None:
    """In an <img> its scripts are dead; there it needs the namespace that HTML would have implied."""
    page = html(rank(0, rich(image__svg_xml="<svg><script>alert(1)</script></svg>", image__png=PIXEL)))
    (encoded,) = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]*)"', page)
    source = base64.b64decode(encoded).decode()
    assert source == '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text__html": "<table><tr><td>1</td></tr></table>"}, "><table><tr><td>1</td></tr></table></div>"),
        ({"text__html": "<b>\ud800</b>"}, "><b>?</b></div>"),
        ({"text__html": "<b>x</b>", "text__plain": "x"}, "><b>x</b></div>"),
        ({"text__markdown": "# *a* <b>"}, "># *a* &lt;b&gt;</pre>"),
        ({"text__latex": "$\\frac12 < 1$"}, ">$\\frac12 &lt; 1$</div>"),
        ({"text__plain": "\x1b[31ma\x1b[0m <b>"}, ">a</span> &lt;b&gt;</pre>"),
        ({"application__json": {"a": 1}}, ">&lt;application/json&gt;</pre>"),
        ({"image__png": "", "text__plain": "x"}, ">x</pre>"),
    ],
)
def test_values(data: dict[str, object], expected: str) -> None:
    """The user's own HTML as it is; everything else escaped."""
    page = html(rank(0, rich(**data)))
    assert expected in page
    page.encode()


def test_the_bundle_is_the_same_each_time() -> None:
    """Strict comparison of saved notebooks depends on it."""
    assert bundle(Snapshot(list(FAILED))) == bundle(Snapshot(list(FAILED)))


def numbers(words: str) -> list[int]:
    """The ranks that a heading names: "ranks 0,2–4 · identical"."""
    named = re.match(r"ranks? ([\d,–]+)", words)
    assert named, words
    parts = [part.split("–") for part in named[1].split(",")]
    return [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)]


@pytest.mark.parametrize(
    ("n_ranks", "unit"),
    [
        (1024, "rank {} < line\n"),
        (1024, "\x1b[3{}mx\x1b[0m"),
        (1024, "{}" + "'" * 4000),
        (2048, "rank {} < line\n"),
    ],
)
def test_many_ranks_that_all_differ_stay_below_a_megabyte(n_ranks: int, unit: str) -> None:
    """Every rank keeps a summary and the end of its text; the page says that there is more."""
    page = html(*(rank(n, written(unit.format(n) * 200), verdict="error") for n in range(n_ranks)))
    assert len(page) <= MAX_CHARS
    headings = [s for s in _Reader(page).of("summary") if "different" not in s]
    assert [n for s in headings for n in numbers(s)] == list(range(n_ranks))
    assert "Shortened to keep the notebook small; %ddp log writes all of the text to a file." in page


def test_long_runs_of_folded_groups_are_folded_once_more() -> None:
    """A thousand headings are no overview, and take a browser a second; who failed stands above."""
    ranks = [
        rank(n, written(f"{n % 2} {n // 2}\n"), verdict="died" if n == 700 else "ok") for n in range(1024)
    ]
    reader = _Reader(html(*ranks))
    folds = [s for s in reader.of("summary") if "different" in s]
    assert folds[0] == "ranks 0–63 · 64 different"
    assert folds[10:12] == ["ranks 640–699,701–704 · 64 different", "ranks 705–768 · 64 different"]
    assert [n for s in folds for n in numbers(s)] == [n for n in range(1024) if n != 700]
    assert len(reader.of("details")) == 1024 + len(folds)
    assert "different" not in html(*(rank(n, written(f"{n}\n")) for n in range(64)))


LIVE_CASES = {
    "many ranks": [rank(n, written(f"{n} line\n" * 500), verdict=None) for n in range(1024)],
    "one rank": [rank(0, written(("a <b>" * 40 + "\n") * 500), verdict=None)],
    "one line": [rank(0, written("<" * 4000), *(written("<" * 4000, "stderr") for _ in range(50)))],
    "colours": [rank(n, written("\x1b[41;32ma\x1b[0m b" * 200 + f"{n}"), verdict=None) for n in range(40)],
    "alternating streams": [rank(0, *(written("a\n", s) for _ in range(5000) for s in ("stdout", "stderr")))],
    "images": [rank(n, *(rich(image__png=PIXEL * 200) for _ in range(30))) for n in range(20)],
    "long names": [rank(n, verdict="error", error=CellError("<" * 9999, f"{n}", 0, [])) for n in range(999)],
    "reasons": [rank(n, verdict="unknown", death=f"{n}" + "<\u202e" * 999) for n in range(500)],
}


@pytest.mark.parametrize("ranks", LIVE_CASES.values(), ids=LIVE_CASES.keys())
def test_a_live_page_is_bounded(ranks: list[RankSnapshot]) -> None:
    """It is sent again up to ten times a second."""
    page = html(*ranks, live=True)
    assert 1_000 < len(page) <= MAX_LIVE_CHARS
    assert "Shortened while the cell runs; when it has ended, %ddp log writes" in page
    _Reader(page)


def test_a_live_page_uses_its_room() -> None:
    """Colours make HTML of a text several times as long; that costs lines, not all of them."""
    ranks = [rank(n, written(f"\x1b[32m{n}\x1b[0m line\n" * 1000), verdict=None) for n in range(4)]
    assert len(html(*ranks, live=True)) > 15_000


def test_a_live_page_keeps_the_end() -> None:
    """Following the tail is what one looks at it for."""
    runs = [written(f"{'x' * 99} {n}\n", "stdout" if n % 2 else "stderr") for n in range(2000)]
    page = _Reader(html(rank(0, *runs, verdict=None), live=True))
    assert re.fullmatch(r"… 1,\d\d\d lines not shown", page.of("em")[0])
    assert [run[-5:-1] for run in page.of("pre")[-2:]] == ["1998", "1999"]


def test_a_live_page_with_too_many_groups_keeps_those_that_failed() -> None:
    """The others are counted."""
    ranks = [rank(n, written(f"{n}\n"), verdict="died" if n >= 1020 else None) for n in range(1024)]
    page = _Reader(html(*ranks, live=True))
    assert page.of("summary")[:4] == [f"rank {n} · died" for n in range(1020, 1024)]
    assert re.match(r"ranks 1?\d\d–1019 not shown", page.of("p")[1])
    assert page.of("pre")[8] == "0\n"


def test_an_image_too_large_for_a_live_page_is_counted() -> None:
    """It appears when the cell ends."""
    ranks = [rank(0, written("a\n"), rich(image__png="A" * 20_000), written("b\n"), verdict=None)]
    assert _Reader(html(*ranks, live=True)).of("pre", "p")[1:] == [
        "a\n", "… 1 output not shown", "b\n", LIVE.note,
    ]  # fmt: skip
    assert "<img" in html(*ranks)


def test_nothing_heavy_is_imported_before_the_first_page() -> None:
    """`%load_ext` is not kept waiting by the template engine."""
    code = "import sys, jupyter_ddp.view.bundle; print(sorted({'jinja2', 'markupsafe'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_page_of_sixteen_ranks_takes_well_under_a_millisecond() -> None:
    """Measured at 0.4 ms; ten times that would be felt."""
    snapshot = Snapshot([rank(n, written(f"rank {n}\n")) for n in range(16)])
    bundle(snapshot)
    took = []
    for _ in range(50):
        began = time.perf_counter()
        bundle(snapshot)
        took.append(time.perf_counter() - began)
    assert min(took) < 4e-3
