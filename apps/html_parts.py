"""Pieces that the pages share: document, figures, tables, escaping, writing a file whole.

A page is a title and parts: HTML, and pictures, which are drawn last. So a page can be a section of
another one (`nested`), and plotly.js is inside once, whatever is joined. A page opens offline,
nothing is loaded from elsewhere. Everything that comes from a model or a file goes through `safe`,
as a token may well be `<script>`.
"""

import html
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.html_style import SCRIPT, STYLE
from interp.errors import ResultError
from interp.store import cannot_write

if TYPE_CHECKING:
    import plotly.graph_objects as go

LONG = 60
"""Characters from which a cell gets room, so that it is not squeezed to a word a line."""


class Numeral(str):
    """A number already written out: aligned to the right in a table."""

    __slots__ = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its caption. If folded, it is drawn when the reader unfolds what holds it."""

    name: str
    figure: "go.Figure"
    caption: str
    folded: bool = False


Part = str | Picture
"""Of a page. All text in HTML that is not ours has been through `safe`."""


def document(title: str, body: Iterable[Part], *, generator: str = "mnemoscope") -> str:
    """The whole page; the title becomes its heading, the generator says what wrote it."""
    parts = [f"<h1>{safe(title)}</h1>", *body]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{safe(generator)}">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(_drawn(parts)) + "</body></html>\n"
    )


def nested(parts: Iterable[Part], at: str) -> Iterator[Part]:
    """Parts of a page as a section of another one, whose name is `at`.

    Headings go down a level, the upper ones get a name; names and links to them begin with `at`.
    """
    numbers = count(1)
    for part in parts:
        if isinstance(part, Picture):
            yield replace(part, name=f"{at}-{part.name}")
            continue
        text = _NAME.sub(rf"\g<0>{at}-", part)
        text = _HEADING.sub(lambda found: f"<{found[1]}h{int(found[2]) + 1}>", text)
        yield re.sub("<h3>", lambda _: f'<h3 id="{at}-part-{next(numbers)}">', text)


_NAME, _HEADING = re.compile(r' id="| href="#'), re.compile(r"<(/?)h([2-5])>")


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


def figures(draw: Callable[[str], "go.Figure"], captions: Mapping[str, str]) -> Iterator[Part]:
    """A picture for each caption.

    A figure that the result does not hold the data of is named with the reason.
    """
    for kind, caption in captions.items():
        try:
            yield Picture(f"figure-{kind}", draw(kind), caption)
        except ResultError as error:
            yield note(f"No {kind} figure: {error}")


def _drawn(parts: Iterable[Part]) -> Iterator[str]:
    """Parts as HTML; the first picture brings plotly.js with it."""
    pictures = folds = False
    for part in parts:
        if isinstance(part, str):
            folds = folds or "<details" in part
            yield part
            continue
        if not pictures:
            from plotly.offline import get_plotlyjs

            # before the picture, not in it: a folded one may be unfolded last
            yield f"<script>{get_plotlyjs()}</script>"
        pictures = True
        yield f"<template>{_picture(part)}</template>" if part.folded else _picture(part)
    if pictures or folds:
        yield SCRIPT


def _picture(part: Picture) -> str:
    """A width that the figure asks for is its largest: it shrinks where the screen is narrow."""
    width = part.figure.layout.width
    picture = part.figure.update_layout(width=None).to_html(
        full_html=False, include_plotlyjs=False, div_id=part.name,
        config={"responsive": True, "displaylogo": False},
    )  # fmt: skip
    picture = wide(f'<div style="max-width: {width:g}px">{picture}</div>' if width else picture)
    return f"<figure><figcaption>{safe(part.caption)}</figcaption>{picture}</figure>"


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
