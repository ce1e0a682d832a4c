// Take a panel away: as SVG, PNG or CSV.

function save(name, content, kind) {
  const link = el("a", { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
  document.body.append(link);
  link.click();
  link.remove();
}

function csv(columns, rows) {
  const cell = (v) => {
    const text = v === null || v === undefined || Number.isNaN(v) ? "" : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// A panel that is no chart, as a picture: its elements inside an SVG, with the page's style.
function drawn(body) {
  const box = body.getBoundingClientRect();
  const copy = body.cloneNode(true);
  copy.querySelectorAll("input, select, button, datalist").forEach((part) => part.remove());
  copy.setAttribute("xmlns", "http://www.w3.org/1999/xhtml");
  const own = [...document.querySelectorAll("style")].find((s) => s.textContent.includes(".explorer .card"));
  copy.prepend(el("style", {}, own ? own.textContent : ""));
  copy.classList.add("explorer", "copied");
  const [width, height] = [Math.ceil(box.width), Math.ceil(Math.max(box.height, body.scrollHeight))];
  const inner = new XMLSerializer().serializeToString(copy);
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">` +
    `<rect width="100%" height="100%" fill="#fff"/>` +
    `<foreignObject width="100%" height="100%">${inner}</foreignObject></svg>`;
  return { svg, width, height };
}

async function rasterised({ svg, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = el("canvas", { width: 2 * width, height: 2 * height });
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  pen.drawImage(image, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function takeAway(kind, name, body, rows) {
  if (kind === "csv") {
    save(`${name}.csv`, csv(...rows()), "text/csv;charset=utf-8");
    return;
  }
  const chart = body.querySelector(".plot");
  if (chart) {
    const size = { width: chart.clientWidth, height: chart.clientHeight };
    await Plotly.downloadImage(chart, { format: kind, filename: name, scale: kind === "png" ? 2 : 1, ...size });
    return;
  }
  const picture = drawn(body);
  if (kind === "svg") save(`${name}.svg`, picture.svg, "image/svg+xml");
  else save(`${name}.png`, await rasterised(picture), "image/png");
}
