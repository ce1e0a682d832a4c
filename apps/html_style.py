"""How a page looks, on a screen and on paper, and the little that it does by itself."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1f2933; background: #fff; max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #d9dee4; }
h3 { margin: 2rem 0 .4rem; }
a { color: #0072b2; }
.answer { font-size: 1.08rem; background: #f2f6fa; border-left: 4px solid #0072b2;
  padding: .8rem 1rem; margin: 0; }
.note { background: #fff6e5; border-left: 4px solid #e69f00; padding: .5rem 1rem; margin: .6rem 0; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0 2rem; } figcaption { color: #52606d; }
details { border: 1px solid #d9dee4; border-radius: 4px; padding: .2rem 1rem; margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .4rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .33rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e8ec; }
thead th { background: #f2f4f7; vertical-align: bottom; line-height: 1.25; }
td.n { text-align: right; } td.t { min-width: 14rem; }
td.n, td:first-child { white-space: nowrap; } pre, code { font-family: ui-monospace, monospace; }
pre { background: #f2f4f7; padding: .7rem; overflow-x: auto; }
.report h2 { font-size: 1.5rem; } .report h3 { font-size: 1.2rem; } .report h4 { font-size: 1rem; }
.run { border-top: 4px solid #0072b2; margin-top: 4rem; } .run > h2 { margin-top: 1rem; }
.asked { margin: 0 0 .4rem; } .about { color: #52606d; margin: 0 0 .8rem; }
.contents ol { padding-left: 1.5rem; } .contents li { margin: .3rem 0; }
.contents .parts { display: block; font-size: .86rem; color: #52606d; }
@media (max-width: 700px) { .modebar { display: none; } }
@media print {
  @page { margin: 14mm 12mm; }
  :root { font-size: 9.5pt; } body { max-width: none; font-size: 1rem; padding: 0; }
  .modebar { display: none; }
  h1, h2, h3, h4, h5, figcaption, summary { break-after: avoid; }
  figure, tr, .answer, .note, pre { break-inside: avoid; }
  figure { margin: .5rem 0 .8rem; } p { orphans: 3; widows: 3; }
  .run { break-before: page; margin-top: 0; } .wide { overflow: visible; }
  table { font-size: 7pt; width: 100%; } td.t { min-width: 0; }
  th, td { padding: .15rem .2rem; overflow-wrap: break-word; white-space: normal; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } details { border: 0; padding: 0; }
}
"""

SCRIPT = """<script>
{
  const paper = { width: 690, height: 560 };  // room for a figure, in CSS pixels
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const unfold = (within) => {
    for (const folded of all("template", within))
      folded.replaceWith(document.importNode(folded.content, true));
  };
  for (const part of all("details")) part.addEventListener("toggle", () => unfold(part));
  const show = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    const holder = all("template").find((folded) => folded.content.getElementById(name));
    if (holder) unfold(holder.closest("details"));
    const aim = name && document.getElementById(name);
    if (!aim) return;
    for (let part = aim.closest("details"); part; part = part.parentElement.closest("details"))
      part.open = true;
    aim.scrollIntoView();
  };
  addEventListener("hashchange", show);
  show();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const part of opened) part.open = true;
    unfold(document);
    for (const { parentElement: plot } of all(".js-plotly-plot")) {
      const fit = [paper.width / plot.offsetWidth, paper.height / plot.offsetHeight];
      plot.style.zoom = Math.min(1, ...fit);
    }
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
    for (const plot of all(".js-plotly-plot")) plot.parentElement.style.zoom = "";
  });
}
</script>"""
