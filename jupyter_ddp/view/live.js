// The live view of a running cell: what view/news.py tells, kept in bounds and drawn.
//
// A rank's text, names and errors reach the page as text nodes only; the one thing that becomes HTML is
// text/html that the user's own code displayed. Nothing is fetched, and nothing waits for the notebook kernel.

const GLYPHS = { running: "…", ok: "✓", error: "✗", interrupted: "◼", died: "☠", "not-run": "–", unknown: "?" };
const WORDS = { "not-run": "not run", unknown: "no answer" };
const OWN_FAULTS = ["died", "error", "unknown"]; // as core/rank_record.py has it
const FAILED = new Set(OWN_FAULTS);
const KEPT_LINES = 40000; // of all ranks together
const MIN_KEPT = 100; // of one rank
const MAX_KEPT = 2000;
const MAX_SEGMENTS = 200; // of one rank
const ASKED_AFTER_MS = 200; // that a rank is looked at: the notebook kernel tells more of it then
const OUTLIVED_AFTER_MS = 3000; // of the cell's end: by then a page that was there all the time has the static page
const OUTLIVED =
  "the cell has ended; this page was loaded while it ran, so the notebook's file does not have its output: run it again for that";
const WAY_ON = "; when it has ended, %ddp log writes all of the text to a file";
const SETTLED_MS = 120; // after which an unfinished line is shown
const CHUNK = 100; // lines of one block, which the browser lays out when it comes into sight
const ROWS = 24; // in the body, when several groups share it
const SURE_TO_FIT = 24; // characters in a row, however narrow
const CHARACTER_PX = 7.8; // of text in the usual size, wide
const MANY = 16; // ranks, from which on they are small and counted

// --- terminal text ------------------------------------------------------------------------------
// As core/terminal.py and view/ansi.py have it: colour and weight are kept, everything else is dropped.

const SPECIAL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/;
const CONTROL = new RegExp(
  "(?:\\x1b\\[|\\x9b)([0-?]*)([ -/]*[@-~]?)" +
    "|(?:\\x1b\\]|\\x9d)[^\\x07\\x18\\x1a\\x1b\\x9c\\n]*(?:\\x1b\\\\|[\\x07\\x18\\x1a\\x9c])?" +
    "|(?:\\x1b[PX^_]|[\\x90\\x98\\x9e\\x9f])[^\\x18\\x1a\\x1b\\x9c\\n]*(?:\\x1b\\\\|[\\x18\\x1a\\x9c])?" +
    "|\\x1b[ -/]*[0-~]?" +
    "|[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]" +
    "|([\\u202a-\\u202e\\u2066-\\u2069])" +
    "|(\\p{Surrogate})",
  "gu",
);
const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const CLASSES = [...NAMES.map((n) => `ansi-${n}`), ...NAMES.map((n) => `ansi-${n}-intense`)];
const HEX = [
  "#3e424d", "#e75c58", "#00a250", "#ddb62b", "#208ffb", "#d160c4", "#60c6c8", "#c5c1b4",
  "#282c36", "#b22b31", "#007427", "#b27d12", "#0065ca", "#a03196", "#258f8f", "#a1a6b2",
];

function* runs(text) {
  let style = {};
  let end = 0;
  for (const control of text.matchAll(CONTROL)) {
    const named = control[3] ? `‹U+${control[3].codePointAt(0).toString(16).toUpperCase()}›` : control[4] ? "\ufffd" : "";
    const shown = text.slice(end, control.index) + named;
    if (shown) yield [style, shown];
    end = control.index + control[0].length;
    if (control[2] === "m" && !/^[<=>?]/.test(control[1])) style = styleAfter(style, control[1]);
  }
  if (end < text.length) yield [style, text.slice(end)];
}

function plain(text) {
  if (!SPECIAL.test(text)) return text;
  let shown = "";
  for (const [, run] of runs(text)) shown += run;
  return shown;
}

function styleAfter(before, params) {
  let style = { ...before };
  const fields = params.split(";");
  for (let at = 0; at < fields.length; at++) {
    const [code, ...subs] = fields[at].split(":").map((digits) => Number(digits || 0));
    if (code === 38 || code === 48 || code === 58) {
      let numbers = subs;
      if (!subs.length) {
        const count = { 5: 1, 2: 3 }[Number(fields[at + 1])] ?? 0;
        numbers = fields.slice(at + 1, at + 2 + count).map((digits) => Number(digits || 0));
        at += 1 + count;
      }
      const colour = extended(numbers);
      if (colour !== null && code !== 58) style[code === 38 ? "fg" : "bg"] = colour;
    } else if (code === 0) style = {};
    else if (code === 1) style.bold = true;
    else if (code === 2) style.faint = true;
    else if (code === 3) style.italic = true;
    else if (code === 4 || code === 21) style.underline = subs[0] !== 0;
    else if (code === 7) style.inverse = true;
    else if (code === 9) style.strike = true;
    else if (code === 22) style.bold = style.faint = false;
    else if (code === 23) style.italic = false;
    else if (code === 24) style.underline = false;
    else if (code === 27) style.inverse = false;
    else if (code === 29) style.strike = false;
    else if (code === 39) delete style.fg;
    else if (code === 49) delete style.bg;
    else if (code >= 30 && code <= 37) style.fg = code - 30;
    else if (code >= 40 && code <= 47) style.bg = code - 40;
    else if (code >= 90 && code <= 97) style.fg = code - 82;
    else if (code >= 100 && code <= 107) style.bg = code - 92;
  }
  return style;
}

