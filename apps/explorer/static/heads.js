// The map of heads, and the same heads as a table.

function scale(plane) {
  let largest = 0;
  for (const v of plane.flat.values) if (Math.abs(v) > largest) largest = Math.abs(v);
  largest = largest || 1;
  return plane.centred ? { colorscale: DIVERGING, zmin: -largest, zmax: largest }
    : { colorscale: "Cividis", zmin: 0, zmax: Math.min(1, Math.ceil(largest * 10) / 10) || largest };
}

function grid2(flat, layers, heads) {
  return Array.from({ length: layers }, (_, l) => Array.from(flat.subarray(l * heads, (l + 1) * heads)));
}

function headWords(app, plane, i, heads) {
  const { values, low, high, q } = plane.flat, name = headName(Math.floor(i / heads), i % heads);
  const lines = [`<b>${name}</b>`, `${plain(plane.title)}: ${number(values[i], 3)}`];
  if (low && !Number.isNaN(low[i])) {
    lines.push(`95 % interval ${number(low[i], 3)} to ${number(high[i], 3)}`);
  }
  if (q && !Number.isNaN(q[i])) lines.push(`q ${number(q[i], 3)}`);
  const role = app.roles()[i];
  if (role) lines.push(`role: ${plain(role)}`);
  return lines.join("<br>");
}

function cellBox(layer, head, colour, width) {
  return { type: "rect", x0: head - 0.5, x1: head + 0.5, y0: layer - 0.5, y1: layer + 0.5,
    line: { color: colour, width }, fillcolor: "rgba(0,0,0,0)" };
}

function groupLines({ layers, heads, kv }) {
  if (!kv || kv === heads) return [];
  const size = heads / kv;
  return Array.from({ length: kv - 1 }, (_, i) => ({
    type: "line", x0: (i + 1) * size - 0.5, x1: (i + 1) * size - 0.5, y0: -0.5, y1: layers - 0.5,
    line: { color: "#5f6b7a", width: 1 },
  }));
}

function headMarks(app) {
  const shapes = groupLines(app.model()), at = app.head();
  for (const name of app.marked()) shapes.push(cellBox(...parseHead(name), MARK, 1.5));
  for (const name of app.ticks()) shapes.push(cellBox(...parseHead(name), ORANGE, 2));
  if (at) shapes.push(cellBox(...at, "#000", 3), cellBox(...at, "#fff", 1));
  return shapes;
}

function headMap(body, app, changed) {
  const drawn = body.querySelector(".plot"), at = app.head();
  if (drawn && changed && [...changed].every((c) => ["head", "sets", "ticks", "trial", "row"].includes(c))) {
    Plotly.relayout(drawn, { shapes: headMarks(app) });
    drawn.setAttribute("aria-label", mapLabel(at));
    return;
  }
  const plane = app.plane(), model = app.model(), { layers, heads } = model;
  const flat = plane.flat.values, line = app.line();
  const words = Array.from(flat, (_, i) => headWords(app, plane, i, heads));
  const faint = (v) => line !== null && (plane.centred ? Math.abs(v) : v) < line;
  const traces = [{
    type: "heatmap", z: grid2(flat, layers, heads), ...scale(plane), xgap: 1, ygap: 1,
    customdata: Array.from({ length: layers }, (_, l) => words.slice(l * heads, (l + 1) * heads)),
    hovertemplate: "%{customdata}<extra></extra>", hoverongaps: false,
    colorbar: { thickness: 12, len: 0.9 },
  }];
  if (line !== null && Array.from(flat).some(faint)) {
    traces.push({
      type: "heatmap", z: grid2(flat, layers, heads).map((r) => r.map((v) => (faint(v) ? 1 : null))),
      colorscale: [[0, "rgba(255,255,255,.72)"], [1, "rgba(255,255,255,.72)"]], showscale: false,
      hoverinfo: "skip", xgap: 1, ygap: 1,
    });
  }
  const ticks = (n) => ({ dtick: n <= 20 ? 1 : 4, tick0: 0, showgrid: false, zeroline: false });
  const box = plot(body, traces, {
    shapes: headMarks(app), uirevision: plane.key,
    xaxis: { title: { text: "head" }, range: [-0.5, heads - 0.5], fixedrange: true, ...ticks(heads) },
    yaxis: { title: { text: "layer" }, range: [-0.5, layers - 0.5], fixedrange: true, ...ticks(layers) },
  }, {
    height: Math.max(320, Math.min(560, 80 + 14 * layers)),
    onclick: (e) => {
      app.choose(e.points[0].y, e.points[0].x);
      box.focus({ preventScroll: true }); // so that the arrow keys go on from here
    },
  });
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.setAttribute("aria-label", mapLabel(at));
  box.onkeydown = (e) => app.key(e);
  beneath(body, aboutPlane(plane));
}

