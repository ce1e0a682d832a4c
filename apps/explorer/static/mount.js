// How the explorer begins, in an element or on a page of its own.

const ready = { after: null }; // milliseconds from the opening of the page, for measuring

async function mount(root, payload, { source = null, hash = "", remember = () => {} } = {}) {
  root.classList.add("explorer");
  const block = await unpack(payload.block); // goes on while the page is still being read
  if (document.readyState === "loading") await new Promise((go) => addEventListener("DOMContentLoaded", go));
  const app = new App(root, new Data(payload, block), { source, hash, remember });
  app.draw();
  remember(app.state.hash());
  root.dataset.ready = "yes";
  ready.after = performance.now();
  return app;
}

// In the place of a page that cannot be shown: what is wrong, and what to do.
function fatal(root, error) {
  root.classList.add("explorer");
  root.replaceChildren(el("div", { class: "fatal" }, el("h1", {}, "This page cannot be shown"), el("p", {}, error.message)));
  root.dataset.ready = "no";
}

// For a page of its own: what is chosen stands in the address, and follows it.
async function page(read, source) {
  const root = document.getElementById("explorer");
  try {
    if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old: it needs DecompressionStream (2023 or newer).");
    const payload = await read();
    const app = await mount(root, payload, {
      source: payload.live ? source : null, hash: location.hash, remember: (hash) => history.replaceState(null, "", `#${hash}`),
    });
    addEventListener("hashchange", () => {
      app.state.read(location.hash);
      app.settle();
      app.draw();
    });
  } catch (error) {
    fatal(root, error);
    throw error;
  }
}