function extended(numbers) {
  if (numbers[0] === 5) return numbers[1] >= 0 && numbers[1] < 256 ? from256(numbers[1]) : null;
  const rgb = numbers[0] === 2 ? numbers.slice(numbers.length > 4 ? 2 : 1).slice(0, 3) : [];
  return rgb.length === 3 && rgb.every((c) => c >= 0 && c < 256) ? `rgb(${rgb.join()})` : null;
}

function from256(n) {
  if (n < 16) return n;
  if (n >= 232) return `rgb(${[0, 0, 0].fill(8 + 10 * (n - 232)).join()})`;
  const level = (step) => ((l) => (l ? 55 + 40 * l : 0))(Math.floor((n - 16) / step) % 6);
  return `rgb(${level(36)},${level(6)},${level(1)})`;
}

const colourOf = (colour) => (typeof colour === "number" ? HEX[colour] : colour);

function readableOn(colour) {
  const [r, g, b] = colour[0] === "#"
    ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))
    : colour.match(/\d+/g).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b > 115 ? "#000" : "#fff";
}

function styled(style, text) {
  if (!Object.values(style).some((value) => value !== false)) return document.createTextNode(text);
  const span = element("span", "", text);
  let { fg, bg } = style;
  if (style.bold && fg < 8) fg += 8;
  if (style.inverse) [fg, bg] = [bg ?? "var(--jp-ui-inverse-font-color0,#fff)", fg ?? "var(--jp-inverse-layout-color0,#111)"];
  if (typeof fg === "number") span.classList.add(`${CLASSES[fg]}-fg`);
  if (typeof bg === "number") span.classList.add(`${CLASSES[bg]}-bg`);
  if (bg !== undefined) {
    span.style.backgroundColor = colourOf(bg);
    const known = !String(bg).startsWith("var");
    span.style.color = fg !== undefined ? colourOf(fg) : known ? readableOn(colourOf(bg)) : "var(--jp-ui-inverse-font-color0,#fff)";
  } else if (fg !== undefined) span.style.color = colourOf(fg);
  if (style.bold) span.style.fontWeight = "bold";
  if (style.italic) span.style.fontStyle = "italic";
  if (style.faint) span.style.opacity = "0.7";
  const lines = [style.underline && "underline", style.strike && "line-through"].filter(Boolean).join(" ");
  if (lines) span.style.textDecoration = lines;
  return span;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function fill(node, text, wanted = "") {
  if (wanted) {
    const shown = plain(text);
    const at = shown.toLowerCase().indexOf(wanted);
    if (at >= 0) {
      node.append(shown.slice(0, at), element("mark", "", shown.slice(at, at + wanted.length)), shown.slice(at + wanted.length));
      return node;
    }
  }
  if (!SPECIAL.test(text)) node.textContent = text;
  else node.replaceChildren(...Array.from(runs(text), ([style, run]) => styled(style, run)));
  return node;
}

function lineNode(text, isError, wanted) {
  return fill(element("div", isError ? "jddp-l jddp-e" : "jddp-l"), text, wanted);
}

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const gapNode = (count, wayOn = "") =>
  element("div", "jddp-l jddp-gap", `… ${counted(count, "line")} not shown while the cell runs${wayOn}`);

// --- numbers ------------------------------------------------------------------------------------

function unspan(spans) {
  const ranks = [];
  for (let at = 0; at < spans.length; at += 2) for (let rank = spans[at]; rank <= spans[at + 1]; rank++) ranks.push(rank);
  return ranks;
}

function named(ranks) {
  if (ranks.length === 1) return `rank ${ranks[0]}`;
  const parts = [];
  for (let at = 0; at < ranks.length; ) {
    let end = at;
    while (end + 1 < ranks.length && ranks[end + 1] === ranks[end] + 1) end++;
    parts.push(end > at ? `${ranks[at]}–${ranks[end]}` : `${ranks[at]}`);
    at = end + 1;
  }
  const words = parts.slice(0, 24).join(",") + (parts.length > 24 ? `,… (${ranks.length.toLocaleString("en")} ranks)` : "");
  return `ranks ${words}`;
}

// --- what is known ------------------------------------------------------------------------------

class Rank {
  constructor(rank) {
    this.rank = rank;
    this.state = "running";
    this.end = null; // [title, state, traceback, blocked]
    this.version = 0; // of what there is to draw
    this.clear();
  }

  clear() {
    this.segments = []; // by number
    this.kept = 0;
    this.lines = 0;
    this.outputs = 0; // displays, those included that are not kept
    this.epoch = (this.epoch ?? -1) + 1;
    this.version++;
  }

  segment(number, make) {
    const list = this.segments;
    let at = list.length;
    while (at > 0 && list[at - 1].number > number) at--;
    if (at > 0 && list[at - 1].number === number) return list[at - 1];
    const made = { number, version: 0, ...make() };
    list.splice(at, 0, made);
    if (list.length > MAX_SEGMENTS) this.kept -= list.shift().lines?.length ?? 0;
    return made;
  }

  take(piece, most) {
    this.version++;
    if (piece[0] === "t") this.takeText(piece, most);
    else if (piece[0] === "r") {
      const shown = this.segment(piece[1], () => ({ rich: null }));
      if (!shown.rich) this.outputs++;
      shown.rich = { kind: piece[2], content: piece[3], alt: piece[4], width: piece[5], height: piece[6] };
      shown.version++;
    } else if (piece[0] === "e") this.end = { title: piece[1], state: piece[2], traceback: piece[3], blocked: piece[4] };
  }

  takeText([, number, isError, first, lines, open], most) {
    const text = this.segment(number, () => ({ lines: [], next: 0, written: "", openAt: -1, openSince: 0, isError: !!isError }));
    if (!text.lines) return;
    if (first > text.next) {
      text.lines.push({ n: text.next, gap: first - text.next });
      this.kept++;
      this.lines += first - text.next;
      text.next = first;
    }
    for (let at = text.next - first; at < lines.length; at++) {
      text.lines.push({ n: text.next++, text: lines[at] });
      this.kept++;
      this.lines++;
    }
    if (first + lines.length >= text.next) {
      // A print in the midst of its arguments is no progress bar: what is unfinished has to stay so a while.
      if (!open || text.openAt !== text.next) text.openSince = performance.now();
      text.openAt = text.next;
      text.written = open;
    }
    while (this.kept > most) {
      const oldest = this.segments.find((segment) => segment.lines?.length);
      const cut = Math.min(oldest.lines.length, this.kept - most + (most >> 3));
      oldest.lines.splice(0, cut); // some more than needed, so that this is not done for each line
      this.kept -= cut;
    }
  }

  // The segment whose last line is open.
  get open() {
    const last = this.segments.at(-1);
    return last?.lines && openOf(last) ? last : null;
  }

  get empty() {
    return !this.segments.length && !this.end;
  }

  // The last lines and displays, oldest first: [segment, line | null for a display or an open line]. They
  // take `most` rows at most, a line that is longer than `columns` two of them.
  last(most, maxRich, wanted, columns = Infinity) {
    const found = [];
    for (let s = this.segments.length - 1; s >= 0 && most > 0; s--) {
      const segment = this.segments[s];
      if (segment.rich) {
        if (maxRich-- > 0 && !wanted && most-- > 0) found.push([segment, null]);
        continue;
      }
      if (openOf(segment) && (!wanted || matches(segment.written, wanted)) && most-- > 0) found.push([segment, null]);
      for (let l = segment.lines.length - 1; l >= 0 && most > 0; l--) {
        const line = segment.lines[l];
        if (wanted && !(line.text !== undefined && matches(line.text, wanted))) continue;
        const rows = !wanted && line.text?.length > columns ? 2 : 1;
        if (rows > most && found.length) return found.reverse();
        found.push([segment, line]);
        most -= rows;
      }
    }
    return found.reverse();
  }
}

const openOf = (text) => (performance.now() - text.openSince >= SETTLED_MS ? text.written : "");

const matches = (text, wanted) => plain(text).toLowerCase().includes(wanted);

class Store {
  constructor(whole) {
    this.ranks = new Map();
    this.groups = [];
    this.notes = [];
    this.counts = {};
    this.seen = -1;
    this.missed = false;
    this.gone = false;
    this.views = new Set();
    this.began = performance.now();
    this.take(whole);
  }

  take(message) {
    if (!message || message.n === undefined) return;
    this.gone = false;
    if (message.whole) this.begin(message);
    else if (this.seen >= 0 && message.n > this.seen + 1) this.missed = true;
    this.seen = Math.max(this.seen, message.n);
    const most = Math.max(MIN_KEPT, Math.min(MAX_KEPT, Math.floor(KEPT_LINES / Math.max(1, this.ranks.size))));
    for (const [spans, cleared, pieces] of message.entries ?? []) {
      for (const number of unspan(spans)) {
        const rank = this.ranks.get(number);
        if (!rank) continue;
        if (cleared && !message.whole) rank.clear();
        for (const piece of pieces) rank.take(piece, most);
      }
    }
    if (message.states) this.setStates(message.states);
    if (message.groups) this.groups = message.groups.map(unspan);
    if (message.notes) this.notes = message.notes;
    for (const view of this.views) view.later();
  }

  begin(message) {
    if (message.elapsed !== undefined) this.began = performance.now() - 1000 * message.elapsed;
    for (const number of unspan(message.ranks)) {
      const rank = this.ranks.get(number);
      if (rank) rank.clear();
      else this.ranks.set(number, new Rank(number));
    }
  }

  setStates(states) {
    this.counts = {};
    if (!states.running) this.ended ??= performance.now();
    for (const [state, spans] of Object.entries(states)) {
      const ranks = unspan(spans);
      this.counts[state] = ranks.length;
      for (const number of ranks) {
        const rank = this.ranks.get(number);
        if (!rank || rank.state === state) continue;
        rank.state = state;
        rank.version++;
        for (const view of this.views) view.announce(rank);
      }
    }
  }
}

const STORES = new Map(); // by the widget's name: a model's hooks get different proxies of it

// --- the output of one group or rank --------------------------------------------------------------

function richNode({ kind, content, alt, width, height }) {
  const box = element("div", "jddp-rich");
  if (kind === "image") {
    const image = element("img");
    if (/^data:image\/(png|jpeg|gif|svg\+xml);base64,/.test(content)) image.src = content;
    image.alt = alt;
    if (width) image.width = width;
    if (height) image.height = height;
    box.append(image);
  } else if (kind === "html") {
    box.classList.add("jp-RenderedHTMLCommon", "jp-RenderedHTML");
    box.innerHTML = content; // the user's own; its scripts run when the cell ends, as in any output
  } else if (kind === "later") {
    box.append(element("em", "jddp-gap", `${content || "a display"}: shown when the cell ends`));
  } else {
    box.classList.add("jddp-plain");
    fill(box, content);
  }
  return box;
}

// All that is kept of a rank, grown at its end: a line that stands there is never drawn again.
class Scroll {
  constructor(node) {
    this.node = node;
    this.reset();
  }

  reset() {
    this.node.replaceChildren();
    this.parts = new Map();
    this.epoch = undefined;
  }

  draw(rank) {
    if (this.epoch !== rank.epoch) {
      this.reset();
      this.epoch = rank.epoch;
    }
    const first = rank.segments[0]?.number ?? Infinity;
    for (const [number, part] of this.parts) {
      if (number < first) {
        part.node.remove();
        this.parts.delete(number);
      }
    }
    for (const segment of rank.segments) this.drawSegment(segment, rank);
  }

  drawSegment(segment, rank) {
    let part = this.parts.get(segment.number);
    if (!part) {
      part = { node: element("div"), next: 0, version: -1, open: null, chunk: null };
      const after = [...this.parts.keys()].filter((number) => number < segment.number);
      const before = after.length ? this.parts.get(Math.max(...after)).node.nextSibling : this.node.firstChild;
      this.node.insertBefore(part.node, before);
      this.parts.set(segment.number, part);
    }
    if (segment.rich) {
      if (part.version !== segment.version) part.node.replaceChildren(richNode(segment.rich));
      part.version = segment.version;
      return;
    }
    const lines = segment.lines;
    const open = openOf(segment);
    let at = lines.length;
    while (at > 0 && lines[at - 1].n >= part.next) at--;
    if (part.open && (at < lines.length || part.open.text !== open)) {
      part.open.node.remove();
      part.open = null;
    }
    for (; at < lines.length; at++) {
      if (!part.chunk || part.chunk.childElementCount >= CHUNK) {
        part.chunk = element("div", "jddp-chunk");
        part.chunk.dataset.first = lines[at].n;
        part.node.append(part.chunk);
      }
      const line = lines[at];
      part.chunk.append(line.gap ? gapNode(line.gap, WAY_ON) : lineNode(line.text, segment.isError));
      part.next = line.n + (line.gap ?? 1);
    }
    if (open && !part.open && !(rank.several && segment === rank.segments.at(-1))) {
      part.open = { text: open, node: lineNode(open, segment.isError) };
      part.node.append(part.open.node);
    }
    const oldest = lines[0]?.n ?? part.next;
    while (part.node.firstElementChild?.nextElementSibling?.dataset.first <= oldest) part.node.firstElementChild.remove();
  }
}

class Part {
  constructor(view) {
    this.view = view;
    this.node = element("section", "jddp-part");
    this.head = element("div", "jddp-head");
    this.title = element("button");
    this.title.type = "button";
    this.more = element("span", "jddp-more");
    this.head.append(this.title, this.more);
    this.text = element("div", "jddp-text");
    this.lines = element("div");
    this.bars = element("div");
    this.traceback = element("div", "jddp-traceback");
    this.text.append(this.lines, this.bars, this.traceback);
    this.node.append(this.head, this.text);
    this.scroll = new Scroll(this.lines);
    this.rich = new Map();
    this.visible = view.parts.size < ROWS; // of many, only those that the watcher has seen are drawn
    this.title.addEventListener("click", () => view.select(view.selected === "all" ? this.ranks[0] : "all"));
  }

  // `rows`: how many lines at most; Infinity: all that is kept.
  draw(members, leader, rows, wanted, traceback) {
    const version = members.reduce((sum, rank) => sum + rank.version + (rank.open ? 0.5 : 0), 0);
    const ranks = members.map((rank) => rank.rank);
    const key = `${version}/${ranks.length}/${ranks[0]}/${leader.rank}/${rows}/${this.view.columns}/${wanted}/${traceback}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.ranks = ranks;
    const bars = barsOf(members);
    this.drawHead(members, leader, bars.length > 0);
    if (rows === Infinity && !wanted) {
      if (this.way !== "whole") this.scroll.reset();
      this.way = "whole";
      leader.several = bars.length > 0;
      this.scroll.draw(leader);
      leader.several = false;
    } else {
      this.way = "tail";
      const most = rows === Infinity ? 500 : Math.max(1, rows - Math.min(bars.length, rows - 1));
      this.drawTail(leader, most, bars.length > 0, wanted);
    }
    const room = rows === Infinity ? 256 : Math.max(1, rows);
    this.bars.replaceChildren(...bars.slice(0, room).map(barNode));
    if (bars.length > room) this.bars.append(element("div", "jddp-l jddp-gap", `… ${bars.length - room} more ranks`));
    markCut(this.bars);
    if (traceback !== this.error) fill(this.traceback, traceback);
    this.error = traceback;
  }

  drawHead(members, leader, differ) {
    const end = members.find((rank) => rank.end)?.end;
    const glyph = end ? `${GLYPHS[members[0].state]} ` : "";
    const what = end ? ` · ${end.traceback ? end.title : end.state}` : "";
    const ranks = named(this.ranks);
    const rest = what + (members.length > 1 && !differ ? " · identical" : "");
    const title = this.view.selected === "all" ? "show it alone" : "show all ranks";
    const key = [glyph, ranks, rest, title, !!end?.blocked].join("\n");
    if (key !== this.headed) {
      this.headed = key;
      this.title.replaceChildren(glyph, element("strong", "", ranks), rest);
      this.title.title = title;
      this.node.classList.toggle("jddp-failed", !!end && !end.blocked);
      this.node.setAttribute("aria-label", this.title.textContent);
    }
    this.more.textContent = [[leader.lines, "line"], [leader.outputs, "output"]]
      .filter(([count]) => count > 1).map(([count, word]) => counted(count, word)).join(" · ");
  }

  drawTail(leader, most, several, wanted) {
    const nodes = [];
    const maxRich = Math.max(1, Math.floor(most / 6));
    const shown = leader.last(most, maxRich, wanted, this.view.columns);
    let hidden = wanted ? 0 : leader.outputs - shown.filter(([segment]) => segment.rich).length;
    for (const [segment, line] of shown) {
      if (segment.rich && hidden) nodes.push(this.hiddenNode(hidden));
      if (segment.rich) hidden = 0;
      if (line) nodes.push(line.gap ? gapNode(line.gap) : lineNode(line.text, segment.isError, wanted));
      else if (segment.rich) nodes.push(this.richOnce(segment));
      else if (several && segment === leader.segments.at(-1)) continue;
      else if (wanted) nodes.push(lineNode(segment.written, segment.isError, wanted));
      else nodes.push(openNode(segment));
    }
    if (hidden) nodes.unshift(this.hiddenNode(hidden));
    this.lines.replaceChildren(...nodes);
    markCut(this.lines);
  }

  // Displays that are older than what is shown of the part.
  hiddenNode(count) {
    const which = this.ranks.length > 1 ? `rank ${this.ranks[0]}` : "the rank";
    const words = `… ${counted(count, "output")} not shown here; select ${which} to see ${count > 1 ? "them" : "it"}`;
    return element("div", "jddp-l jddp-gap", words);
  }

  richOnce(segment) {
    const had = this.rich.get(segment.number);
    if (had?.version === segment.version && had.of === segment) return had.node;
    const node = richNode(segment.rich);
    this.rich.set(segment.number, { version: segment.version, of: segment, node });
    return node;
  }
}

// Lines that another group has shown already stand there once: as view/blocks.py has it.
function tracebackOf(members, places) {
  const text = members.find((rank) => rank.end)?.end?.traceback ?? "";
  const cut = text.lastIndexOf("\n");
  if (cut <= 0) return text;
  const first = places.get(text.slice(0, cut)) ?? members[0].rank;
  places.set(text.slice(0, cut), first);
  return first === members[0].rank ? text : `${text.slice(cut + 1)}  (traceback as on rank ${first})`;
}

// Unfinished last lines, one row per rank, where they differ: progress bars.
function barsOf(members) {
  if (members.length < 2) return [];
  const open = members.filter((rank) => rank.open);
  const same = open.length === members.length && open.every((rank) => rank.open.written === open[0].open.written);
  return same ? [] : open;
}

function barNode(rank) {
  const row = element("div", rank.open.isError ? "jddp-l jddp-open-rank jddp-e" : "jddp-l jddp-open-rank");
  row.append(element("span", "", `rank ${rank.rank}`), endOf(rank.open.written));
  return row;
}

// An unfinished line in one row.
function openNode(segment) {
  const row = element("div", segment.isError ? "jddp-l jddp-open jddp-e" : "jddp-l jddp-open");
  row.append(endOf(segment.written));
  return row;
}

// A line in one row; of one that is longer its end, where something happens: the style cuts at the start.
function endOf(text) {
  const box = element("span", "jddp-end");
  const room = element("span");
  room.append(fill(element("span"), text));
  box.append(room);
  return box;
}

// Where the start is cut there is a sign of it. All are measured before any is changed.
function markCut(node) {
  const boxes = [...node.getElementsByClassName("jddp-end")].filter((box) => box.textContent.length > SURE_TO_FIT);
  const cut = boxes.map(({ firstChild: room }) => room.firstChild.offsetWidth > room.clientWidth + 1);
  boxes.forEach((box, at) => box.classList.toggle("jddp-cut", cut[at]));
}

// --- the view -------------------------------------------------------------------------------------

let views = 0;
const OWN_KEYS = new Set(["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown", "Enter", " "]);

class View {
  constructor(store, model, el) {
    this.store = store;
    this.model = model;
    this.id = `jddp-${++views}`;
    this.selected = "all";
    this.wanted = "";
    this.follow = true;
    this.top = 0; // of the body, when it was last scrolled
    this.parts = new Map();
    this.tabs = new Map();
    this.build(el);
    this.watcher = new IntersectionObserver((seen) => {
      const parts = new Map([...this.parts.values()].map((part) => [part.node, part]));
      for (const one of seen) if (parts.has(one.target)) parts.get(one.target).visible = one.isIntersecting;
      this.later();
    }, { root: this.body, rootMargin: "200px" });
    this.columns = Infinity; // characters in a row, about
    this.sizes = new ResizeObserver(([{ contentRect }]) => {
      const columns = Math.max(20, Math.floor((contentRect.width - 30) / CHARACTER_PX));
      if (columns === this.columns) return;
      this.columns = columns;
      this.later();
    });
    this.sizes.observe(this.root); // a scroll bar, which comes and goes, takes nothing from it
    this.onKeys = (event) => this.onKeyFirst(event);
    window.addEventListener("keydown", this.onKeys, true);
    this.timer = setInterval(() => this.tick(), 1000);
    this.tick();
    store.views.add(this);
    this.draw();
  }

  close() {
    this.store.views.delete(this);
    this.watcher.disconnect();
    this.sizes.disconnect();
    window.removeEventListener("keydown", this.onKeys, true);
    clearInterval(this.timer);
    cancelAnimationFrame(this.frame);
    clearTimeout(this.settling);
    clearTimeout(this.asking);
  }

  build(el) {
    this.root = element("div", "jddp");
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Output of the ranks of a running cell");
    const bar = element("div", "jddp-bar");
    this.list = element("div", "jddp-tabs");
    this.list.setAttribute("role", "tablist");
    this.list.setAttribute("aria-label", "Ranks");
    this.list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) this.select(tab.dataset.rank === "all" ? "all" : Number(tab.dataset.rank));
    });
    const side = element("div", "jddp-side");
    this.find = element("input", "jddp-find");
    this.find.type = "search";
    this.find.placeholder = "ranks or text";
    this.find.setAttribute("aria-label", "Show only these ranks (0,2-3), states (running, error) or lines with this text");
    this.find.title = "0,2-3 · error · any text";
    this.find.addEventListener("input", () => this.later());
    this.clock = element("span", "jddp-clock");
    this.clock.setAttribute("aria-hidden", "true");
    side.append(this.find, this.clock);
    bar.append(this.list, side);
    this.counts = element("div", "jddp-counts");
    this.body = element("div", "jddp-body");
    this.body.id = `${this.id}-body`;
    this.body.tabIndex = 0;
    this.body.setAttribute("role", "tabpanel");
    this.body.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.followButton = element("button", "jddp-follow", "↓ follow");
    this.followButton.type = "button";
    this.followButton.hidden = true;
    this.followButton.setAttribute("aria-label", "Follow the newest output");
    this.followButton.addEventListener("click", () => {
      this.follow = true;
      this.draw();
    });
    this.notes = element("div", "jddp-notes");
    this.notes.setAttribute("role", "status");
    this.said = element("div", "jddp-unseen");
    this.said.setAttribute("role", "status");
    this.root.append(bar, this.counts, this.body, this.followButton, this.notes, this.said);
    el.append(this.root);
  }

  tick() {
    if (!this.store.counts.running && this.clock.textContent) { // the cell has ended
      if (!this.outlived && performance.now() - this.store.ended > OUTLIVED_AFTER_MS) {
        this.outlived = true; // and no static page has come: this page does not hear of it
        this.draw();
      }
      return;
    }
    const seconds = Math.floor((performance.now() - this.store.began) / 1000);
    const text = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    this.clock.textContent = this.store.gone ? "ended" : text;
  }

  // -- what a person does

  select(which) {
    this.selected = which;
    this.follow = true;
    this.draw();
    clearTimeout(this.asking); // who holds an arrow key down does not look at every rank on the way
    this.asking = setTimeout(() => this.model.send({ watch: which === "all" ? [] : [which] }), ASKED_AFTER_MS);
  }

  // JupyterLab takes the arrow keys and Enter for its cells when it sees them first, at the document.
  onKeyFirst(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.root.contains(event.target)) return;
    if (event.target === this.find) {
      event.stopPropagation();
      if (event.key === "Escape") {
        this.find.value = "";
        this.later();
      }
    } else if (OWN_KEYS.has(event.key)) {
      event.stopPropagation();
      if (this.list.contains(event.target)) this.onKey(event);
    }
  }

  onKey(event) {
    const shown = [...this.tabs.values()].filter((tab) => !tab.hidden);
    const at = shown.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    const to = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = shown[(to + shown.length) % shown.length];
    this.select(tab.dataset.rank === "all" ? "all" : Number(tab.dataset.rank));
    tab.focus({ preventScroll: true });
    tab.scrollIntoView({ block: "nearest" });
  }

  onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.body;
    // Lines that come, and heights that become known, move the end away; only a person moves the top up.
    if (scrollHeight - scrollTop - clientHeight < 24) this.follow = true;
    else if (scrollTop < this.top) this.follow = false;
    this.top = scrollTop;
    this.followButton.hidden = this.follow || !this.whole;
  }

  announce(rank) {
    if (rank.state === "running" || (rank.state === "ok" && this.store.ranks.size > 8)) return;
    this.said.textContent = `rank ${rank.rank}: ${WORDS[rank.state] ?? rank.state}`;
  }

  // -- drawing

  later() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.draw(), SETTLED_MS + 30);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    this.readFilter();
    this.drawTabs();
    this.drawCounts();
    this.drawNotes();
    if (!this.isSelecting()) this.drawBody();
  }

  drawNotes() {
    const notes = [...this.store.notes];
    if (this.store.gone) notes.push("the notebook kernel does not answer any more");
    else if (this.outlived) notes.push(OUTLIVED);
    const key = notes.join("\n");
    if (key === this.noted) return;
    this.noted = key;
    this.notes.replaceChildren(...notes.map((note) => {
      const row = element("div", "jddp-note", note);
      row.classList.toggle("jddp-urgent", /^waiting:|^ranks? [\d,-]+ died:/.test(note));
      return row;
    }));
  }

  // Text that somebody is about to copy stays as it is.
  isSelecting() {
    const selection = this.body.ownerDocument.getSelection();
    return selection && !selection.isCollapsed && this.body.contains(selection.anchorNode);
  }

  readFilter() {
    const value = this.find.value.trim().toLowerCase();
    this.wanted = "";
    this.only = null;
    if (!value) return;
    const state = value === "failed" ? FAILED : Object.keys(GLYPHS).filter((name) => value === (WORDS[name] ?? name));
    const states = new Set(state);
    if (/^[\d\s,–-]+$/.test(value)) this.only = this.ranksIn(value);
    else if (states.size) this.only = (rank) => states.has(rank.state);
    else this.wanted = value;
  }

  ranksIn(value) {
    const ranges = value.split(/[\s,]+/).filter(Boolean).map((part) => part.split(/[–-]/).map((n) => (n === "" ? NaN : Number(n))));
    return ({ rank }) => ranges.some(([from, to]) => (to === undefined ? rank === from : rank >= (from || 0) && rank <= (Number.isNaN(to) ? Infinity : to)));
  }

  drawTabs() {
    if (this.tabs.size !== this.store.ranks.size + 1) {
      this.tabs.clear();
      this.list.replaceChildren();
      for (const which of ["all", ...this.store.ranks.keys()]) {
        const tab = element("button", "jddp-tab");
        tab.type = "button";
        tab.id = `${this.id}-${which}`;
        tab.dataset.rank = which;
        tab.setAttribute("role", "tab");
        tab.setAttribute("aria-controls", this.body.id);
        if (which === "all") tab.textContent = "all";
        else tab.append(element("span", "jddp-glyph"), String(which));
        this.tabs.set(which, tab);
        this.list.append(tab);
      }
      this.list.classList.toggle("jddp-many", this.store.ranks.size > MANY);
    }
    for (const [which, tab] of this.tabs) {
      const chosen = which === this.selected;
      if ((tab.getAttribute("aria-selected") === "true") !== chosen || !tab.hasAttribute("aria-selected")) {
        tab.setAttribute("aria-selected", chosen);
        tab.tabIndex = chosen ? 0 : -1;
        if (chosen) this.body.setAttribute("aria-labelledby", tab.id);
      }
      if (which === "all") continue;
      const rank = this.store.ranks.get(which);
      const hidden = !!this.only && !this.only(rank) && !chosen;
      if (tab.hidden !== hidden) tab.hidden = hidden;
      if (tab.dataset.state === rank.state) continue;
      tab.dataset.state = rank.state;
      tab.firstChild.textContent = GLYPHS[rank.state] ?? "?";
      tab.title = `rank ${which}: ${WORDS[rank.state] ?? rank.state}`;
      tab.setAttribute("aria-label", tab.title);
    }
  }

  drawCounts() {
    if (this.store.ranks.size <= MANY) return;
    const words = Object.entries(this.store.counts).map(([state, count]) => [state, `${count.toLocaleString("en")} ${GLYPHS[state]} ${WORDS[state] ?? state}`]);
    const key = JSON.stringify([words, this.find.value]);
    if (key === this.counted) return;
    this.counted = key;
    this.counts.replaceChildren(...words.map(([state, text]) => {
      const name = WORDS[state] ?? state;
      const button = element("button", "", text);
      button.type = "button";
      button.title = `show only these ranks`;
      button.setAttribute("aria-pressed", this.find.value === name);
      button.addEventListener("click", () => {
        this.find.value = this.find.value === name ? "" : name;
        this.later();
      });
      return button;
    }));
  }

  // [members, leader] of each part: the leader is the one that has come furthest.
  shownGroups() {
    const { ranks, groups } = this.store;
    if (this.selected !== "all") {
      const rank = ranks.get(this.selected);
      return rank ? [[[rank], rank]] : [];
    }
    const found = [];
    for (const group of groups) {
      let members = group.map((number) => ranks.get(number)).filter((rank) => rank && (!this.only || this.only(rank)));
      if (this.wanted) members = members.filter((rank) => rank.last(1, 0, this.wanted).length || matches(rank.end?.traceback ?? "", this.wanted));
      if (!members.length) continue;
      const leader = members.reduce((best, rank) => (rank.lines > best.lines ? rank : best));
      found.push([members, leader]);
    }
    const weight = ([[{ state, end }]]) => { // as view/blocks.py has it
      const own = OWN_FAULTS.indexOf(state);
      return own >= 0 ? own : OWN_FAULTS.length + (end?.blocked || state === "not-run" ? 1 : 0);
    };
    return found.sort((a, b) => weight(a) - weight(b));
  }

  drawBody() {
    const groups = this.shownGroups();
    const whole = groups.length === 1;
    const rows = whole ? Infinity : Math.max(3, Math.floor(ROWS / groups.length) - 1);
    this.whole = whole;
    this.body.classList.toggle("jddp-tails", !whole);
    this.body.classList.toggle("jddp-short", !whole && !this.wanted);
    this.body.style.setProperty("--jddp-rows", rows === Infinity ? 4 : rows + 1);
    const parts = groups.map(([members]) => this.partOf(members[0].rank));
    const keys = parts.map((part) => part.key).join();
    if (keys !== this.order) {
      this.order = keys;
      this.arrange(parts);
    }
    const places = new Map(); // of tracebacks: the rank that has it first
    parts.forEach((part, at) => {
      const traceback = tracebackOf(groups[at][0], places);
      if (part.visible || whole) part.draw(groups[at][0], groups[at][1], rows, this.wanted, traceback);
    });
    if (!parts.length) this.drawNothing();
    if (whole && this.follow) this.toEnd();
    this.followButton.hidden = this.follow || !whole;
  }

  // What stands where it belongs stays there: a node that is moved is laid out anew.
  arrange(parts) {
    const shown = new Set(parts);
    for (const [key, part] of this.parts) {
      if (shown.has(part)) continue;
      this.watcher.unobserve(part.node);
      this.parts.delete(key);
    }
    const nodes = new Set(parts.map((part) => part.node));
    for (const node of [...this.body.childNodes]) if (!nodes.has(node)) node.remove();
    let at = this.body.firstChild;
    for (const { node } of parts) {
      if (node === at) at = at.nextSibling;
      else this.body.insertBefore(node, at);
    }
  }

  toEnd() {
    this.body.scrollTop = this.body.scrollHeight;
    requestAnimationFrame(() => {
      if (this.follow && this.whole) this.body.scrollTop = this.body.scrollHeight; // heights are known now
    });
  }

  partOf(key) {
    let part = this.parts.get(key);
    if (!part) {
      part = new Part(this);
      part.key = key;
      this.parts.set(key, part);
      this.watcher.observe(part.node);
    }
    return part;
  }

  drawNothing() {
    const partly = this.wanted && [...this.store.ranks.values()].some((rank) => rank.lines > rank.kept);
    const nothing = partly ? `nothing matches in the lines that are here while the cell runs${WAY_ON}` : "nothing matches so far";
    const text = this.find.value.trim() ? nothing : "no output so far";
    if (this.body.textContent !== text) this.body.replaceChildren(element("div", "jddp-quiet", text));
    this.order = "";
  }
}

// --- anywidget ------------------------------------------------------------------------------------

function storeOf(model) {
  const name = model.get("name");
  if (!STORES.has(name)) STORES.set(name, new Store(model.get("whole")));
  return STORES.get(name);
}

export default {
  initialize({ model }) {
    const store = storeOf(model);
    model.on("msg:custom", (message) => {
      store.take(message);
      if (!store.missed) return;
      store.missed = false;
      model.send({ again: true }); // answered where the front end can reach a busy kernel; else there are gaps
    });
    model.on("change:whole", () => store.take(model.get("whole")));
    model.on("comm_live_update", () => {
      store.gone = true;
      for (const view of store.views) view.later();
    });
    model.send({ ready: true });
    return () => STORES.delete(model.get("name"));
  },

  render({ model, el }) {
    const view = new View(storeOf(model), model, el);
    return () => view.close();
  },
};
