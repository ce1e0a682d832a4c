// Tokens and features: a part of the bipartite graph that grows where it is clicked.

const START_TOKENS = 16, PER_NODE = 14;

TOOLS.features = (app) => {
  const some = app.data.runs.filter((r) => r.features).flatMap((r) => r.features.map((s) => [`${r.id}.${s.key}`, `${s.key} · ${r.label}`]));
  const { data, tokens } = stationOf(app), list = el("datalist", { id: "nodes" });
  tokens.forEach((t) => list.append(el("option", { value: t.text })));
  return [
    el("label", {}, "Dictionary ", el("select", { name: "station", onchange: (e) => app.state.set({ station: e.target.value, node: "" }) },
      options(some, app.state.get("station")))),
    el("label", {}, "Search ", el("input", { type: "search", name: "search", list: "nodes", value: app.state.get("search"), size: 14,
      placeholder: "a token, or f123", onchange: (e) => searchNode(app, e.target.value) }), list),
    el("button", { disabled: !app.state.get("node"), onclick: () => app.state.set({ node: "", search: "" }) }, "Begin again"),
    el("span", { class: "about" }, `${tokens.length} most frequent tokens and ${data.features.length} of ${data.n_features} features; edge: ${data.rule}` +
      (data.left_out.edges ? `; ${data.left_out.edges.toLocaleString("en")} edges are in the run folder only` : "")),
  ];
};

function stationOf(app) {
  const wanted = app.state.get("station");
  for (const run of app.data.runs) {
    for (const data of run.features || []) {
      if (wanted && `${run.id}.${data.key}` !== wanted) continue;
      if (!data.near) index(app, data);
      return data.near;
    }
  }
  app.state.values.station = "";
  return stationOf(app);
}

// Neighbours of every node, strongest first; nodes are "t3" and "f7" by place in their lists.
function index(app, data) {
  const [token, feature, count, largest, heights] = [data.edges.token, data.edges.feature, data.edges.count, data.edges.largest, data.heights].map((r) => app.data.array(r));
  const near = { data, tokens: data.tokens, heights, of: new Map() };
  const add = (from, to, i) => {
    if (!near.of.has(from)) near.of.set(from, []);
    near.of.get(from).push({ to, count: count[i], largest: largest[i] });
  };
  for (let i = 0; i < token.length; i++) {
    add(`t${token[i]}`, `f${feature[i]}`, i);
    add(`f${feature[i]}`, `t${token[i]}`, i);
  }
  data.near = near;
}

const openNodes = (app) => app.state.get("node").split(",").filter(Boolean);

function nodeName(near, node) {
  const i = Number(node.slice(1));
  return node[0] === "t" ? visible(near.tokens[i].text) : `feature ${near.data.features[i]}`;
}

function nodeHeight(near, node) {
  return near.heights[node[0] === "t" ? Number(node.slice(1)) : near.tokens.length + Number(node.slice(1))];
}

function expandNode(app, node) {
  const open = openNodes(app);
  app.state.set({ node: (open.includes(node) ? open.filter((n) => n !== node) : [...open, node]).slice(-12).join(",") });
}

function searchNode(app, words) {
  const near = stationOf(app), text = words.trim(), number = /^f?(\d+)$/.exec(text);
  let node = null;
  if (number && near.data.features.includes(Number(number[1]))) node = `f${near.data.features.indexOf(Number(number[1]))}`;
  const exact = near.tokens.findIndex((t) => t.text === words), loose = near.tokens.findIndex((t) => t.text.trim().toLowerCase() === text.toLowerCase());
  const part = near.tokens.findIndex((t) => text && t.text.toLowerCase().includes(text.toLowerCase()));
  const at = [exact, loose, part].find((i) => i >= 0);
  if (!node && at !== undefined) node = `t${at}`;
  if (node) app.state.set({ search: words, node });
  else app.state.set({ search: words });
}

// Nodes and edges that are drawn: what is open with its strongest neighbours, else the beginning.
function partOf(app, near) {
  const open = openNodes(app).filter((n) => near.of.has(n));
  const roots = open.length ? open : near.tokens.slice(0, START_TOKENS).map((_, i) => `t${i}`);
  const nodes = new Set(roots), each = open.length ? PER_NODE : 3;
  const add = (node, n) => (near.of.get(node) || []).slice(0, n).map((e) => (nodes.add(e.to), e.to));
  for (const root of roots) {
    const next = add(root, each);
    if (open.length && open.length <= 3) next.forEach((n) => add(n, 3)); // what shares these neighbours
  }
  const edges = [];
  for (const node of nodes) {
    if (node[0] !== "t") continue;
    for (const e of near.of.get(node) || []) if (nodes.has(e.to)) edges.push({ from: node, ...e });
  }
  return { nodes: [...nodes], edges, open: new Set(open) };
}

