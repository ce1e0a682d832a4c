// The payload: packed arrays, and what is asked of them.

const TYPES = {
  u1: Uint8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f2: Uint16Array,
  f4: Float32Array,
};

async function unpack(text) {
  try {
    return await gunzip(text);
  } catch {
    throw new Error("The data of this page are damaged; write it again: mnemoscope explore RUN --export page.html");
  }
}

async function gunzip(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Half precision, which few browsers have an array for.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
  if (power === 31) return rest ? NaN : sign * Infinity;
  return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -14 * (rest / 1024));
}

class Data {
  constructor(payload, block) {
    this.payload = payload;
    this.block = block;
    this.runs = payload.runs;
    this.regions = Object.keys(payload.regions);
    this.planes = {};
    for (const run of this.runs) {
      run.planes.forEach((plane, i) => {
        this.planes[`${run.id}.${plane.name}`] = { ...plane, key: `${run.id}.${plane.name}`, run, place: i };
      });
    }
    this.models = [];
    for (const run of this.runs) {
      if (!run.planes.length && !run.attention && !run.trials) continue;
      let model = this.models.find((m) => m.weights === run.weights);
      if (!model) {
        model = { weights: run.weights, name: run.model, layers: run.layers, heads: run.heads,
          kv: run.kv_heads, runs: [] };
        this.models.push(model);
      }
      model.kv = model.kv || run.kv_heads;
      model.runs.push(run);
    }
  }

  array(ref) {
    return ref && new TYPES[ref.dtype](this.block, ref.at, ref.shape.reduce((a, b) => a * b, 1));
  }

  // Values of a plane with its bounds, flat, head after head.
  plane(key) {
    const plane = this.planes[key];
    if (!plane) return null;
    if (!plane.flat) {
      plane.flat = {};
      for (const name of ["values", "low", "high", "q"]) plane.flat[name] = this.array(plane[name]);
    }
    return plane;
  }

  planesOf(model) {
    return Object.values(this.planes).filter((p) => p.run.weights === model.weights);
  }

  trialsOf(model) {
    return model.runs.filter((r) => r.attention)
      .flatMap((run) => run.attention.trials.map((t) => this.trial(run, t.trial)));
  }

  trial(run, name) {
    const found = run.attention && run.attention.trials.find((t) => t.trial === name);
    if (!found) return null;
    if (!found.tokens) {
      found.run = run;
      found.tokens = run.attention.contexts[found.context].slice(0, found.length)
        .concat(found.suffix);
    }
    return found;
  }

  // Rows of one head in one trial: heaviest keys with weight and contribution, region sums.
  rows(trial, layer, head) {
    const n = trial.positions.length, k = trial.keys.shape[3], heads = trial.keys.shape[1];
    const at = (layer * heads + head) * n;
    const [keys, weights, toward, regions] =
      ["keys", "weights", "toward", "regions"].map((name) => (trial.own || this).array(trial[name]));
    const width = this.regions.length;
    return trial.positions.map((position, i) => {
      const found = [];
      for (let j = (at + i) * k; j < (at + i + 1) * k; j++) {
        if (keys[j] >= 0) {
          found.push({ key: keys[j], weight: weights[j] / STEPS, toward: half(toward[j]) });
        }
      }
      const sums = Array.from(regions.subarray((at + i) * width, (at + i + 1) * width),
        (v) => v / STEPS);
      return {
        position, keys: found, regions: sums, produced: trial.produced[i],
        kept: found.reduce((a, f) => a + f.weight, 0),
        token: trial.tokens[position],
      };
    });
  }

  regionOf(trial, key, query) {
    const inside = ([a, b]) => key >= a && key < b;
    if (key === 0) return "sink";
    if (inside(trial.spans.value)) return "value";
    if (inside(trial.spans.needle)) return "needle";
    if (trial.spans.distractors.some(inside)) return "distractors";
    if (inside(trial.spans.question)) return "question";
    return query - key < 32 && query >= key ? "recent" : "rest";
  }

  // A head's map over the whole trial, where it was kept.
  map(trial, layer, head) {
    const maps = trial.run.attention.maps;
    if (!maps || maps.trial !== trial.trial) return null;
    const i = maps.heads.indexOf(headName(layer, head));
    if (i < 0) return null;
    const nq = maps.q_edges.length - 1, nk = maps.k_edges.length - 1;
    const flat = this.array(maps.values).subarray(i * nq * nk, (i + 1) * nq * nk);
    const z = [];
    for (let q = 0; q < nq; q++) z.push(Array.from(flat.subarray(q * nk, (q + 1) * nk), (v) => v / STEPS));
    return { z, q: maps.q_edges, k: maps.k_edges };
  }

  // Copy score of one head in every trial of a run.
  fired(run, layer, head) {
    const flat = this.array(run.trials.fired), [n, layers, heads] = run.trials.fired.shape;
    return Array.from({ length: n }, (_, i) => flat[(i * layers + layer) * heads + head] / 255);
  }
}
