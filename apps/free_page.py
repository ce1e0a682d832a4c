"""An intervention of one's own as a reader sees it: page, figure, and a verdict in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from apps import html_parts as h
from apps.result_kinds import KINDS
from apps.validation_parts import (
    ROLES,
    VERDICTS,
    band,
    between,
    effect_words,
    hover,
    labelled_rows,
    points,
    set_title,
)
from interp.errors import ResultError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from circuits.free_result import FreeEdits

CAPTIONS = {
    "trials": "Every question that the model answers: as it is, under the intervention on the "
    "heads named, and (grey, 95 %) under the same on matched random heads."
}


def page(result: "FreeEdits") -> str:
    """The page's HTML."""
    return h.document(title(result), body(result))


def title(result: "FreeEdits") -> str:
    """What the page is about."""
    return f"An intervention on heads of {result.provenance.model}"


def answer(result: "FreeEdits") -> str:
    """The verdict, with the figures that it rests on."""
    found = result.finding
    heads = ", ".join(result.settings["heads"])
    return (
        f"{h.sentence(found.verdict)} {h.sentence(found.claim)} On {heads}: "
        f"{'; '.join(effect_words(found.effect))}. {h.sentence(found.reason)}"
    )


def body(result: "FreeEdits") -> Iterator[h.Part]:
    """The page without its title."""
    yield from h.head(answer(result), (*KINDS["free-edits"].caveats, *result.notes))
    yield from ("<h2>Figure</h2>", *h.figures(result.figure, CAPTIONS))
    code = h.safe(result.settings["intervention"])
    yield from ("<h2>The intervention</h2>", f"<pre>{code}</pre>")
    columns = ["needle", "value", "before", "after", "mean of random sets"]
    rows = [[t["needle"], t["value"], t["before"], t["after"], t["random"]] for t in result.trials]
    yield from ("<h2>Questions</h2>", h.table(columns, rows))
    rest = {k: v for k, v in result.settings.items() if k != "intervention"}
    yield from h.made_by(rest, result.provenance)


def draw(result: "FreeEdits", kind: str) -> "go.Figure":
    """The figure by name.

    Raises:
        ResultError: another name.
    """
    import plotly.graph_objects as go

    if kind not in CAPTIONS:
        raise ResultError(f"unknown figure {kind!r}; known: {', '.join(CAPTIONS)}")
    effect = result.finding.effect
    order = sorted(range(len(result.trials)), key=lambda i: result.trials[i]["after"])
    trials = [result.trials[i] for i in order]
    low, high = np.percentile(np.array(result.controls)[:, order], [2.5, 97.5], axis=0)
    labels, rows = [t["needle"] for t in trials], list(range(len(trials)))
    fig = go.Figure(band(
        rows, low, high, name="matched random heads, 95 %",
        customdata=[hover(n, f"random heads {between(*c)} {effect.unit}") for n, c in zip(
            labels, zip(low, high, strict=True), strict=True)],
    ))  # fmt: skip
    marks = {
        "before": ("as it is", ROLES["random"]._replace(symbol="line-ns-open", colour="#15202B")),
        "after": ("heads named", VERDICTS["supported"]),
    }
    for name, (words, mark) in marks.items():
        values = [t[name] for t in trials]
        said = [hover(t["needle"], f"{words}: {t[name]:.2f} {effect.unit}") for t in trials]
        fig.add_trace(points(values, rows, mark, name=words, customdata=said))
    labelled_rows(fig, labels)
    fig.update_xaxes(title=f"{effect.metric}, {effect.unit}")
    fig.update_layout(height=190 + 24 * len(trials))
    set_title(fig, result, result.finding.claim, result.finding.verdict)  # type: ignore[arg-type]
    return fig
