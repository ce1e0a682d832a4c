// The token strip: the trial's text, coloured by the chosen row; stretches without weight folded.

const MARGIN = 10, SHORT = 160, LEAST = 0.01;

// Stretches of the trial that are shown: needles, heavy keys, what is behind the context.
function stretches(app, trial, row) {
  const n = trial.tokens.length;
  if (n <= SHORT) return [[0, n]];
  const wanted = [[0, 4], trial.spans.needle, [trial.length - MARGIN, n],
    ...trial.spans.distractors.slice(0, 12),
    ...row.keys.filter((k) => k.weight >= LEAST).map((k) => [k.key, k.key + 1])];
  const wide = wanted.map(([a, b]) => [Math.max(0, a - MARGIN), Math.min(n, b + MARGIN)])
    .sort((a, b) => a[0] - b[0]);
  const joined = [];
  for (const [a, b] of wide) {
    const last = joined[joined.length - 1];
    if (last && a <= last[1] + MARGIN) last[1] = Math.max(last[1], b);
    else joined.push([a, b]);
  }
  return joined;
}

function token(app, trial, row, i, weight) {
  const inside = ([a, b]) => i >= a && i < b;
  const words = ["token"];
  if (inside(trial.spans.needle)) words.push("needle");
  if (inside(trial.spans.value)) words.push("value");
  if (trial.spans.distractors.some(inside)) words.push("distractor");
  if (i >= trial.length) words.push("behind");
  if (i === row.position) words.push("query");
  const w = weight.get(i) || 0;
  const shade = w ? `background:rgba(0,114,178,${Math.min(1, 0.08 + 0.92 * Math.sqrt(w)).toFixed(3)});` +
    (w > 0.35 ? "color:#fff;" : "") : null;
  const at = trial.positions.indexOf(i);
  const made = el("span", {
    class: words.join(" "), style: shade, title: `position ${i}${w ? `, weight ${number(w, 3)}` : ""}`,
    onclick: at < 0 ? null : () => app.state.set({ row: at }),
  }, visible(trial.tokens[i]));
  if (at >= 0) made.classList.add("row");
  return /\n/.test(trial.tokens[i]) ? [made, el("br")] : [made];
}

function unfold(app, trial, row, weight, fold, from, to) {
  const some = el("span");
  const stop = Math.min(to, from + 400);
  for (let i = from; i < stop; i++) some.append(...token(app, trial, row, i, weight));
  fold.replaceWith(some, ...(stop < to ? [folded(app, trial, row, weight, stop, to)] : []));
}

function folded(app, trial, row, weight, from, to) {
  const fold = el("button", { class: "fold", title: "show these tokens" }, `… ${(to - from).toLocaleString("en")} tokens …`);
  fold.onclick = () => unfold(app, trial, row, weight, fold, from, to);
  return fold;
}

function minimap(app, trial, row) {
  const n = trial.tokens.length, canvas = el("canvas", { class: "minimap", width: 1200, height: 26,
    role: "img", "aria-label": "where in the trial needles and heavy keys stand" });
  const pen = canvas.getContext("2d"), x = (i) => (i / n) * 1200;
  const block = ([a, b], colour, top, height) => {
    pen.fillStyle = colour;
    pen.fillRect(x(a), top, Math.max(2, x(b) - x(a)), height);
  };
  block([0, n], "#eef1f4", 0, 26);
  trial.spans.distractors.forEach((s) => block(s, REGION_COLOURS.distractors, 18, 8));
  block(trial.spans.needle, REGION_COLOURS.needle, 18, 8);
  block(trial.spans.value, REGION_COLOURS.value, 18, 8);
  block([trial.length, n], REGION_COLOURS.question, 18, 8);
  for (const k of row.keys) block([k.key, k.key + 1], `rgba(0,114,178,${0.15 + 0.85 * Math.sqrt(k.weight)})`, 0, 17);
  return canvas;
}

PANELS.tokens = {
  uses: ["model", "head", "trial", "row"],
  lacks: (app) => !app.trial() || !app.head(),
  draw(body, app) {
    const trial = app.trial(), row = app.rows()[app.row()];
    const weight = new Map(row.keys.map((k) => [k.key, k.weight]));
    const strip = el("div", { class: "strip" });
    let end = 0;
    for (const [a, b] of stretches(app, trial, row)) {
      if (a > end) strip.append(folded(app, trial, row, weight, end, a));
      for (let i = a; i < b; i++) strip.append(...token(app, trial, row, i, weight));
      end = b;
    }
    if (end < trial.tokens.length) strip.append(folded(app, trial, row, weight, end, trial.tokens.length));
    body.replaceChildren(
      el("p", { class: "about" }, `${trial.trial}: ${trial.tokens.length.toLocaleString("en")} tokens; row `,
        el("code", {}, rowLabel(row)), `; keys kept hold ${percent(row.kept)} of its attention. Click a token behind the context to see its row.`),
      minimap(app, trial, row), strip);
  },
  rows(app) {
    const trial = app.trial(), row = app.rows()[app.row()];
    const weight = new Map(row.keys.map((k) => [k.key, k.weight]));
    return [["position", "token", "region", "weight"], trial.tokens.map((t, i) =>
      [i, t, app.data.regionOf(trial, i, row.position), weight.has(i) ? weight.get(i) : ""])];
  },
};
