// The needle grid, and where a head looks in a trial: regions, tokens, heaviest keys.

function gridCells(run) {
  const cells = new Map(), { length, depth, passed } = run.trials;
  length.forEach((n, i) => {
    const key = `${n}|${depth[i]}`;
    if (!cells.has(key)) cells.set(key, { length: n, depth: depth[i], trials: [], passed: 0 });
    const cell = cells.get(key);
    cell.trials.push(i);
    cell.passed += passed[i] ? 1 : 0;
  });
  return [...cells.values()];
}

const PASS_SCALE = [[0, "#d55e00"], [0.5, "#f3e3c3"], [1, "#009e73"]];

PANELS.grid = {
  uses: ["model", "head", "trial"],
  lacks: (app) => !app.gridRun(),
  draw(body, app) {
    const run = app.gridRun(), cells = gridCells(run), at = app.head();
    const lengths = [...new Set(cells.map((c) => c.length))].sort((a, b) => a - b);
    const depths = [...new Set(cells.map((c) => c.depth))].sort((a, b) => a - b);
    const kept = new Set((run.attention ? run.attention.trials : []).map((t) => t.trial));
    const fired = at && app.data.fired(run, ...at);
    const find = (d, n) => cells.find((c) => c.depth === d && c.length === n);
    const each = (of) => depths.map((d) => lengths.map((n) => { const c = find(d, n); return c ? of(c) : null; }));
    const score = (c) => {
      const mine = c.trials.filter((i) => run.trials.passed[i]);
      return mine.length ? mine.reduce((a, i) => a + fired[i], 0) / mine.length : null;
    };
    const x = lengths.map(String), y = depths.map((d) => percent(d));
    const traces = [{
      type: "heatmap", x, y, z: each((c) => c.passed / c.trials.length), zmin: 0, zmax: 1,
      colorscale: PASS_SCALE, showscale: false, xgap: 3, ygap: 3,
      text: each((c) => `${c.passed}/${c.trials.length}${c.trials.some((i) => kept.has(run.trials.trial[i])) ? " ○" : ""}`),
      texttemplate: "%{text}", textfont: { size: 13 },
      hovertemplate: "%{x} tokens, depth %{y}<br>answered %{text}<extra></extra>",
    }];
    const layout = {
      xaxis: { title: { text: "tokens of context" }, type: "category", domain: at ? [0, 0.48] : [0, 1], fixedrange: true },
      yaxis: { title: { text: "depth of the needle" }, type: "category", autorange: "reversed", fixedrange: true },
      annotations: [], shapes: [],
    };
    const heading = (text, where) => layout.annotations.push({ text, x: where, y: 1.02, xref: "paper", yref: "paper",
      xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12 } });
    heading("answered / asked", 0);
    if (at) {
      const z = each(score);
      traces.push({
        type: "heatmap", x, y, z, zmin: 0, zmax: 1, colorscale: "Cividis", showscale: false, xaxis: "x2",
        xgap: 3, ygap: 3, text: z.map((r) => r.map((v) => (v === null ? "–" : number(v)))), texttemplate: "%{text}",
        textfont: { size: 13 }, hovertemplate: "%{x} tokens, depth %{y}<br>copy score %{text}<extra></extra>",
      });
      layout.xaxis2 = { type: "category", domain: [0.52, 1], anchor: "y", title: { text: "tokens of context" }, fixedrange: true };
      heading(`copy score of ${headName(...at)}`, 0.52);
    }
    const now = app.trial(), cell = now && cells.find((c) => c.trials.some((i) => run.trials.trial[i] === now.trial));
    if (cell) {
      const [cx, cy] = [lengths.indexOf(cell.length), depths.indexOf(cell.depth)];
      for (const xref of at ? ["x", "x2"] : ["x"]) {
        layout.shapes.push({ type: "rect", xref, x0: cx - 0.5, x1: cx + 0.5, y0: cy - 0.5, y1: cy + 0.5, line: { color: "#000", width: 3 } });
      }
    }
    layout.margin = { l: 72, r: 10, t: 28, b: 42 };
    plot(body, traces, layout, {
      height: 110 + 44 * depths.length,
      onclick: (e) => app.openCell(find(depths[y.indexOf(e.points[0].y)], Number(e.points[0].x))),
    });
    beneath(body, app.cellWords || "");
  },
  rows(app) {
    const { trial, length, depth, needle, value, passed, generated } = app.gridRun().trials;
    const fired = app.head() && app.data.fired(app.gridRun(), ...app.head());
    return [["trial", "length", "depth", "needle", "value", "answered", "generated", "copy"],
      trial.map((t, i) => [t, length[i], depth[i], needle[i], value[i], passed[i], generated[i], fired ? fired[i] : ""])];
  },
};

