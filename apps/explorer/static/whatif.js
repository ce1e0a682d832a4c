// What if: ablate ticked heads in the shown trial, beside matched random sets. Needs the model.

function whatifControls(app) {
  const live = app.data.payload.live, state = app.state, off = !app.source || !app.trial();
  const known = live || { ablations: {}, scopes: {} };
  const pick = (name, choices) => el("select", { disabled: off, "aria-label": name, onchange: (e) => state.set({ [name]: e.target.value }) },
    options(Object.keys(choices).map((c) => [c, c]), state.get(name)));
  const chips = app.ticks().map((name) => el("button", { class: "chip", title: "take it out", onclick: () => app.tick(name) }, `${name} ×`));
  const add = app.head() && !app.ticks().includes(headName(...app.head()));
  return [
    el("div", { class: "line" }, el("span", {}, "Heads: "), chips.length ? chips : "none ticked ",
      add ? el("button", { onclick: () => app.tick(headName(...app.head())) }, `tick ${headName(...app.head())}`) : "",
      el("button", { onclick: () => app.tickAll(app.best(5)) }, "tick the 5 best"),
      app.ticks().length ? el("button", { onclick: () => app.tickAll([]) }, "clear") : ""),
    el("div", { class: "line" }, "Ablation ", pick("ablation", known.ablations), " in scope ", pick("scope", known.scopes),
      " against ", el("input", { type: "number", min: 1, max: 200, value: state.get("draws"), disabled: off, "aria-label": "random sets",
        onchange: (e) => state.set({ draws: e.target.value }) }), " random sets ",
      el("button", { class: "go", disabled: off || !app.ticks().length || app.whatif.waiting, onclick: () => runWhatif(app) },
        app.whatif.waiting ? "running …" : "Ablate")),
    el("p", { class: "about" }, known.ablations[state.get("ablation")] || ""),
  ];
}

async function runWhatif(app) {
  const trial = app.trial();
  app.whatif = { waiting: true };
  app.redraw("whatif");
  try {
    const { ablation, scope, draws } = app.state.values;
    app.whatif = { found: await app.source.ask("whatif", {
      run: trial.run.id, trial: trial.trial, heads: app.ticks(), ablation, scope, draws: Number(draws),
    }) };
    adoptPlanes(app, trial, app.whatif.found);
  } catch (error) {
    app.whatif = { failed: error.message };
  }
  app.redraw("whatif");
}

// The attention of all heads on the needle, plain and ablated, as two more scores to look at.
function adoptPlanes(app, trial, found) {
  const names = ["plain", "ablated"], about = `Attention on the needle in ${trial.trial}, mean over the answer's rows; `;
  found.looked.forEach((flat, i) => {
    const key = `${trial.run.id}.whatif-${names[i]}`, how = i ? `${app.ticks().join(", ")} ablated (${app.state.get("ablation")})` : "nothing ablated";
    app.data.planes[key] = { key, name: `whatif-${names[i]}`, title: `on the needle: ${how}`, group: "what if", about: about + how,
      centred: false, threshold: null, run: trial.run, flat: { values: Float32Array.from(flat, (v) => (v === null ? NaN : v)), low: null, high: null, q: null } };
  });
  app.compared = found.looked.length ? names.map((n) => `${trial.run.id}.whatif-${n}`) : null;
  app.tools();
}

function whatifPlot(body, found) {
  const sets = found.random.slice().sort((a, b) => a - b);
  plot(body, [
    { type: "scatter", mode: "markers", name: `${sets.length} random sets`, x: sets, y: sets.map((_, i) => 0.3 * ((i * 7) % 11) / 11 - 0.15),
      marker: { color: "#7a8794", size: 8, opacity: 0.7 }, hovertemplate: "random set: %{x:.2f}<extra></extra>" },
    { type: "scatter", mode: "markers", name: "not ablated", x: [found.before], y: [0], marker: { symbol: "line-ns", size: 30, line: { width: 3, color: INK } },
      hovertemplate: "not ablated: %{x:.2f}<extra></extra>" },
    { type: "scatter", mode: "markers", name: "ticked heads", x: [found.after], y: [0], marker: { symbol: "diamond", size: 15, color: ORANGE },
      hovertemplate: "ticked heads ablated: %{x:.2f}<extra></extra>" },
  ], {
    shapes: [{ type: "rect", x0: found.low, x1: found.high, y0: -0.4, y1: 0.4, fillcolor: "rgba(122,135,148,.22)", line: { width: 0 }, layer: "below" }],
    xaxis: { title: { text: "log-probability of the answer, nats" }, zeroline: false }, yaxis: { visible: false, range: [-0.5, 0.5], fixedrange: true },
    legend: { orientation: "h", y: 1.05, yanchor: "bottom", x: 0 }, margin: { l: 14, r: 14, t: 40, b: 42 },
  }, { height: 190 });
}

function whatifWords(app, found) {
  const rank = found.random.filter((v) => v <= found.after).length;
  return el("div", {},
    el("p", {}, "Answer: ", el("code", {}, found.answer), ". Not ablated the model says ", el("code", {}, visible(found.said_before)),
      ", ablated ", el("code", {}, visible(found.said_after)), "."),
    el("p", {}, `Log-probability of the answer ${number(found.before)} before, ${number(found.after)} after (${signed(found.after - found.before)} nats); ` +
      `random sets ${number(found.low)} to ${number(found.high)} (95 % of ${found.random.length}), ${rank} of them as low or lower.`),
    found.moved.length ? el("p", {}, `Attention on the needle moved most at ${found.moved.map((m) => `${m.head} ${signed(m.change)}`).join(", ")}. `,
      el("button", { onclick: () => app.state.set({ view: "compare", a: app.compared[1], b: app.compared[0] }) }, "Compare ablated with plain, all heads")) : "",
    el("p", { class: "about" }, `${found.about} One trial is no finding: mnemoscope validate tests over needles.`));
}

PANELS.whatif = {
  uses: ["model", "head", "trial", "ticks", "ablation", "scope"], // a click behind the number must not be lost
  draw(body, app, changed) {
    if (changed && (changed.has("trial") || changed.has("model"))) app.whatif = {};
    const { found, failed } = app.whatif;
    const why = app.source ? (app.trial() ? "" : "No trial is shown: choose a cell of the grid.")
      : "No model is attached to this page, so nothing can be run. Start it with: mnemoscope explore RUN --model NAME";
    body.classList.toggle("greyed", Boolean(why));
    body.replaceChildren();
    if (found) whatifPlot(body, found);
    above(body, ...whatifControls(app));
    beneath(body, why ? note(why) : failed ? note(failed) : found ? whatifWords(app, found) : "");
  },
  rows(app) {
    const { found } = app.whatif;
    if (!found) return [["set", "logprob"], []];
    return [["set", "logprob"], [["not ablated", found.before], [app.ticks().join(" "), found.after], ...found.random.map((v, i) => [`random ${i + 1}`, v])]];
  },
};
