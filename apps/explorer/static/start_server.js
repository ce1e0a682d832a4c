// The live app: data and questions go to the server that sent this page.
(() => {
  const ask = async (name, given) => {
    const reply = await fetch(`ask/${name}`, {
      method: "POST", credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-Mnemoscope": "1" },
      body: JSON.stringify(given),
    }).catch(() => { throw new Error("the server does not answer; is it still running?"); });
    const value = await reply.json();
    if (!reply.ok) throw new Error(value.error);
    return value;
  };
  // Dash puts the element there in its own time
  const begin = () => {
    if (!document.getElementById("explorer")) {
      setTimeout(begin, 20);
      return;
    }
    Explorer.page(async () => {
      const reply = await fetch("payload.json", { credentials: "same-origin" });
      if (!reply.ok) throw new Error((await reply.json()).error);
      return reply.json();
    }, { ask });
  };
  begin();
})();