function rowLabel(row) {
  return row.produced ? `→ ${visible(row.produced)}` : `? ${visible(row.token)}`;
}

PANELS.regions = {
  uses: ["model", "head", "trial", "row"],
  lacks: (app) => !app.trial() || !app.head(),
  draw(body, app) {
    const rows = app.rows(), chosen = app.row(), labels = rows.map((r, i) => `${i}`);
    const traces = app.data.regions.map((name, r) => ({
      type: "bar", orientation: "h", name, y: labels, x: rows.map((row) => row.regions[r]),
      marker: { color: REGION_COLOURS[name], line: { width: rows.map((_, i) => (i === chosen ? 1.5 : 0)), color: "#000" } },
      hovertemplate: `${name}: %{x:.3f}<extra></extra>`,
    }));
    plot(body, traces, {
      barmode: "stack", bargap: 0.18, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal" },
      xaxis: { range: [0, 1], title: { text: "share of the row's attention" }, fixedrange: true },
      yaxis: { autorange: "reversed", type: "category", tickvals: labels, fixedrange: true,
        ticktext: rows.map((r, i) => (i === chosen ? `<b>${plain(rowLabel(r))}</b>` : plain(rowLabel(r)))) },
      margin: { l: 110, r: 12, t: 44, b: 42 },
    }, { height: 130 + 24 * rows.length, onclick: (e) => app.state.set({ row: Number(e.points[0].y) }) });
  },
  rows(app) {
    return [["row", "position", "token", "produces", ...app.data.regions],
      app.rows().map((r, i) => [i, r.position, r.token, r.produced, ...r.regions])];
  },
};

PANELS.keys = {
  uses: ["model", "head", "trial", "row"],
  lacks: (app) => !app.trial() || !app.head(),
  draw(body, app) {
    const trial = app.trial(), row = app.rows()[app.row()];
    const cells = row.keys.map((k) => ({ key: k.key, cells: [
      el("code", {}, visible(trial.tokens[k.key] ?? "")), String(k.key),
      el("span", { class: "dot", style: `--dot:${REGION_COLOURS[app.data.regionOf(trial, k.key, row.position)]}` },
        app.data.regionOf(trial, k.key, row.position)),
      el("span", { class: "bar", style: `--share:${k.weight}` }, number(k.weight, 3)),
      row.produced ? signed(k.toward) : "–",
    ] }));
    body.replaceChildren(
      el("p", { class: "about" }, `${headName(...app.head())}, row `, el("code", {}, rowLabel(row)),
        ` at position ${row.position}: the ${row.keys.length} heaviest keys hold ${percent(row.kept)} of its attention.`),
      el("div", { class: "scroll" }, table(["token", "position", "region", "weight", "writes, logits"], cells)));
  },
  rows(app) {
    const trial = app.trial();
    return [["row", "query_position", "key_position", "token", "region", "weight", "contribution"],
      app.rows().flatMap((r, i) => r.keys.map((k) => [i, r.position, k.key, trial.tokens[k.key],
        app.data.regionOf(trial, k.key, r.position), k.weight, k.toward]))];
  },
};
