// Puts views and panels together as the layout says, and redraws what a change touches.

class App {
  constructor(root, data, { source, hash, remember }) {
    this.root = root;
    this.data = data;
    this.source = source;
    this.state = new State({ hash, remember });
    this.windows = {};
    this.whatif = {};
    this.bodies = {};
    this.cellWords = "";
    this.views = data.payload.layout.filter((view) => this.has(view.needs));
    this.settle();
    this.state.watchers.push((changed) => this.changed(changed));
  }

  // What the runs hold, by the words that views and panels need.
  has(what) {
    const { runs, planes } = this.data;
    return {
      scores: () => Object.keys(planes).length > 0 || runs.some((r) => r.attention || r.trials),
      two: () => Object.keys(planes).length > 1,
      trials: () => runs.some((r) => r.trials),
      attention: () => runs.some((r) => r.attention),
      binding: () => runs.some((r) => r.binding),
      features: () => runs.some((r) => r.features),
    }[what]();
  }

  // Fill in what the address leaves open, with what there is.
  settle() {
    const { state, data } = this, v = state.values;
    if (!this.views.some((view) => view.name === v.view)) v.view = this.views[0].name;
    if (!data.models[Number(v.model)]) v.model = "0";
    const model = this.model();
    if (!model) return;
    const planes = data.planesOf(model);
    if (planes.length && !planes.some((p) => p.key === v.score)) {
      v.score = (planes.find((p) => p.name === "copy") || planes[0]).key;
    }
    const at = parseHead(v.head);
    if (!at || at[0] >= model.layers || at[1] >= model.heads) v.head = planes.length ? this.best(1)[0] || "" : "L0H0";
    const trials = data.trialsOf(model);
    if (!trials.some((t) => this.trialKey(t) === v.trial)) v.trial = trials.length ? this.trialKey(trials[0]) : "";
    const trial = this.trial();
    if (trial && !(/^\d+$/.test(v.row) && Number(v.row) < trial.positions.length)) v.row = String(this.firstAnswer(trial));
    if (!Number.isFinite(Number(v.line))) v.line = "";
    v.ticks = this.ticks().filter((t) => parseHead(t)[0] < model.layers && parseHead(t)[1] < model.heads).join(",");
  }

  trialKey(trial) {
    return `${trial.run.id}.${trial.trial}`;
  }

  firstAnswer(trial) {
    return Math.max(0, trial.produced.findIndex((p) => p));
  }

  // -- what is chosen ---------------------------------------------------------------------

  model() { return this.data.models[Number(this.state.get("model"))]; }
  plane() { return this.data.plane(this.state.get("score")); }
  head() { return parseHead(this.state.get("head")); }
  row() { return Number(this.state.get("row")) || 0; }
  ticks() { return this.state.get("ticks").split(",").filter(parseHead); }
  roles() { return (this.model().runs.find((r) => r.roles.length) || { roles: [] }).roles; }
  gridRun() { const m = this.model(); return m && m.runs.find((r) => r.trials); }

  trial() {
    const [run, ...name] = this.state.get("trial").split(".");
    const found = this.data.runs.find((r) => r.id === run);
    return found ? this.data.trial(found, name.join(".")) : null;
  }

  rows() {
    return this.data.rows(this.trial(), ...this.head());
  }

  line() {
    const given = this.state.get("line");
    return given === "" ? null : Number(given);
  }

  sort() {
    const given = this.state.get("sort") || "1";
    return [parseInt(given, 10), !given.endsWith("-")];
  }

  marked() {
    return this.state.get("sets") === "1" ? this.model().runs.flatMap((r) => r.sets.flatMap((s) => s.heads)) : [];
  }

  // A few other scores beside the chosen one, those of its run first.
  others() {
    const plane = this.plane();
    return this.data.planesOf(this.model()).filter((p) => p.key !== plane.key)
      .sort((a, b) => (b.run === plane.run) - (a.run === plane.run)).slice(0, 3).map((p) => this.data.plane(p.key));
  }

  side(side) {
    const all = Object.values(this.data.planes), given = this.state.get(side);
    if (this.data.planes[given]) return given;
    const first = this.data.planes[this.state.get("score")] || all[0];
    if (side === "a") return first.key;
    const other = all.find((p) => p.run !== first.run && p.name === first.name) || all.find((p) => p.key !== first.key);
    return other.key;
  }

  best(n) {
    const plane = this.plane(), { heads } = this.model();
    if (!plane) return [];
    const size = (i) => (plane.centred ? Math.abs(plane.flat.values[i]) : plane.flat.values[i]);
    return Array.from(plane.flat.values.keys()).filter((i) => !Number.isNaN(size(i)))
      .sort((a, b) => size(b) - size(a)).slice(0, n).map((i) => headName(Math.floor(i / heads), i % heads));
  }

  // -- changes ----------------------------------------------------------------------------

  choose(layer, head) {
    this.state.set({ head: headName(layer, head) });
  }

  tick(name) {
    const ticks = this.ticks();
    this.tickAll(ticks.includes(name) ? ticks.filter((t) => t !== name) : [...ticks, name]);
  }

  tickAll(names) {
    this.state.set({ ticks: names.join(",") });
  }

  async openCell(cell) {
    const run = this.gridRun(), names = cell.trials.map((i) => run.trials.trial[i]);
    const kept = names.find((name) => this.data.trial(run, name));
    this.cellWords = kept ? "" : this.source ? el("p", { class: "about" }, "Reading this trial with the model …")
      : note(`Attention was not kept for ${cell.length} tokens at depth ${percent(cell.depth)}; attach the model to read it.`);
    if (kept) {
      const trial = this.data.trial(run, kept);
      this.state.set({ trial: this.trialKey(trial), row: this.firstAnswer(trial), zoom: "" });
      return;
    }
    this.redraw("grid");
    if (!this.source) return;
    try {
      const found = await this.source.ask("trial", { run: run.id, trial: names[0] });
      await this.adopt(run, found);
      this.cellWords = "";
    } catch (error) {
      this.cellWords = note(error.message);
    }
    this.redraw("grid");
  }

