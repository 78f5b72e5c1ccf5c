"""A cell's output as HTML.

Owns the template, and with it every tag of ours. Never writes a rank's text unescaped, save HTML that
the user's own code displayed; never an id, a time, a script or a <style>: the page reads well with all
styles removed, as GitHub does, and is the same for the same output.

Styles are attributes, because JupyterLab removes <style> from notebooks that it does not trust.
Background and text colour come together, and both or neither are a theme's variables, because of two
colours that same sanitiser may keep one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.topology import named
from jupyter_ddp.view import wording
from jupyter_ddp.view.ansi import to_html
from jupyter_ddp.view.blocks import Shown
from jupyter_ddp.view.fitting import Page
from jupyter_ddp.view.grouping import Group

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

MAX_STYLED_GROUPS = 32
"""More groups than these are shown without decoration, which would be most of the page."""
MAX_UNFOLDED = 32
"""More groups than these are folded, but for those that failed: laying them out takes a browser a second."""
MAX_LISTED = 64
"""More groups in a row than these are folded once more, so many at a time: so are their headings."""

_TEMPLATE = """\
{%- macro run(lines, kind) -%}
{%- set head = lines.head | ansi -%}
<pre class="jupyter-ddp-{{ kind }}"{{ style[kind] }}>{{ newline_again(head) }}{{ head }}
{%- if lines.omitted %}<em>{{ gap(lines.omitted) }}</em>{{ "\\n" }}{% endif %}{{ lines.tail | ansi }}</pre>
{%- endmacro -%}

{%- macro drawn(it) -%}
{%- if it.kind == "image" -%}
<img src="{{ it.content }}" alt="{{ it.alt }}"
{%- if it.width %} width="{{ it.width }}"{% endif %}{% if it.height %} height="{{ it.height }}"{% endif %}
{{- style.image }}>
{%- elif it.kind == "html" -%}
<div class="jupyter-ddp-html"{{ style.html }}>{{ it.content | safe }}</div>
{%- elif it.kind == "latex" -%}
<div class="jupyter-ddp-latex"{{ style.html }}>{{ it.content }}</div>
{%- else -%}
<pre class="jupyter-ddp-markdown"{{ style.value }}>{{ newline_again(it.content) }}{{ it.content }}</pre>
{%- endif -%}
{%- endmacro -%}

{%- macro part(one) -%}
{%- if not one.quiet %}
<details{{ " open" if one.group.ranks[0] in unfolded -}}
{{ style.failure if one.failed and not one.blocked else style.group }}>
{{- "" }}<summary{{ style.summary }}>{{ title(one.group) }}</summary>
{%- for block in one.blocks %}
{% if block.kind in ("image", "html", "latex", "markdown") %}{{ drawn(block) }}
{%- elif block.kind == "gap" %}<p{{ style.quiet }}><em>{{ gap(block.lines, block.outputs) }}</em></p>
{%- else %}{{ run(block, block.kind) }}{% endif %}
{%- endfor %}
</details>
{%- elif one.failed or (one.group.shown.verdict is none and not live) %}
<p class="jupyter-ddp-quiet"{{ style.quiet }}>{{ quiet(one.group.ranks, state(one.group)) }}</p>
{%- endif %}
{%- endmacro -%}

