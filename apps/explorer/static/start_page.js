// The offline page: everything lies in it.
Explorer.page(JSON.parse(document.getElementById("payload").textContent), null);
