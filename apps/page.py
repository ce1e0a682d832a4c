"""One HTML file that holds a whole scan: the answer, figures, tables, settings, provenance.

It opens offline: plotly.js is inside, once, and nothing is loaded from elsewhere. Everything that
comes from a model or a file is escaped, as a token may well be `<script>`.
"""

import html
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.figure_parts import ranking
from apps.figures import FIGURES, draw
from circuits.scores import METRICS
from interp.errors import ResultError
from interp.store import cannot_write

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult

N_BEST = 20
LEGENDS = {
    "map": "Every head of the model. The brighter, the more often the head's strongest attention "
    "sits on the very token that the model is producing.",
    "ranked": "The best heads with their intervals. Two heads whose whiskers overlap much may "
    "change places in another sample of needles.",
    "profile": "Where in the model the heads sit.",
    "attention": "What retrieval looks like: as each answer token is produced, the head looks at "
    "that token in the context. Choose another head in the menu.",
    "grid": "Left: which questions the model answered, by length of context and place of the "
    "needle. Right: whether the best head copies everywhere alike.",
    "agreement": "Whether the other scores name the same heads. A low value means that the two "
    "scores pick different heads.",
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1f2933; background: #fff; max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #d9dee4; }
.answer { font-size: 1.08rem; background: #f2f6fa; border-left: 4px solid #0072b2;
  padding: .8rem 1rem; margin: 0; }
.note { background: #fff6e5; border-left: 4px solid #e69f00; padding: .5rem 1rem; margin: .6rem 0; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0 2rem; } figcaption { color: #52606d; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .33rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e8ec; }
thead th { background: #f2f4f7; vertical-align: bottom; line-height: 1.25; }
td.n { text-align: right; }
td.n, td:first-child { white-space: nowrap; } pre, code { font-family: ui-monospace, monospace; }
pre { background: #f2f4f7; padding: .7rem; overflow-x: auto; }
@media print { body { max-width: none; font-size: 11pt; padding: 0; } .modebar { display: none; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; } }
"""


def write_page(result: "ScanResult", path: str | Path) -> Path:
    """Write the page of a scan, whole or not at all, and return where it is.

    Raises:
        ResultError: the file cannot be written.
    """
    path = Path(path)
    text = page(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(fresh).chmod(0o644)
            Path(fresh).replace(path)
        finally:
            Path(fresh).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def page(result: "ScanResult") -> str:
    """The page's HTML."""
    title = f"Retrieval heads of {result.provenance.model}"
    answered = bool(result.trials["passed"].any())
    body = [f"<h1>{_safe(title)}</h1>", f'<p class="answer">{_safe(answer(result))}</p>']
    body += [f'<p class="note">{_safe(_sentence(note))}</p>' for note in result.notes]
    if answered:
        body += ["<h2>Figures</h2>", *_figures(result)]
        body += [f"<h2>The {N_BEST} best heads</h2>", _best_table(result)]
        body += ["<h2>What the scores mean</h2>", _score_table(result)]
    else:
        body += ["<h2>Questions that were asked</h2>", _trial_table(result)]
    body += ["<h2>Settings</h2>", _pairs(result.settings)]
    body += ["<h2>Provenance</h2>", _pairs(vars(result.provenance)), _reproduce(result)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(body) + "</body></html>\n"
    )


def answer(result: "ScanResult") -> str:
    """The result in plain words."""
    if not result.trials["passed"].any():
        return _sentence(result.diagnosis())
    heads = ranking(result).dropna(subset=["score"])
    line, n = result.settings["threshold"], len(heads)
    above = int((heads["score"] > line).sum())
    words = [
        f"In {result.provenance.model}, {above} of {n} heads ({100 * above / n:.1f} %) have a "
        f"copy score above {line:g}: for more than {100 * line:g} % of an answer's tokens their "
        "strongest attention sits on that token in the context while the model produces it."
    ]
    if heads["p_above"].notna().all():
        sure = int((heads["p_above"] >= 0.975).sum())
        words.append(
            f"Of these, {sure} stay above it in at least 97.5 % of bootstrap draws over needles."
        )
    first = heads.sort_values("score", ascending=False, kind="stable").head(3)
    words.append(f"The best: {', '.join(_scored(row) for row in first.itertuples())}.")
    return " ".join([*words, _trust(result)])


def _trust(result: "ScanResult") -> str:
    """What the scores rest on."""
    share, t = result.yields(), result.trials
    words = [
        f"The model answered {int(t['passed'].sum())} of {len(t)} questions about "
        f"{t['needle'].nunique()} needles ({100 * share['passed']:.0f} %; "
        f"{100 * share['exact']:.0f} % word for word, {100 * share['forced']:.0f} % with each "
        "answer token its likeliest); only answered questions count."
    ]
    halves = result.reliability()
    if halves is None:
        words.append("Too few needles were answered to compare two halves of them.")
    else:
        words.append(
            f"Two random halves of the needles share {halves.overlap:.1f} of their top "
            f"{halves.k} heads, and their scores correlate at {halves.pearson:.2f}."
        )
    return " ".join(words)


def _scored(row: Any) -> str:
    if np.isnan(row.low):
        return f"{row.name} at {row.score:.2f} (no interval: one needle)"
    return f"{row.name} at {row.score:.2f} (95 % interval {row.low:.2f} to {row.high:.2f})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


# -- parts of the page ------------------------------------------------------------------------


def _figures(result: "ScanResult") -> Iterable[str]:
    """All figures; the first brings plotly.js with it."""
    first = True
    for kind in (*LEGENDS, *(k for k in FIGURES if k not in LEGENDS)):
        try:
            figure = draw(result, kind, **_options(result, kind))
        except ResultError as error:
            yield f'<p class="note">No {kind} figure: {_safe(error)}</p>'
            continue
        picture = figure.to_html(
            full_html=False, include_plotlyjs=first, div_id=f"figure-{kind}",
            config={"responsive": True, "displaylogo": False},
        )  # fmt: skip
        caption = _safe(LEGENDS.get(kind, ""))
        yield f"<figure><figcaption>{caption}</figcaption>{_wide(picture)}</figure>"
        first = False


def _options(result: "ScanResult", kind: str) -> dict[str, Any]:
    """The needle grid shows the best head beside the answers."""
    if kind != "grid":
        return {}
    return {"head": str(ranking(result).sort_values("score", ascending=False)["name"].iloc[0])}


def _best_table(result: "ScanResult") -> str:
    heads = ranking(result).dropna(subset=["score"])
    others = [n for n in (*result.values, *result.roles) if n != "copy"]
    for name in others:
        heads[name] = result.mean(name).reshape(-1)[heads.index]
    heads = heads.sort_values("score", ascending=False, kind="stable").head(N_BEST)
    k, line = result.settings["top"], result.settings["threshold"]
    columns = ["head", "copy score", "95 % interval", f"P(top {k})", f"P(> {line:g})", "roles",
               *(METRICS[n].title if n in METRICS else n for n in others)]  # fmt: skip
    rows = [
        [r["name"], r["score"], _interval(r["low"], r["high"]), r["p_top"], r["p_above"],
         r["roles"].replace("+", ", ") or "–", *(r[n] for n in others)]
        for r in heads.to_dict("records")
    ]  # fmt: skip
    return _table(columns, rows)


def _score_table(result: "ScanResult") -> str:
    rows = [
        [m.title, m.formula, _range(m.low, m.high), m.chance, m.source]
        for m in (METRICS[n] for n in (*result.values, *result.roles) if n in METRICS)
    ]
    lead = "T, A and N are the numbers of tokens of the context, the answer and the needle."
    return f"<p>{lead}</p>" + _table(["score", "formula", "range", "chance", "source"], rows)


def _trial_table(result: "ScanResult") -> str:
    columns = ["trial", "length", "depth", "value", "generated", "forced", "exact", "rouge"]
    known = [c for c in columns if c in result.trials]
    return _table(known, result.trials[known].to_numpy(dtype=object).tolist())


def _pairs(values: dict[str, Any]) -> str:
    return _table(["name", "value"], [[k.replace("_", " "), _plain(v)] for k, v in values.items()])


def _reproduce(result: "ScanResult") -> str:
    if not (command := result.settings.get("command")):
        return ""
    return f"<h2>How to make this again</h2><pre>{_safe(command)}</pre>"


def _plain(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "–"
    return "–" if value is None or value == "" else str(value)


def _interval(low: float, high: float) -> str:
    """Both ends on one line: word joiners keep the dash from breaking it."""
    return "–" if np.isnan(low) else f"{low:.2f}\u2060–\u2060{high:.2f}"


def _range(low: float, high: float) -> str:
    return "any" if np.isinf(low) or np.isinf(high) else f"{low:g} to {high:g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_safe(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return _wide(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _wide(inner: str) -> str:
    """Scrolls by itself where the screen is narrow."""
    return f'<div class="wide">{inner}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return '<td class="n">–</td>' if np.isnan(value) else f'<td class="n">{value:.2f}</td>'
    return f"<td>{_safe(value)}</td>"


def _safe(value: Any) -> str:
    return html.escape(str(value))
