// Max-pooled map: rows that were kept against all keys, or the whole trial; zoom bins anew.

const KEY_BINS = 120;

function window4(app, n) {
  const given = app.state.get("zoom").split(",").map(Number);
  return given.length === 4 && given.every((v) => Number.isFinite(v)) ? given : [0, n, 0, n];
}

// Kept keys of every row in equal bins of [from, to): the largest weight of each bin.
function binned(rows, from, to) {
  const n = Math.max(1, Math.min(KEY_BINS, to - from)), width = (to - from) / n;
  const edges = Array.from({ length: n + 1 }, (_, i) => from + i * width);
  const z = rows.map((row) => {
    const bins = new Array(n).fill(0);
    for (const k of row.keys) {
      if (k.key < from || k.key >= to) continue;
      const i = Math.min(n - 1, Math.floor((k.key - from) / width));
      bins[i] = Math.max(bins[i], k.weight);
    }
    return bins;
  });
  return { z, k: edges };
}

// The tokens of a bin, a few of them, for a hover.
function someTokens(trial, from, to) {
  const [a, b] = [Math.ceil(from - 1e-9), Math.ceil(to - 1e-9)];
  const words = trial.tokens.slice(a, Math.min(b, a + 8)).map(visible).join(" ");
  return `${b - a > 1 ? `keys ${a} to ${b - 1}` : `key ${a}`}<br>${plain(words)}${b - a > 8 ? " …" : ""}`;
}

function needleShapes(trial, whole) {
  const box = (span, colour) => [{ type: "rect", x0: span[0], x1: span[1], y0: 0, y1: 1, yref: "paper",
    line: { color: colour, width: 1.5 } }];
  const spans = [...box(trial.spans.needle, REGION_COLOURS.needle), ...box(trial.spans.value, MARK)];
  if (whole) spans.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: trial.length, y1: trial.length,
    line: { color: REGION_COLOURS.question, width: 1, dash: "dot" } });
  return spans;
}

function zoomed(app, n, event) {
  if (event["xaxis.autorange"] || event["yaxis.autorange"]) {
    app.state.set({ zoom: "" });
    return;
  }
  if (event["xaxis.range[0]"] === undefined && event["yaxis.range[0]"] === undefined) return;
  const now = window4(app, n), clip = (v) => Math.max(0, Math.min(n, v));
  const of = (axis, a, b) => (event[`${axis}.range[0]`] === undefined ? [a, b]
    : [event[`${axis}.range[0]`], event[`${axis}.range[1]`]].sort((p, q) => p - q).map(clip));
  const [k0, k1] = of("xaxis", now[2], now[3]);
  const [q0, q1] = app.state.get("whole") === "1" ? of("yaxis", now[0], now[1]) : [now[0], now[1]];
  const whole = [Math.floor(q0), Math.ceil(q1), Math.floor(k0), Math.ceil(k1)];
  if (whole[1] > whole[0] && whole[3] > whole[2]) app.state.set({ zoom: whole.join(",") });
}

// The map of the window: read by the model where one is attached, else what was kept.
function wholeMap(app, trial, zoom) {
  const name = headName(...app.head()), key = `${trial.run.id}|${trial.trial}|${name}|${zoom.join(",")}`;
  if (app.windows[key]) return { map: app.windows[key], exact: true };
  const kept = app.data.map(trial, ...app.head());
  if (app.source && !app.windows.failed) {
    if (app.windows.asked !== key) {
      app.windows.asked = key;
      clearTimeout(app.windows.timer);
      app.windows.timer = setTimeout(() => {
        app.source.ask("window", { run: trial.run.id, trial: trial.trial, head: name, zoom }).then((found) => {
          app.windows[key] = found;
          if (app.windows.asked === key) app.redraw("pattern");
        }, (error) => {
          app.windows.failed = error.message;
          app.redraw("pattern");
        });
      }, 250);
    }
    return { map: kept, waiting: true };
  }
  return { map: kept };
}

function patternWords(app, whole, trial, rows, found) {
  if (!whole) {
    const least = Math.min(...rows.map((r) => r.kept));
    return `The ${trial.positions.length} rows kept, ${trial.keys.shape[3]} keys each (at least ${percent(least)} of a row's mass).`;
  }
  if (found.waiting) return "Reading this window with the model …";
  if (found.exact) return "Read by the model for just this window.";
  if (app.windows.failed) return `The model could not read it: ${app.windows.failed}`;
  return found.map ? "As kept by the scan, in bins; attach a model (--model) to read a window token by token." : "";
}