function mapLabel(at) {
  return `map of heads; chosen: ${at ? headName(...at) : "none"}`;
}

function aboutPlane(plane) {
  return el("p", { class: "about" }, `${plane.title}: ${plane.about || "no description"}. From ${plane.run.label}.`);
}

PANELS.heads = {
  uses: ["model", "score", "line", "sets", "head", "ticks"],
  draw: headMap,
  rows(app) {
    const plane = app.plane(), { heads } = app.model(), { values, low, high, q } = plane.flat;
    return [["head", "layer", "index", plane.name, "low", "high", "q", "role"],
      Array.from(values, (v, i) => [headName(Math.floor(i / heads), i % heads),
        Math.floor(i / heads), i % heads, v, low ? low[i] : "", high ? high[i] : "",
        q ? q[i] : "", app.roles()[i] || ""])];
  },
};

const MOST_ROWS = 60;

function rankingColumns(app) {
  const plane = app.plane(), { heads } = app.model(), { values, low, high, q } = plane.flat;
  const columns = [
    { name: "head", of: (i) => headName(Math.floor(i / heads), i % heads), by: (i) => -i },
    { name: plane.title, of: (i) => (plane.centred ? signed(values[i]) : number(values[i])), by: (i) => values[i] },
  ];
  if (low) columns.push({ name: "95 % interval", of: (i) => `${number(low[i])} to ${number(high[i])}`, by: (i) => low[i] });
  if (q) columns.push({ name: "q", of: (i) => number(q[i], 3), by: (i) => -q[i] });
  if (app.roles().length) columns.push({ name: "role", of: (i) => app.roles()[i] || "", by: (i) => (app.roles()[i] ? 1 : 0) });
  for (const other of app.others()) {
    columns.push({ name: other.title, about: other.about, of: (i) => number(other.flat.values[i]), by: (i) => other.flat.values[i] });
  }
  return columns;
}

// Heads of the table in its order, those that the words and the threshold let through.
function rankedHeads(app, columns) {
  const plane = app.plane(), { heads } = app.model(), { values } = plane.flat;
  const [column, down] = app.sort();
  const find = app.state.get("find").trim().toLowerCase(), line = app.line();
  const by = columns[Math.min(column, columns.length - 1)].by;
  const rank = (v) => (Number.isNaN(v) || v === undefined ? -Infinity : v);
  return Array.from(values.keys()).filter((i) => {
    if (Number.isNaN(values[i])) return false;
    if (line !== null && (plane.centred ? Math.abs(values[i]) : values[i]) < line) return false;
    const name = headName(Math.floor(i / heads), i % heads).toLowerCase();
    return !find || name.startsWith(find) || (app.roles()[i] || "").includes(find);
  }).sort((a, b) => (down ? 1 : -1) * (rank(by(b)) - rank(by(a))));
}

