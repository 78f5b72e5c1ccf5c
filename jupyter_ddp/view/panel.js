// The cluster's panel. Everything from the ranks goes into text nodes, never into markup.

const COLUMNS = ["rank", "node", "PID", "device", "state", "memory", "use", "at", "age", "last error"];
const COMMANDS = [
  // [what the kernel is asked, label, what is lost, when it makes sense]
  ["interrupt", "Interrupt", "", (s) => s.running],
  ["where", "Where", "", (s) => s.pool],
  ["heal", "Heal", "", (s) => s.lost.length > 0],
  ["restart", "Restart", "every rank's variables", (s) => s.pool],
  ["stop", "Stop", "every rank's variables", (s) => s.pool],
];
const UNANSWERED_MS = 1500;
const SURE_MS = 5000;
const NO_NEWS_S = 12; // after which there may be no notebook kernel any more: it says something every 5 s

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// `full`: what at least fills its height, so that next to nothing looks like that.
function sparkline(values, label, full = 1e-9) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  for (const [name, value] of Object.entries({ width: 60, height: 14, role: "img", "aria-label": label }))
    svg.setAttribute(name, value);
  if (values.length < 2) return svg;
  const top = Math.max(...values, full);
  const line = document.createElementNS(space, "polyline");
  const step = 58 / (values.length - 1);
  line.setAttribute(
    "points",
    values.map((v, i) => `${(1 + i * step).toFixed(1)},${(13 - (12 * Math.max(v, 0)) / top).toFixed(1)}`).join(" "),
  );
  svg.append(line);
  return svg;
}

function cells(row) {
  const state = element("td", { class: `jddp-${row.state}` }, `${row.glyph} ${row.state}`);
  const memory = element("td", { class: "jddp-number" }, row.memory);
  const use = element("td", { class: "jddp-number" }, row.use);
  if (row.memories.length > 1) memory.append(sparkline(row.memories, "memory lately"));
  if (row.uses.length > 1) use.append(sparkline(row.uses, "use lately", 1));
  return [
    element("th", { scope: "row" }, String(row.rank)),
    element("td", {}, row.node),
    element("td", { class: "jddp-number" }, row.pid ? String(row.pid) : ""),
    element("td", {}, row.device),
    state,
    memory,
    use,
    element("td", {}, row.where),
    element("td", { class: "jddp-number" }, row.age),
    element("td", { class: "jddp-error" }, row.error),
  ];
}

function render({ model, el }) {
  const title = element("h3");
  const buttons = new Map();
  const bar = element("div", { role: "toolbar", "aria-label": "cluster" });
  const said = element("pre", { class: "jddp-said", role: "status", "aria-live": "polite" });
  const body = element("tbody");
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      ...COLUMNS.map((name) =>
        element("th", { scope: "col", ...(["PID", "memory", "use", "age"].includes(name) && { class: "jddp-number" }) }, name),
      ),
    ),
  );
  const table = element("table", {}, head, body);
  const name = Math.random().toString(36).slice(2); // each view asks under a name of its own
  let asks = 0;
  let answered = ""; // what was said last
  let gone = ""; // why nothing comes any more
  let silence;

  function ask(command) {
    const id = `${name} ${++asks}`;
    said.textContent = "";
    model.send({ do: command, ask: id });
    setTimeout(() => {
      const latest = model.get("state").answer;
      if (id === `${name} ${asks}` && latest.ask !== id && !latest.busy)
        said.textContent =
          "No answer: the notebook kernel is busy and cannot hear this panel here, or it has ended. " +
          "To interrupt the ranks press the notebook's own \u25a0 button.";
    }, UNANSWERED_MS);
  }

  for (const [command, label, lost, sensible] of COMMANDS) {
    const button = element("button", { type: "button" }, label);
    let sure = 0;
    const reset = () => {
      sure = 0;
      button.textContent = label;
      button.classList.remove("jddp-sure");
    };
    button.addEventListener("click", () => {
      if (lost && !sure) {
        sure = setTimeout(reset, SURE_MS);
        button.textContent = `${label}: lose ${lost}?`;
        button.classList.add("jddp-sure");
        return;
      }
      clearTimeout(sure);
      reset();
      ask(command);
    });
    button.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && sure) {
        clearTimeout(sure);
        reset();
      }
    });
    buttons.set(command, [button, sensible]);
    bar.append(button, " ");
  }

  function show() {
    const state = model.get("state");
    title.textContent = gone || state.title;
    for (const [button, sensible] of buttons.values()) button.disabled = !!gone || !sensible(state);
    el.classList.toggle("jddp-gone", !!gone);
    table.hidden = !state.pool;
    const rows = state.ranks.map((row) => element("tr", {}, ...cells(row)));
    body.replaceChildren(...rows);
  }

  function answer() {
    const latest = model.get("state").answer;
    const now = JSON.stringify(latest);
    if (now === answered) return; // what this panel says of itself stays until there is something new
    answered = now;
    said.textContent = latest.busy ? `${latest.busy} …` : latest.text;
  }

  el.classList.add("jddp-panel");
  el.setAttribute("role", "region");
  el.setAttribute("aria-label", "cluster panel");
  el.replaceChildren(
    element("header", {}, title, bar),
    element("div", { class: "jddp-scroll", tabindex: "0" }, table),
    said,
  );
  function lost(why) {
    gone = why;
    show();
  }

  function hear() {
    clearTimeout(silence);
    if (model.get("state").beat !== undefined) // else it was closed, and says so
      silence = setTimeout(lost, NO_NEWS_S * 1000, `no news for ${NO_NEWS_S} s: the notebook kernel has ended, or is stuck`);
    lost("");
    answer();
  }

  function restarted() {
    clearTimeout(silence);
    lost("the notebook kernel was restarted or has ended; %ddp opens a new panel");
  }

  model.on("change:state", hear);
  model.on("comm_live_update", restarted);
  hear();
  return () => {
    clearTimeout(silence);
    model.off("change:state", hear);
    model.off("comm_live_update", restarted);
  };
}

export default { render };