PANELS.pattern = {
  uses: ["model", "head", "trial", "row", "whole", "zoom"],
  lacks: (app) => !app.trial() || !app.head(),
  draw(body, app) {
    const trial = app.trial(), rows = app.rows(), n = trial.tokens.length;
    const whole = app.state.get("whole") === "1", zoom = window4(app, n);
    const found = whole ? wholeMap(app, trial, zoom) : { map: binned(rows, zoom[2], zoom[3]) };
    const pick = (value, words) => el("button", { class: (whole ? "1" : "0") === value ? "on" : "",
      "aria-pressed": String((whole ? "1" : "0") === value),
      onclick: () => app.state.set({ whole: value, zoom: "" }) }, words);
    const out = el("button", { disabled: !app.state.get("zoom"), onclick: () => app.state.set({ zoom: "" }) }, "Zoom out");
    if (!found.map) {
      body.replaceChildren(el("div", { class: "above" }, pick("0", "Kept rows"), pick("1", "Whole trial")),
        note(found.waiting ? "Reading the map with the model …"
          : `The whole map was kept for ${(trial.run.attention.maps || { heads: [] }).heads.join(", ") || "no head"} in one trial` +
            `${trial.run.attention.maps ? ` (${trial.run.attention.maps.trial})` : ""} only. Attach the model to read any other: mnemoscope explore RUN --model NAME.`));
      return;
    }
    const { z, k } = found.map, y = whole ? found.map.q : undefined;
    const rowText = rows.map((r, i) => (i === app.row() ? `<b>${plain(rowLabel(r))}</b>` : plain(rowLabel(r))));
    const keys = k.slice(0, -1).map((a, i) => someTokens(trial, a, k[i + 1]));
    plot(body, [{
      type: "heatmap", z, x: k, y, zmin: 0, zmax: 1, customdata: z.map(() => keys),
      colorscale: [[0, "#ffffff"], [0.1, "#cfe4f2"], [0.4, "#5aa9d6"], [1, "#08306b"]],
      colorbar: { thickness: 12, len: 0.9, title: { text: "weight", side: "right" } },
      hovertemplate: (whole ? "query %{y:.0f}, " : "") + "%{customdata}<br>largest weight %{z:.3f}<extra></extra>",
    }], {
      shapes: needleShapes(trial, whole),
      xaxis: { title: { text: "position of the key" }, range: [zoom[2], zoom[3]], showgrid: false, zeroline: false },
      yaxis: whole
        ? { title: { text: "position of the query" }, range: [zoom[1], zoom[0]], showgrid: false, zeroline: false }
        : { autorange: "reversed", tickvals: rows.map((_, i) => i), ticktext: rowText, fixedrange: true, showgrid: false },
      margin: { l: whole ? 62 : 110, r: 12, t: 10, b: 42 }, dragmode: "zoom",
    }, { height: whole ? 460 : 110 + 24 * rows.length, onrelayout: (e) => zoomed(app, n, e),
      onclick: (e) => { if (!whole) app.state.set({ row: Number(e.points[0].y) }); } });
    above(body, pick("0", "Kept rows"), pick("1", "Whole trial"), out);
    beneath(body, el("p", { class: "about" }, patternWords(app, whole, trial, rows, found)));
  },
  rows(app) {
    const trial = app.trial(), zoom = window4(app, trial.tokens.length);
    if (app.state.get("whole") === "1") {
      const { map } = wholeMap(app, trial, zoom);
      if (!map) return [["query_from", "query_to", "key_from", "key_to", "largest_weight"], []];
      return [["query_from", "query_to", "key_from", "key_to", "largest_weight"], map.z.flatMap((r, i) =>
        r.map((v, j) => [map.q[i], map.q[i + 1], map.k[j], map.k[j + 1], v]))];
    }
    const { z, k } = binned(app.rows(), zoom[2], zoom[3]);
    return [["row", "key_from", "key_to", "largest_weight"], z.flatMap((r, i) => r.map((v, j) => [i, k[j], k[j + 1], v]))];
  },
};
