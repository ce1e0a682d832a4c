// Binding: where patched vectors point by position, what was answered, and the prompts behind a cell.

const POINTERS = { positional: ["#0072b2", "i_p"], lexical: ["#d55e00", "i_l"], reflexive: ["#009e73", "i_r"] };

TOOLS.binding = (app) => {
  const some = app.data.runs.filter((r) => r.binding).flatMap((r) => r.binding.map((s) => [`${r.id}.${s.key}`, `${s.key} · ${r.label}`]));
  return [el("label", {}, "Study ", el("select", { name: "study", onchange: (e) => app.state.set({ study: e.target.value, cell: "" }) },
    options(some, app.state.get("study")))), el("span", { class: "about" }, studyOf(app).verdict)];
};

function studyOf(app) {
  const wanted = app.state.get("study");
  for (const run of app.data.runs) {
    for (const study of run.binding || []) if (!wanted || `${run.id}.${study.key}` === wanted) return study;
  }
  app.state.values.study = "";
  return studyOf(app);
}

function cellOf(app) {
  const given = app.state.get("cell").split(",").map(Number);
  return given.length === 2 && given.every(Number.isFinite) ? given : null;
}

PANELS.curve = {
  uses: ["study", "cell"],
  lacks: (app) => !studyOf(app).curve.length,
  draw(body, app) {
    const study = studyOf(app), traces = [];
    for (const [name, [colour]] of Object.entries(POINTERS)) {
      const mine = study.curve.filter((r) => r.label === name), x = mine.map((r) => r.i_p + 1);
      if (mine.some((r) => r.low !== null)) {
        traces.push({ type: "scatter", mode: "lines", x: [...x, ...x.slice().reverse()], y: [...mine.map((r) => r.high), ...mine.map((r) => r.low).reverse()],
          fill: "toself", fillcolor: `${colour}26`, line: { width: 0 }, hoverinfo: "skip", showlegend: false });
      }
      traces.push({ type: "scatter", mode: "lines+markers", name, x, y: mine.map((r) => r.share), line: { color: colour },
        text: mine.map((r) => `${name} ${percent(r.share)}${r.low === null ? "" : ` (${percent(r.low)} to ${percent(r.high)})`}, n = ${r.n}`), hovertemplate: "%{text}<extra></extra>" });
    }
    const rest = study.labels.filter((l) => !(l in POINTERS)), at = [...new Set(study.curve.map((r) => r.i_p))].sort((a, b) => a - b);
    traces.push({ type: "scatter", mode: "lines", name: "anything else", x: at.map((i) => i + 1), line: { color: "#7a8794", dash: "dot" },
      y: at.map((i) => study.curve.filter((r) => r.i_p === i && rest.includes(r.label)).reduce((a, r) => a + r.share, 0)), hovertemplate: "anything else %{y:.0%}<extra></extra>" });
    plot(body, traces, {
      xaxis: { title: { text: "group that the donor asked about" }, dtick: 1, fixedrange: true }, yaxis: { title: { text: "share of evaluations" }, range: [-0.02, 1.02], tickformat: ".0%" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 58, r: 14, t: 30, b: 42 },
    }, { height: 380, onclick: (e) => app.state.set({ cell: `${e.points[0].x - 1},-1` }) });
  },
  rows: (app) => [["i_p", "label", "share", "low", "high", "n"], studyOf(app).curve.map((r) => [r.i_p, r.label, r.share, r.low, r.high, r.n])],
};

PANELS.answers = {
  uses: ["study", "cell"],
  lacks: (app) => !studyOf(app).cases.length,
  draw(body, app) {
    const { cases, n } = studyOf(app), z = Array.from({ length: n }, () => new Array(n).fill(0));
    for (const c of cases) z[c.said][c.i_p] += 1;
    const names = Array.from({ length: n }, (_, i) => i + 1), cell = cellOf(app);
    plot(body, [{ type: "heatmap", z, x: names, y: names, colorscale: "Cividis", xgap: 1, ygap: 1, colorbar: { thickness: 12, title: { text: "evaluations", side: "right" } },
      hovertemplate: "donor asked about group %{x}<br>answered: group %{y}<br>%{z} evaluations<extra></extra>" }], {
      xaxis: { title: { text: "group that the donor asked about" }, dtick: 1, fixedrange: true, showgrid: false },
      yaxis: { title: { text: "group answered" }, dtick: 1, fixedrange: true, showgrid: false },
      shapes: cell && cell[1] >= 0 ? [cellBox(cell[1] + 1, cell[0] + 1, MARK, 3)] : [],
    }, { height: 380, onclick: (e) => app.state.set({ cell: `${e.points[0].x - 1},${e.points[0].y - 1}` }) });
  },
  rows: (app) => [["set", "donor", "i_p", "i_l", "i_r", "i_n", "answered", "label", "mass"], studyOf(app).cases.map((c) => [c.set, c.donor, c.i_p, c.i_l, c.i_r, c.i_n, c.said, c.label, c.mass])],
};

function casesOf(app) {
  const cell = cellOf(app), { cases } = studyOf(app);
  return cell ? cases.filter((c) => c.i_p === cell[0] && (cell[1] < 0 || c.said === cell[1])) : cases;
}

// The two prompts of an evaluation, where the run kept their text.
function prompts(study, c) {
  const kept = study.examples.find((e) => e.set === c.set), donor = kept && kept.donors[c.donor];
  if (!donor) return el("span", { class: "about" }, "text not kept for this entity set");
  const tell = (words, text, group) => el("p", {}, el("b", {}, words), " ", text.context, el("mark", {}, text.questions[String(group)] || ""));
  return el("details", {}, el("summary", {}, "prompts"), tell("Donor:", donor, c.i_p), tell("Recipient:", kept.recipient, c.i_n));
}

PANELS.examples = {
  uses: ["study", "cell"],
  lacks: (app) => !studyOf(app).cases.length,
  draw(body, app) {
    const study = studyOf(app), some = casesOf(app), kept = new Set(study.examples.map((e) => e.set));
    const order = some.slice().sort((a, b) => kept.has(b.set) - kept.has(a.set)).slice(0, 40);
    const group = (i) => (i < 0 ? "absent" : String(i + 1));
    const text = (c) => { const td = el("div", { class: "words" }, prompts(study, c)); return td; };
    body.replaceChildren(
      el("p", { class: "about" }, `${some.length} evaluations${cellOf(app) ? " of the chosen cell" : ", all cells"}${some.length > order.length ? `, ${order.length} shown` : ""}. ` +
        "The vector of the donor's last token replaced the recipient's; groups count from 1."),
      el("div", { class: "scroll" }, table(["donor asked about", "lexical leads to", "reflexive leads to", "recipient asked about", "answered", "which is", "probability on candidates", ""],
        order.map((c) => ({ cells: [group(c.i_p), group(c.i_l), group(c.i_r), group(c.i_n), group(c.said), c.label, number(c.mass), text(c)] })))));
  },
  rows: (app) => PANELS.answers.rows(app),
};
