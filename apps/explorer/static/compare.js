// Two sets of scores of one model, or of two: difference, scatter, largest differences.

function pair(app) {
  const [a, b] = ["a", "b"].map((side) => app.data.plane(app.side(side)));
  const alike = a.run.layers === b.run.layers && a.run.heads === b.run.heads;
  return { a, b, alike, same: a.run.weights === b.run.weights };
}

const sideName = (plane) => `${plane.title} · ${plane.run.label}`;

TOOLS.compare = (app) => ["a", "b"].map((side) => el("label", {}, side === "a" ? "First " : "Second ",
  el("select", { name: side, onchange: (e) => app.state.set({ [side]: e.target.value }) },
    options(Object.values(app.data.planes).map((p) => [p.key, sideName(p)]), app.side(side)))));

function apart({ a, b }) {
  return el("p", { class: "lacking" },
    `${a.run.label} has ${a.run.layers} x ${a.run.heads} heads, ${b.run.label} ${b.run.layers} x ${b.run.heads}: ` +
    "their heads have no counterparts. Below: the scores in order, best first.");
}

function sorted(plane) {
  return Array.from(plane.flat.values).filter((v) => !Number.isNaN(v)).sort((p, q) => q - p);
}

function profiles(body, { a, b }) {
  const trace = (plane, colour, dash) => {
    const y = sorted(plane);
    return { type: "scatter", mode: "lines", name: plain(sideName(plane)), y, x: y.map((_, i) => (i + 1) / y.length),
      line: { color: colour, dash }, hovertemplate: "best %{x:.1%} of heads<br>score %{y:.3f}<extra></extra>" };
  };
  plot(body, [trace(a, BLUE, "solid"), trace(b, ORANGE, "dash")], {
    xaxis: { title: { text: "share of the model's heads, best first" }, type: "log", tickformat: ".1%" },
    yaxis: { title: { text: "score" } }, legend: { x: 1, xanchor: "right", y: 1 },
  }, { height: 380 });
}

const delta = ({ a, b }) => Float32Array.from(a.flat.values, (v, i) => v - b.flat.values[i]);

// Intervals that do not meet; a rule of thumb, no test.
function clear({ a, b }, i) {
  if (!a.flat.low || !b.flat.low) return null;
  return a.flat.low[i] > b.flat.high[i] || b.flat.low[i] > a.flat.high[i];
}

PANELS.difference = {
  uses: ["a", "b", "head"],
  draw(body, app) {
    const both = pair(app);
    if (!both.alike) {
      profiles(body, both);
      above(body, apart(both));
      return;
    }
    const { layers, heads } = both.a.run, values = delta(both);
    const most = values.reduce((m, v) => (Math.abs(v) > m ? Math.abs(v) : m), 0) || 1;
    const at = app.head();
    plot(body, [{
      type: "heatmap", z: grid2(values, layers, heads), colorscale: DIVERGING, zmin: -most, zmax: most,
      xgap: 1, ygap: 1, hoverongaps: false, hovertemplate: "L%{y}H%{x}<br>difference %{z:+.3f}<extra></extra>",
      colorbar: { thickness: 12, len: 0.9, title: { text: "first minus second", side: "right" } },
    }], {
      shapes: at ? [cellBox(...at, "#000", 3)] : [],
      xaxis: { title: { text: "head" }, range: [-0.5, heads - 0.5], showgrid: false, zeroline: false, fixedrange: true },
      yaxis: { title: { text: "layer" }, range: [-0.5, layers - 0.5], showgrid: false, zeroline: false, fixedrange: true },
    }, { height: Math.max(320, Math.min(560, 80 + 14 * layers)), onclick: (e) => app.state.set({ head: headName(e.points[0].y, e.points[0].x) }) });
    above(body, both.same ? "" : el("p", { class: "about" }, "Two models of one shape: heads are compared by place."));
  },
  rows(app) {
    const both = pair(app), { heads } = both.a.run;
    if (!both.alike) return [["share", "first", "second"], []];
    return [["head", sideName(both.a), sideName(both.b), "difference"], Array.from(delta(both), (v, i) =>
      [headName(Math.floor(i / heads), i % heads), both.a.flat.values[i], both.b.flat.values[i], v])];
  },
};

PANELS.scatter = {
  uses: ["a", "b", "head"],
  lacks: (app) => !pair(app).alike,
  draw(body, app) {
    const both = pair(app), { a, b } = both, { heads } = a.run, at = app.head();
    const chosen = at ? at[0] * heads + at[1] : -1, some = Array.from(a.flat.values.keys());
    const all = [...a.flat.values, ...b.flat.values].filter((v) => !Number.isNaN(v));
    const [low, high] = [Math.min(...all), Math.max(...all)];
    plot(body, [
      { type: "scatter", mode: "lines", x: [low, high], y: [low, high], line: { color: FAINT, dash: "dash" }, hoverinfo: "skip", showlegend: false },
      { type: "scatter", mode: "markers", x: Array.from(b.flat.values), y: Array.from(a.flat.values), showlegend: false,
        marker: { color: some.map((i) => (i === chosen ? "#000" : BLUE)), size: some.map((i) => (i === chosen ? 12 : 7)), opacity: 0.7 },
        text: some.map((i) => headName(Math.floor(i / heads), i % heads)),
        hovertemplate: "%{text}<br>first %{y:.3f}<br>second %{x:.3f}<extra></extra>" },
    ], { xaxis: { title: { text: plain(`second: ${sideName(b)}`) }, zeroline: false }, yaxis: { title: { text: plain(`first: ${sideName(a)}`) }, zeroline: false } },
    { height: 420, onclick: (e) => { if (e.points[0].text) app.state.set({ head: e.points[0].text }); } });
  },
  rows: (app) => PANELS.difference.rows(app),
};

PANELS.movers = {
  uses: ["a", "b", "head"],
  lacks: (app) => !pair(app).alike,
  draw(body, app) {
    const both = pair(app), { heads } = both.a.run, values = delta(both);
    const order = Array.from(values.keys()).filter((i) => !Number.isNaN(values[i]))
      .sort((i, j) => Math.abs(values[j]) - Math.abs(values[i])).slice(0, 20);
    const sure = (plane, i) => (plane.flat.low ? `${number(plane.flat.values[i])} (${number(plane.flat.low[i])} to ${number(plane.flat.high[i])})` : number(plane.flat.values[i]));
    const words = { true: "apart", false: "overlap", null: "–" };
    body.replaceChildren(el("div", { class: "scroll" }, table(
      ["head", `first: ${sideName(both.a)}`, `second: ${sideName(both.b)}`, "difference", "intervals"],
      order.map((i) => {
        const name = headName(Math.floor(i / heads), i % heads);
        return { key: name, cells: [name, sure(both.a, i), sure(both.b, i), signed(values[i], 3), words[clear(both, i)]] };
      }), { choose: (name) => app.state.set({ head: name }), chosen: app.state.get("head") })));
  },
  rows: (app) => PANELS.difference.rows(app),
};