PANELS.bipartite = {
  uses: ["station", "node"],
  draw(body, app) {
    const near = stationOf(app), { nodes, edges, open } = partOf(app, near), place = new Map();
    for (const side of ["t", "f"]) {
      const mine = nodes.filter((n) => n[0] === side).sort((a, b) => nodeHeight(near, a) - nodeHeight(near, b));
      mine.forEach((n, i) => place.set(n, [side === "t" ? 0 : 1, (i + 0.5) / mine.length]));
    }
    const most = Math.max(1, ...edges.map((e) => e.count)), bins = [[], [], [], []];
    for (const e of edges) bins[Math.min(3, Math.floor(4 * Math.log1p(e.count) / Math.log1p(most)))].push(e);
    const lines = bins.map((some, i) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false,
      x: some.flatMap((e) => [place.get(e.from)[0], place.get(e.to)[0], null]),
      y: some.flatMap((e) => [place.get(e.from)[1], place.get(e.to)[1], null]),
      line: { width: 0.6 + 0.9 * i, color: `rgba(82,96,109,${0.14 + 0.16 * i})` },
    }));
    const dots = ["t", "f"].map((side) => {
      const mine = nodes.filter((n) => n[0] === side);
      return {
        type: "scatter", mode: "markers+text", showlegend: false, customdata: mine,
        x: mine.map((n) => place.get(n)[0]), y: mine.map((n) => place.get(n)[1]),
        text: mine.map((n) => plain(nodeName(near, n))), textposition: side === "t" ? "middle left" : "middle right",
        hovertext: mine.map((n) => `${plain(nodeName(near, n))}: ${(near.of.get(n) || []).length} neighbours here`), hoverinfo: "text",
        marker: { size: mine.map((n) => (open.has(n) ? 14 : 9)), line: { width: mine.map((n) => (open.has(n) ? 2 : 0)), color: "#000" },
          color: mine.map((n) => (side === "f" ? GREEN : near.tokens[Number(n.slice(1))].function ? ORANGE : BLUE)) },
      };
    });
    const rows = Math.max(...["t", "f"].map((s) => nodes.filter((n) => n[0] === s).length));
    plot(body, [...lines, ...dots], {
      xaxis: { visible: false, range: [-0.45, 1.45], fixedrange: true }, yaxis: { visible: false, range: [-0.02, 1.02] },
      margin: { l: 4, r: 4, t: 6, b: 6 }, hovermode: "closest",
    }, { height: Math.max(340, Math.min(900, 26 * rows)), onclick: (e) => { if (e.points[0].customdata) expandNode(app, e.points[0].customdata); } });
    beneath(body, el("p", { class: "about" }, el("span", { class: "dot", style: `--dot:${ORANGE}` }, "function token "),
      el("span", { class: "dot", style: `--dot:${BLUE}` }, "other token "), el("span", { class: "dot", style: `--dot:${GREEN}` }, "feature "),
      `thicker: more activations. ${near.data.verdict}`));
  },
  rows(app) {
    const near = stationOf(app);
    return [["token", "feature", "count", "largest"], partOf(app, near).edges.map((e) =>
      [near.tokens[Number(e.from.slice(1))].text, near.data.features[Number(e.to.slice(1))], e.count, e.largest])];
  },
};

PANELS.neighbours = {
  uses: ["station", "node"],
  draw(body, app) {
    const near = stationOf(app), node = openNodes(app).at(-1);
    if (!node) {
      body.replaceChildren(note("Click a token or a feature."));
      return;
    }
    const whole = node[0] === "t" ? near.tokens[Number(node.slice(1))].occurrences : null;
    const rows = (near.of.get(node) || []).slice(0, 60).map((e) => {
      const of = whole ?? near.tokens[Number(e.to.slice(1))].occurrences;
      return { key: e.to, cells: [nodeName(near, e.to), e.count.toLocaleString("en"), percent(e.count / of), number(e.largest)] };
    });
    body.replaceChildren(el("p", { class: "about" }, "Of ", el("code", {}, nodeName(near, node)), `; share: of the token's occurrences.`),
      el("div", { class: "scroll" }, table(["node", "activations", "share", "largest"], rows, { choose: (n) => expandNode(app, n) })));
  },
  rows(app) {
    const near = stationOf(app), node = openNodes(app).at(-1);
    return [["node", "count", "largest"], (near.of.get(node) || []).map((e) => [nodeName(near, e.to), e.count, e.largest])];
  },
};

PANELS.degrees = {
  uses: ["station", "node"],
  draw(body, app) {
    const near = stationOf(app), node = openNodes(app).findLast((n) => n[0] === "t");
    const of = (some, name, colour, symbol) => ({
      type: "scatter", mode: "markers", name, x: some.map(([t]) => t.occurrences), y: some.map(([t]) => t.degree), customdata: some.map(([, i]) => `t${i}`),
      text: some.map(([t]) => plain(visible(t.text))), hovertemplate: "%{text}<br>%{x:,} occurrences, %{y:,} features<extra></extra>",
      marker: { color: colour, symbol, opacity: 0.75, size: some.map(([, i]) => (`t${i}` === node ? 15 : 7)), line: { color: "#000", width: some.map(([, i]) => (`t${i}` === node ? 2 : 0)) } },
    });
    const all = near.tokens.map((t, i) => [t, i]);
    plot(body, [of(all.filter(([t]) => t.function), "function token", ORANGE, "diamond"), of(all.filter(([t]) => !t.function), "other token", BLUE, "circle")], {
      xaxis: { type: "log", title: { text: "occurrences" } }, yaxis: { title: { text: "features reached" }, rangemode: "tozero" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 62, r: 14, t: 30, b: 42 },
    }, { height: 380, onclick: (e) => expandNode(app, e.points[0].customdata) });
  },
  rows(app) {
    return [["token", "class", "function", "occurrences", "features"], stationOf(app).tokens.map((t) => [t.text, t.class, t.function, t.occurrences, t.degree])];
  },
};
