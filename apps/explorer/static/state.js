// What is chosen, kept in the address so that a link brings it back.

const DEFAULTS = {
  view: "", model: "0", score: "", line: "", sets: "1", head: "", trial: "", row: "", find: "",
  sort: "", whole: "0", zoom: "", a: "", b: "", ticks: "", ablation: "mean", scope: "decode",
  draws: "20", study: "", cell: "", station: "", node: "", search: "", feature: "",
};

class State {
  constructor({ hash, remember }) {
    this.values = { ...DEFAULTS };
    this.remember = remember;
    this.watchers = [];
    this.read(hash);
  }

  read(hash) {
    const given = new URLSearchParams((hash || "").replace(/^#/, ""));
    for (const name of Object.keys(DEFAULTS)) {
      this.values[name] = given.has(name) ? given.get(name) : DEFAULTS[name];
    }
  }

  get(name) {
    return this.values[name];
  }

  set(changes) {
    const changed = Object.keys(changes).filter((n) => String(changes[n]) !== this.values[n]);
    if (!changed.length) return;
    for (const name of changed) this.values[name] = String(changes[name]);
    this.remember(this.hash());
    for (const watch of this.watchers) watch(new Set(changed));
  }

  hash() {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(this.values)) {
      if (value !== DEFAULTS[name]) kept.set(name, value);
    }
    return kept.toString();
  }
}
