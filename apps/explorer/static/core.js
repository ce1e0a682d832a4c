// Small tools: elements, texts, numbers. Text goes into a page as text nodes alone.

const BLUE = "#0072b2", ORANGE = "#d55e00", GREEN = "#009e73", MARK = "#d81b60", INK = "#1f2933";
const FAINT = "#c9ccd1";
const REGION_COLOURS = {
  sink: "#8a94a0", value: "#d81b60", needle: "#e69f00", distractors: "#cc79a7",
  question: "#0072b2", recent: "#56b4e9", rest: "#dfe3e8",
};
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true };
const DIVERGING = ["#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b"]
  .map((colour, i) => [i / 8, colour]); // ColorBrewer's RdBu, as in the figures: blue below 0
const STEPS = 65535;

// Filled by the files of the panels: `draw(body, app, changed)`, `rows(app)` for CSV, `uses` (what it
// is drawn from; all if absent), `lacks(app)` (nothing to draw now). `TOOLS`: controls of a view.
const PANELS = {}, TOOLS = {};

function el(tag, attrs = {}, ...kids) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name === "style") made.style.cssText = value;
    else if (name === "value" || name === "checked" || name === "disabled") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const kid of kids.flat(Infinity)) {
    if (kid !== null && kid !== undefined) made.append(kid);
  }
  return made;
}

function options(pairs, chosen) {
  return pairs.map(([value, words]) =>
    el("option", { value, selected: String(value) === String(chosen) }, words));
}

// Spaces and line ends of a token, to be seen.
function visible(text) {
  const shown = text.replace(/ /g, "␣").replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  return shown || "∅";
}

// Plotly reads a few tags in its texts: give it none.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Number(value).toFixed(digits).replace("-", "\u2212");
}

function signed(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = number(value, digits);
  return Number(value.toFixed(digits)) === 0 ? text.replace("\u2212", "") : (value > 0 ? "+" : "") + text;
}

function percent(value) {
  return `${(100 * value).toFixed(value > 0 && value < 0.01 ? 1 : 0)} %`;
}

function headName(layer, head) {
  return `L${layer}H${head}`;
}

function parseHead(name) {
  const found = /^L(\d+)H(\d+)$/.exec(name || "");
  return found ? [Number(found[1]), Number(found[2])] : null;
}

function note(text) {
  return el("p", { class: "lacking" }, text);
}

// A table whose rows may be chosen; cells are values or elements.
function table(columns, rows, { choose, chosen, sort, onsort } = {}) {
  const top = columns.map((c, i) => {
    const name = typeof c === "string" ? c : c.name;
    const mark = sort && sort.column === i ? (sort.down ? " ▾" : " ▴") : "";
    return el("th", {
      title: c.about, scope: "col", tabindex: onsort ? 0 : null, class: onsort ? "sortable" : null,
      "aria-sort": sort && sort.column === i ? (sort.down ? "descending" : "ascending") : null,
      onclick: onsort && (() => onsort(i)),
      onkeydown: onsort && ((e) => { if (e.key === "Enter") onsort(i); }),
    }, name + mark);
  });
  const body = rows.map((row) => el("tr", {
    "data-key": row.key, class: row.key !== undefined && row.key === chosen ? "chosen" : null,
    onclick: choose && (() => choose(row.key)),
  }, row.cells.map((cell) => el("td", { class: typeof cell === "number" ? "n" : null },
    typeof cell === "number" ? number(cell) : cell))));
  return el("table", {}, el("thead", {}, el("tr", {}, top)), el("tbody", {}, body));
}

function plot(body, data, layout, { height = 360, onclick, onrelayout } = {}) {
  let box = body.querySelector(":scope > .plot");
  if (!box) {
    body.replaceChildren();
    box = el("div", { class: "plot" });
    body.append(box);
  }
  const full = {
    template: "none", font: { size: 12, color: INK, family: "system-ui, sans-serif" },
    margin: { l: 52, r: 14, t: 10, b: 42 }, height, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    hoverlabel: { align: "left" }, ...layout,
  };
  Plotly.react(box, data, full, CONFIG);
  box.removeAllListeners && box.removeAllListeners("plotly_click");
  box.removeAllListeners && box.removeAllListeners("plotly_relayout");
  if (onclick) box.on("plotly_click", onclick);
  if (onrelayout) box.on("plotly_relayout", onrelayout);
  return box;
}

// Something beneath the picture of a panel; made anew with each drawing.
function beneath(body, ...kids) {
  body.querySelectorAll(":scope > .beneath").forEach((old) => old.remove());
  body.append(el("div", { class: "beneath" }, ...kids));
}

function above(body, ...kids) {
  body.querySelectorAll(":scope > .above").forEach((old) => old.remove());
  body.prepend(el("div", { class: "above" }, ...kids));
}
