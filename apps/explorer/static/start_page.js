// The offline page: everything lies in it.
Explorer.page(() => {
  try {
    return JSON.parse(document.getElementById("payload").textContent);
  } catch {
    throw new Error("The file is damaged or was cut off; write it again: mnemoscope explore RUN --export page.html");
  }
}, null);
