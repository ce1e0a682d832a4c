"""Pieces that the pages share: style, document, figures, tables, escaping, writing a file whole.

A page opens offline: plotly.js is inside, once, and nothing is loaded from elsewhere. Everything
that comes from a model or a file goes through `safe`, as a token may well be `<script>`.
"""

import html
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import ResultError
from interp.store import cannot_write

if TYPE_CHECKING:
    import plotly.graph_objects as go

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
td.n { text-align: right; } td.t { min-width: 14rem; }
td.n, td:first-child { white-space: nowrap; } pre, code { font-family: ui-monospace, monospace; }
pre { background: #f2f4f7; padding: .7rem; overflow-x: auto; }
@media (max-width: 700px) { .modebar { display: none; } }
@media print { body { max-width: none; font-size: 11pt; padding: 0; } .modebar { display: none; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; } }
"""


LONG = 60
"""Characters from which a cell gets room, so that it is not squeezed to a word a line."""


class Numeral(str):
    """A number already written out: aligned to the right in a table."""

    __slots__ = ()


def document(title: str, body: Iterable[str]) -> str:
    """The whole page; the title becomes its heading."""
    parts = [f"<h1>{safe(title)}</h1>", *body]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(parts) + "</body></html>\n"
    )


def write_whole(path: str | Path, text: str) -> Path:
    """Write a file whole or not at all, and return where it is.

    Raises:
        ResultError: the file cannot be written.
    """
    path = Path(path)
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


def head(answer: str, notes: Iterable[str]) -> list[str]:
    """The answer, and what a reader of it should know."""
    return [f'<p class="answer">{safe(answer)}</p>', *(note(sentence(n)) for n in notes)]


def figures(draw: Callable[[str], "go.Figure"], captions: Mapping[str, str]) -> Iterator[str]:
    """A figure for each caption; the first brings plotly.js with it.

    A figure that the result does not hold the data of is named with the reason.
    """
    first = True
    for kind, caption in captions.items():
        try:
            figure = draw(kind)
        except ResultError as error:
            yield note(f"No {kind} figure: {error}")
            continue
        yield f"<figure><figcaption>{safe(caption)}</figcaption>{_picture(figure, kind, first)}"
        yield "</figure>"
        first = False


def _picture(figure: "go.Figure", kind: str, first: bool) -> str:
    """A width that the figure asks for is its largest: it shrinks where the screen is narrow."""
    width = figure.layout.width
    picture = figure.update_layout(width=None).to_html(
        full_html=False, include_plotlyjs=first, div_id=f"figure-{kind}",
        config={"responsive": True, "displaylogo": False},
    )  # fmt: skip
    return wide(f'<div style="max-width: {width:g}px">{picture}</div>' if width else picture)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers are written with two decimals."""
    top = "".join(f"<th>{safe(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return wide(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return table(["name", "value"], [[k.replace("_", " "), _plain(v)] for k, v in values.items()])


def made_by(settings: Mapping[str, Any], provenance: Any) -> list[str]:
    """Settings, provenance, and the command that makes the result again, where it is known."""
    parts = ["<h2>Settings</h2>", pairs(settings), "<h2>Provenance</h2>", pairs(vars(provenance))]
    if command := settings.get("command"):
        parts.append(f"<h2>How to make this again</h2><pre>{safe(command)}</pre>")
    return parts


def note(text: str) -> str:
    """A line that stands out."""
    return f'<p class="note">{safe(text)}</p>'


def wide(inner: str) -> str:
    """Scrolls by itself where the screen is narrow."""
    return f'<div class="wide">{inner}</div>'


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def safe(value: Any) -> str:
    """Text of a model or a file, as text of a page."""
    return html.escape(str(value))


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        value = Numeral("–" if np.isnan(value) else f"{value:z.2f}")
    text = str(value)
    kind = "n" if isinstance(value, Numeral) else "t" if len(text) > LONG else ""
    mark = f' class="{kind}"' if kind else ""
    return f"<td{mark}>{safe(text)}</td>"


def _plain(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "–"
    return "–" if value is None or value == "" else str(value)
