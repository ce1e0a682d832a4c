// The widget: data and choices are traits, questions go to the kernel.
function kernel(model) {
  const waiting = new Map();
  let count = 0;
  model.on("msg:custom", (reply) => {
    const asked = waiting.get(reply.id);
    if (!asked) return;
    waiting.delete(reply.id);
    if (reply.error) asked.no(new Error(reply.error));
    else asked.yes(reply.value);
  });
  return { ask: (name, given) => new Promise((yes, no) => {
    const id = String(count++);
    waiting.set(id, { yes, no });
    model.send({ id, name, given });
  }) };
}

async function render({ model, el }) {
  const root = document.createElement("div");
  el.append(root);
  const payload = model.get("payload");
  await Explorer.mount(root, payload, {
    source: payload.live ? kernel(model) : null, hash: model.get("state"),
    remember: (hash) => { model.set("state", hash); model.save_changes(); },
  });
}

export default { render };