  // A trial that was read just now: its arrays come in a block of their own.
  async adopt(run, { about, block, context }) {
    const own = new Data({ ...this.data.payload, runs: [] }, await unpack(block));
    const trial = { ...about, own };
    run.attention = run.attention || { contexts: {}, trials: [], maps: null };
    run.attention.contexts[about.context] = context;
    run.attention.trials.push(trial);
    const made = this.data.trial(run, about.trial);
    this.state.set({ trial: this.trialKey(made), row: this.firstAnswer(made), zoom: "" });
  }

  key(event) {
    const at = this.head() || [0, 0], { layers, heads } = this.model();
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (steps) {
      this.choose(Math.max(0, Math.min(layers - 1, at[0] + steps[0])), Math.max(0, Math.min(heads - 1, at[1] + steps[1])));
    } else if (event.key === "[" || event.key === "]") {
      const order = this.best(layers * heads), i = order.indexOf(headName(...at));
      const next = order[Math.max(0, Math.min(order.length - 1, i + (event.key === "]" ? 1 : -1)))];
      if (next) this.choose(...parseHead(next));
    } else if (event.key === "Home") {
      const [first] = this.best(1);
      if (first) this.choose(...parseHead(first));
    } else if (event.key === " ") {
      this.tick(headName(...at));
    } else {
      return;
    }
    event.preventDefault();
  }

  changed(changed) {
    const before = this.state.get("view");
    if (changed.has("model")) Object.assign(this.state.values, { score: "", head: "", trial: "", row: "", zoom: "" });
    if (changed.has("score")) this.state.values.line = "";
    this.settle();
    this.state.remember(this.state.hash());
    if (changed.has("view") || before !== this.state.get("view")) this.draw();
    else {
      this.tools();
      for (const panel of this.view().panels) {
        if (!PANELS[panel.name].uses || PANELS[panel.name].uses.some((u) => changed.has(u))) this.redraw(panel.name, changed);
      }
    }
  }

  // A slider gives many values a second: draw when it rests.
  later(work) {
    clearTimeout(this.timer);
    this.timer = setTimeout(work, 120);
  }

  // -- drawing ----------------------------------------------------------------------------

  view() {
    return this.views.find((v) => v.name === this.state.get("view"));
  }

  redraw(name, changed) {
    const body = this.bodies[name], panel = this.view().panels.find((p) => p.name === name);
    if (!body || !panel) return;
    const drawer = PANELS[name];
    const scored = panel.needs !== "scores" || this.plane();
    const lacking = !this.has(panel.needs) || !scored || (drawer.lacks && drawer.lacks(this));
    body.parentElement.classList.toggle("empty", Boolean(lacking));
    if (lacking) {
      body.replaceChildren(note(panel.lacking));
      return;
    }
    if (body.querySelector(":scope > .lacking:only-child")) body.replaceChildren();
    drawer.draw(body, this, changed);
  }

  card(panel) {
    const body = el("div", { class: "body" });
    this.bodies[panel.name] = body;
    const leave = panel.exports.map((kind) => el("button", { class: "leave", title: `save as ${kind.toUpperCase()}`,
      "data-export": kind, onclick: () => takeAway(kind, `mnemoscope-${panel.name}`, body, () => PANELS[panel.name].rows(this)) },
    kind.toUpperCase()));
    return el("section", { class: `card${panel.wide ? " wide" : ""}`, id: `panel-${panel.name}` },
      el("header", {}, el("h2", {}, panel.title), el("span", { class: "exports" }, leave)),
      el("p", { class: "about" }, panel.about), body);
  }

  tools() {
    const view = this.view(), more = TOOLS[view.name], parts = more ? more(this) : [];
    const bar = this.root.querySelector(".tools"), focused = document.activeElement;
    const name = bar.contains(focused) ? focused.getAttribute("name") : null;
    bar.replaceChildren(...parts);
    if (name) {
      const again = bar.querySelector(`[name="${name}"]`);
      if (again) again.focus();
    }
  }

  draw() {
    const view = this.view(), payload = this.data.payload;
    this.bodies = {};
    const tabs = this.views.map((v) => el("button", { role: "tab", "data-view": v.name, "aria-selected": String(v === view), class: v === view ? "on" : "",
      onclick: () => this.state.set({ view: v.name }) }, v.title));
    const told = payload.runs.map((run) => el("details", { class: "run" },
      el("summary", {}, el("b", {}, run.label), ` ${run.word} of ${run.model}`),
      el("p", {}, run.answer), run.notes.map((n) => el("p", { class: "about" }, n)),
      run.left_out ? el("p", { class: "about" }, `${run.left_out} more trials are in the run folder; this page keeps to its size.`) : null,
      run.command ? el("pre", {}, run.command) : null));
    this.root.replaceChildren(
      el("div", { class: "top" }, el("h1", {}, "mnemoscope"), el("nav", { role: "tablist" }, tabs),
        el("span", { class: "about" }, this.source ? "a model is attached" : "saved runs, no model")),
      el("div", { class: "runs" }, told),
      el("p", { class: "guard" }, payload.guard),
      el("div", { class: "tools" }),
      el("main", {}, view.panels.map((panel) => this.card(panel))));
    this.tools();
    for (const panel of view.panels) this.redraw(panel.name);
  }
}