PANELS.ranking = {
  uses: ["model", "score", "line", "sets", "sort", "find", "head", "ticks"],
  draw(body, app, changed) {
    const chosen = app.head() && headName(...app.head());
    if (changed && [...changed].every((c) => c === "head" || c === "sets") && body.querySelector("table")) {
      body.querySelectorAll("tr.chosen").forEach((r) => r.classList.remove("chosen"));
      const row = chosen && body.querySelector(`tr[data-key="${chosen}"]`);
      if (row) row.classList.add("chosen");
      return;
    }
    const columns = rankingColumns(app), { heads } = app.model();
    const order = rankedHeads(app, columns), ticks = new Set(app.ticks());
    const [column, down] = app.sort();
    const rows = order.slice(0, MOST_ROWS).map((i) => {
      const name = headName(Math.floor(i / heads), i % heads);
      const tick = el("input", { type: "checkbox", checked: ticks.has(name), "aria-label": `tick ${name}`,
        onclick: (e) => { e.stopPropagation(); app.tick(name); } });
      return { key: name, cells: [tick, ...columns.map((c) => c.of(i))] };
    });
    body.replaceChildren(
      el("div", { class: "scroll" }, table([{ name: "", about: "tick for What if" }, ...columns], rows, {
        choose: (name) => app.choose(...parseHead(name)), chosen,
        sort: { column: column + 1, down },
        onsort: (i) => i && app.state.set({ sort: `${i - 1}${i - 1 === column && down ? "-" : ""}` }),
      })),
      el("p", { class: "about" }, `${order.length} heads${order.length > MOST_ROWS ? `, the first ${MOST_ROWS} shown` : ""}.`));
  },
  rows(app) {
    const [columns, rows] = PANELS.heads.rows(app);
    return [columns, rankedHeads(app, rankingColumns(app)).map((i) => rows[i])];
  },
};

TOOLS.heads = (app) => {
  const { state, data } = app, plane = app.plane(), model = app.model(), parts = [];
  if (data.models.length > 1) {
    parts.push(el("label", {}, "Model ", el("select", { name: "model", onchange: (e) => state.set({ model: e.target.value }) },
      options(data.models.map((m, i) => [i, m.name]), state.get("model")))));
  }
  if (plane) {
    const groups = new Map();
    data.planesOf(model).forEach((p) => groups.set(p.group, [...(groups.get(p.group) || []), p]));
    const several = model.runs.filter((r) => r.planes.length).length > 1;
    parts.push(el("label", {}, "Score ", el("select", { name: "score", onchange: (e) => state.set({ score: e.target.value }) },
      [...groups].map(([name, some]) => el("optgroup", { label: name }, options(some.map((p) => [p.key, several ? sideName(p) : p.title]), state.get("score")))))));
    const most = Math.max(...Array.from(plane.flat.values).filter((v) => !Number.isNaN(v)).map(Math.abs), 0.01);
    const line = app.line() ?? 0;
    parts.push(el("label", {}, "Threshold ", el("input", { type: "range", name: "line", min: 0, max: most, step: most / 100, value: line,
      oninput: (e) => app.later(() => state.set({ line: Number(e.target.value) ? Number(e.target.value).toPrecision(3) : "" })) }),
    el("output", {}, line ? number(line) : "off"),
    plane.threshold ? el("button", { onclick: () => state.set({ line: plane.threshold }) }, `usual: ${plane.threshold}`) : ""));
    parts.push(el("label", {}, "Find ", el("input", { type: "search", name: "find", value: state.get("find"), placeholder: "L17 or a role", size: 10,
      oninput: (e) => app.later(() => state.set({ find: e.target.value })) })));
    const sets = model.runs.flatMap((r) => r.sets.map((s) => s.name));
    if (sets.length) {
      parts.push(el("label", { title: sets.join("; ") }, el("input", { type: "checkbox", name: "sets", checked: state.get("sets") === "1",
        onchange: (e) => state.set({ sets: e.target.checked ? "1" : "0" }) }), " mark sets"));
    }
  }
  const trials = data.trialsOf(model);
  if (trials.length) {
    parts.push(el("label", {}, "Trial ", el("select", { name: "trial", onchange: (e) => state.set({ trial: e.target.value, row: "", zoom: "" }) },
      options(trials.map((t) => [app.trialKey(t), t.trial]), state.get("trial")))));
  }
  return parts;
};
