"""Text that tries to be more than text, in every place where a rank's text is shown."""

from html.parser import HTMLParser
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core.messages import CellError
from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Rich, Text
from jupyter_ddp.core.verdicts import Verdict
from jupyter_ddp.view.ansi import strip, to_html
from jupyter_ddp.view.bundle import MAX_LIVE_CHARS, bundle

_MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "</pre></details></div><script>alert(1)</script>",
    "</span><b onclick='alert(1)'>",
    "<style>*{display:none}</style>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<!-- ",
    "]]><script>",
    "<![CDATA[<script>",
    '" onmouseover="alert(1)',
    "' style='position:fixed' x='",
    "&lt;script&gt;",
    "&#x3c;script&#x3e;",
    "{{ 7 * 7 }}{% raw %}",
    "<textarea><title><noscript><template><plaintext>",
    "\ufeff<script>",
    "<scr\x00ipt>alert(1)</script>",
    "<\x1b[0mscript>alert(1)<\x1b[31m/script>",
)
_WRAPPERS = (
    "{}",
    "\x1b]8;;{}\x1b\\link\x1b]8;;\x07{}",
    "\x1b[31m{}\x1b[41;7m{}",
    "\u202e{}\u2066",
    "\x1b]0;{}",
    "\x9d{}\x9c{}\x1bP{}\x1b[",
)
PAYLOADS = [wrapper.replace("{}", markup) for markup, wrapper in product(_MARKUP, _WRAPPERS)]
"""120 of them."""

_OURS = {"div", "p", "span", "strong", "details", "summary", "pre", "em"}
_OUR_ATTRIBUTES = {"class", "style", "title", "open"}


class _Strict(HTMLParser):
    """Fails on any element, attribute, comment or declaration that is not ours."""

    def __init__(self, page: str, tags: set[str], attributes: set[str]) -> None:
        super().__init__()
        self._tags, self._attributes = tags, attributes
        self._open: list[str] = []
        self.text = ""
        self.summaries: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self._tags, tag
        assert {name for name, _ in attrs} <= self._attributes, attrs
        self._open.append(tag)
        if tag == "summary" or ("class", "jupyter-ddp-quiet") in attrs:
            self.summaries.append("")
            self._open[-1] = "heading"

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() in (tag, "heading")

    def handle_data(self, data: str) -> None:
        self.text += data
        if "heading" in self._open:
            self.summaries[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    unknown_decl = handle_pi = handle_decl


def _check_to_html(text: str) -> None:
    read = _Strict(to_html(text), {"span"}, {"class", "style"})
    assert read.text == strip(text)
    assert not any(c in strip(text) for c in "\x00\x07\x08\r\x1b\x7f\x90\x9b\x9d\u202e\u2066")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_escaped_text_is_only_text(payload: str) -> None:
    """No tag but our spans; the text content is the plain form's."""
    _check_to_html(payload)


def _written(text: str, stream: str = "stdout") -> Text:
    run = Text("stderr" if stream == "stderr" else "stdout")
    run.append(text)
    return run


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_place_lets_markup_through(payload: str, live: bool) -> None:
    """Both streams, values, errors, causes, notices: the page has our elements and no others."""
    values = [
        Rich({mime: payload}, {mime: {"width": payload}}, payload, True)
        for mime in ("text/plain", "text/markdown", "text/latex", payload)
    ]
    error = CellError(payload, payload, 1, [payload, payload])
    segments = [_written(payload), _written(payload, "stderr"), *values]
    shown = bundle(
        Snapshot(
            [
                RankSnapshot(0, "error", list(segments), error, payload, (payload,)),
                RankSnapshot(1, "died", [], CellError(payload, "", 0, []), payload, ()),
                RankSnapshot(2, "interrupted", [], None, payload, ()),
            ]
        ),
        live=live,
    )
    _Strict(shown["text/html"], _OURS, _OUR_ATTRIBUTES)
    assert not any(c in shown["text/plain"] for c in "\x00\x07\x1b\x9b\x9d\u202e\u2066")
    shown["text/html"].encode()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_image_is_no_way_out_of_its_attribute(payload: str) -> None:
    """Data, alternative text and size stay inside the <img>."""
    data = {"image/png": payload, "text/plain": payload}
    page = bundle(Snapshot([RankSnapshot(0, "ok", [Rich(data, {}, "", False)], None, "", ())]))["text/html"]
    start = page.index("<img ")
    image = page[start : page.index(">", start) + 1]
    _Strict(page.replace(image, ""), _OURS, _OUR_ATTRIBUTES)
    reader = HTMLParser()
    seen: list[tuple[str, list[str]]] = []
    reader.handle_starttag = lambda tag, attrs: seen.append((tag, [name for name, _ in attrs]))  # type: ignore[method-assign]
    reader.feed(image)
    assert seen == [("img", ["src", "alt", "style"])]


_SGR = st.lists(st.integers(-1, 120), max_size=6).map(lambda ns: f"\x1b[{';'.join(map(str, ns))}m")
_OPENINGS = st.sampled_from(["\x1b[", "\x1b]", "\x9b"])
_PIECES = st.one_of(st.text(max_size=8), _SGR, _OPENINGS, st.sampled_from(PAYLOADS))
_TEXTS = st.lists(_PIECES, max_size=10).map("".join)


@given(_TEXTS)
def test_any_text_is_only_text(text: str) -> None:
    """As above, for text that nobody thought of."""
    _check_to_html(text)


_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    texts = draw(st.lists(_TEXTS, min_size=1, max_size=3))
    numbers = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=12)))
    ranks = []
    for number in numbers:
        stream = draw(st.sampled_from(["stdout", "stderr"]))
        segments = [_written(t, stream) for t in draw(st.lists(st.sampled_from(texts), max_size=2))]
        verdict = draw(st.sampled_from([*_VERDICTS, None]))
        error = CellError(texts[0], texts[-1], 1, [texts[0]]) if verdict == "error" else None
        death = draw(st.sampled_from(["", texts[0]]))
        ranks.append(RankSnapshot(number, verdict, list(segments), error, death, ()))
    return Snapshot(ranks)


def _numbers(heading: str) -> list[int]:
    words = heading.split(" · ")[0].removeprefix("ranks ").removeprefix("rank ")
    ends = [part.split("–") for part in words.split(",")]
    return [n for part in ends for n in range(int(part[0]), int(part[-1]) + 1)]


@given(_snapshots())
def test_every_rank_is_named_exactly_once(snapshot: Snapshot) -> None:
    """In the summaries and in the lines of those that showed nothing, whatever they wrote."""
    page = _Strict(bundle(snapshot)["text/html"], _OURS, _OUR_ATTRIBUTES)
    named = sorted(n for heading in page.summaries for n in _numbers(heading))
    assert named == [rank.rank for rank in snapshot.ranks]


@given(_snapshots())
def test_a_live_page_is_bounded_and_clean(snapshot: Snapshot) -> None:
    """Whatever is sent ten times a second is small and ours."""
    page = bundle(snapshot, live=True)["text/html"]
    _Strict(page, _OURS, _OUR_ATTRIBUTES)
    assert len(page) <= MAX_LIVE_CHARS