<div class="jupyter-ddp">
{%- if chips %}
<p class="jupyter-ddp-strip"{{ style.strip }}>
{%- for chip in chips %}{{ " " if not loop.first }}<span title="{{ words[chip.verdict] }}"
{{- style.failed if chip.verdict in FAILURES else style.chip }}>{{ chip }}</span>{% endfor %}</p>
{%- endif %}
{%- for fold in folds %}
{%- if fold.title %}
<details{{ style.group }}><summary{{ style.summary }}>{{ fold.title }}</summary><div{{ indented }}>
{%- endif %}
{%- for one in fold.shown %}{{ part(one) }}{% endfor %}
{%- if fold.title %}
</div></details>
{%- endif %}
{%- endfor %}
{%- if silent %}
<p class="jupyter-ddp-quiet"{{ style.quiet }}>{{ quiet(silent, "no output") }}</p>
{%- endif %}
{%- if page.hidden %}
<p class="jupyter-ddp-quiet"{{ style.quiet }}>{{ hidden(page.hidden) }}</p>
{%- endif %}
{%- for note in notes %}
<p class="jupyter-ddp-note"{{ style.note }}>{{ note }}</p>
{%- endfor %}
{%- if page.note %}
<p class="jupyter-ddp-quiet"{{ style.quiet }}><em>{{ page.note }}</em></p>
{%- endif %}
</div>
"""

_TEXT = "color:var(--jp-content-font-color1,#1a1a1a)"
_FAILED = f"background:var(--jp-rendermime-error-background,#fdd);{_TEXT}"
_CODE = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
_PRE = f"margin:0;white-space:pre-wrap;overflow-wrap:anywhere;{_CODE}"
_GROUP = "margin:0 0 6px;padding-left:10px;border-left:3px solid"
_CHIP = "display:inline-block;padding:0 5px;border-radius:3px"
_STYLES = {
    "strip": f"margin:0 0 6px;{_CODE}",
    "chip": _CHIP,
    "failed": f"{_CHIP};{_FAILED};font-weight:bold",
    "group": f"{_GROUP} var(--jp-border-color2,#9996)",
    "failure": f"{_GROUP} var(--jp-error-color1,#d32f2f)",
    "summary": "margin-left:-4px;cursor:pointer;line-height:1.6",
    "quiet": "margin:0 0 6px;padding-left:13px;opacity:0.75",
    "image": "display:block;max-width:100%;height:auto",
    "html": "margin:2px 0",
    "stdout": _PRE,
    "stderr": f"{_PRE};padding:1px 4px;margin:0 -4px;{_FAILED}",
    "value": _PRE,
    "traceback": _PRE,
    "cause": f"{_PRE};font-weight:bold",
    "note": "margin:0 0 6px;font-style:italic",
}
_WHERE_MANY = ("failed", "image", "stderr")


def write(page: Page, snapshot: Snapshot, live: bool) -> str:
    """The page as HTML. The strip says how each rank ended, where one did not end well, or is `live`."""
    template, styles, few_styles = _compiled()
    several = live or any(rank.verdict != "ok" for rank in snapshot.ranks)
    silent = [r for one in page.shown if one.quiet and _ended_well(one) for r in one.group.ranks]
    unfolded = _unfolded(page)
    return template.render(
        page=page,
        folds=list(_folds(page, unfolded)),
        unfolded=unfolded,
        live=live,
        chips=wording.strip_of(snapshot) if several else [],
        notes=wording.notes(snapshot, live),
        silent=[] if live else sorted(silent),
        style=styles if len(page.shown) <= MAX_STYLED_GROUPS else few_styles,
    )


def _unfolded(page: Page) -> set[int]:
    """The first ranks of the groups that are shown open."""
    chosen = page.shown
    if len(chosen) > MAX_UNFOLDED:
        chosen = [one for one in chosen if one.failed and not one.blocked]
    return {one.group.ranks[0] for one in chosen} if len(chosen) <= MAX_UNFOLDED else set()


class _Fold(NamedTuple):
    """Groups that stand below one heading; below none (""), where they are few."""

    title: str
    shown: list[Shown]


def _folds(page: Page, unfolded: set[int]) -> Iterator[_Fold]:
    """The groups in their order, long runs of closed ones in folds: a browser skips what is in them."""

    def kind(one: Shown) -> tuple[bool, bool]:
        return one.quiet or one.group.ranks[0] in unfolded, one.blocked

    visible = (one for one in page.shown if not (one.quiet and _ended_well(one)))
    for (single, _), same in groupby(visible, kind):
        run = list(same)
        if single or len(run) <= MAX_LISTED:
            yield _Fold("", run)
            continue
        for at in range(0, len(run), MAX_LISTED):
            part = run[at : at + MAX_LISTED]
            ranks = sorted(rank for one in part for rank in one.group.ranks)
            yield _Fold(_heading(wording.named_in_short(ranks), f" · {len(part)} different"), part)


def _title(group: Group) -> Markup:
    """The title, its ranks in bold."""
    ranks, dot, rest = wording.title(group).partition(" · ")
    return _heading(ranks, dot + rest)


def _heading(ranks: str, rest: str) -> Markup:
    from markupsafe import Markup, escape

    return Markup(f"<strong>{escape(ranks)}</strong>{escape(rest)}")  # each part escaped


def _ended_well(one: Shown) -> bool:
    return one.group.shown.verdict == "ok"


@lru_cache(maxsize=1)
def _compiled() -> tuple[Template, dict[str, str], dict[str, str]]:
    """The template, and styles as attributes; built when first needed, for `%load_ext` is to be quick."""
    from markupsafe import Markup

    template = _environment().from_string(_TEMPLATE)
    styles = {name: Markup(f' style="{css}"') for name, css in _STYLES.items()}
    few = {name: style if name in _WHERE_MANY else Markup() for name, style in styles.items()}
    return template, dict(styles), dict(few)


def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["ansi"] = lambda text: Markup(to_html(text))
    environment.globals.update(
        title=_title,
        state=wording.state,
        gap=wording.gap,
        hidden=wording.hidden,
        words=wording.WORDS,
        FAILURES=("error", "died", "unknown"),
        newline_again=lambda text: "\n" if text.startswith("\n") else "",  # <pre> drops a first one
        indented=Markup(' style="padding-left:1.5em"'),
        quiet=lambda ranks, what: f"{named(ranks)} · {what}",
    )
    return environment
