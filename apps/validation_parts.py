"""Pieces that the figures of a validation share: words, colours, bands of random sets, titles.

Colours are Okabe and Ito's, darkened where they colour words; nothing is said by colour alone.
"""

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from apps import figure_parts as parts
from circuits.case_metrics import METRICS
from circuits.effects import Effect, Finding
from circuits.statistics import Interval, cluster_interval
from circuits.validation_result import DENOISE
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.validation_result import ValidationResult

WIDTH = 58
"""Characters of a line of a title, so that it fits a narrow screen."""
WHISKERS = "whiskers: 95 % bootstrap interval over needles"


class Mark(NamedTuple):
    """How something is drawn: words, colour, Plotly's symbol, the same symbol as a character."""

    words: str
    colour: str
    symbol: str
    sign: str


VERDICTS = {
    "supported": Mark("supported", "#0072B2", "circle", "●"),
    "inconclusive": Mark("inconclusive", "#5B6570", "diamond", "◆"),
    "unsupported": Mark("unsupported", "#B3400B", "x", "✖"),
}
ROLES = {
    "top": Mark("top", "#0072B2", "circle", "●"),
    "bottom": Mark("bottom", "#009E73", "triangle-down", "▼"),
    "sink": Mark("sink-heavy", "#E69F00", "square", "■"),
    "random": Mark("random", "#7A8794", "line-ns", "|"),
}

SHIFTS = {"bottom": -0.18, "sink": 0.18, "top": 0.0}
"""How far from its row's middle a role is drawn, so that marks of one row do not hide each other;
the last one is drawn in front."""

# -- words ------------------------------------------------------------------------------------


def run_name(finding: Finding) -> str:
    """The name of a finding's run in the table of sets."""
    effect = finding.effect
    return DENOISE if effect.direction == "denoising" else effect.ablation


def run_words(run: str) -> str:
    """A run in words: an ablation, or the outputs put back."""
    return "put back into the twin prompt" if run == DENOISE else f"{run} ablation"


def claim_word(finding: Finding) -> str:
    """The word that the direction of the run allows."""
    return "sufficient" if finding.effect.direction == "denoising" else "necessary"


def role_name(result: "ValidationResult", role: str) -> str:
    """A role with its number of heads, such as `top 10`."""
    return f"{ROLES[role].words} {result.settings['top']}"


def candidates(result: "ValidationResult") -> str:
    """The heads that were tested, in words."""
    one = len(result.heads) == 1
    return f"head {result.heads[0]}" if one else f"the {role_name(result, 'top')} heads"


def metric_unit(result: "ValidationResult", metric: str | None = None) -> tuple[str, str]:
    """A metric in words, and its unit; that of the verdicts unless another is named."""
    return METRICS[metric or result.settings["metric"]]


def questions(result: "ValidationResult") -> str:
    """What a mean is over: the questions that count."""
    return counted(int(result.kept.sum()), result.cases["needle"][result.kept].nunique())


def counted(n_trials: int, n_clusters: int) -> str:
    """Numbers of questions and needles."""
    return f"{n_trials} questions about {n_clusters} needles"


def counted_effects(effects: Iterable[Effect]) -> str:
    """The same for effects, which need not have been measured on as many."""
    sizes = [(e.n_trials, e.n_clusters) for e in effects]
    trials, needles = (
        " to ".join(str(n) for n in dict.fromkeys((min(column), max(column))))
        for column in zip(*sizes, strict=True)
    )
    return f"{trials} questions about {needles} needles"


def between(low: float, high: float) -> str:
    """Both ends of an interval, kept on one line."""
    return "–" if np.isnan(low) else f"{low:z.2f}\u00a0to\u00a0{high:z.2f}"


def signed(value: float) -> str:
    """A change with its sign; no sign where it rounds to zero; a dash where there is none."""
    if np.isnan(value):
        return "–"
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def p_words(p: float) -> str:
    """A p, to two digits."""
    return "–" if np.isnan(p) else f"{p:.2g}"


def with_interval(value: float, low: float, high: float, unit: str = "") -> str:
    """A number, its unit, and its 95 % interval."""
    return f"{signed(value)} {unit}".rstrip() + f" (95 % interval {between(low, high)})"


def effect_words(effect: Effect) -> list[str]:
    """All numbers of an effect, a line each."""
    unit = effect.unit
    return [
        with_interval(effect.effect, effect.low, effect.high, unit),
        f"from {effect.baseline:.2f} to {effect.treated:.2f} {unit}",
        f"{effect.n_draws} random sets: {signed(effect.control - effect.baseline)} {unit} "
        f"({between(*band_of(effect))})",
        f"p {p_words(effect.p)}",
        counted(effect.n_trials, effect.n_clusters),
    ]


def wrapped(text: str, *, width: int = WIDTH) -> str:
    """Text on lines of that width, safe in a figure."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(text, width))


def hover(*lines: str) -> str:
    """What hovering says: the first line is bold; all are safe."""
    first, *rest = (wrapped(line) for line in lines)
    return "<br>".join([f"<b>{first}</b>", *rest])


def negative_words(result: "ValidationResult", frame: "pd.DataFrame") -> str:
    """How many heads the answer gains by losing, and how sure that is."""
    found, alpha = negative_heads(frame), result.settings["alpha"]
    sure = int((found["p_holm"] <= alpha).sum())
    return (
        f"{len(found)} of {len(frame)} heads are negative: ablated alone "
        f"({result.settings['alone_ablation']} ablation at the answer rows) the answer gains, with "
        f"a false-discovery rate of {alpha:g}; {sure} of them also pass Holm's correction."
    )


# -- numbers ----------------------------------------------------------------------------------


def band_of(effect: Effect) -> tuple[float, float]:
    """Change of the metric that 95 % of the matched random sets lie between."""
    return effect.control_low - effect.baseline, effect.control_high - effect.baseline


def negative_heads(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Single heads without which the answer gains, the largest gain first."""
    return frame[frame["kind"] == "negative"].sort_values("effect", ascending=False)


def role_effects(result: "ValidationResult", role: str, runs: Sequence[str]) -> list[Effect | None]:
    """Effects of a control set in runs; None where it was not run."""
    out: list[Effect | None] = []
    for name in runs:
        try:
            out.append(result.effect(name, role=role))
        except ResultError:
            out.append(None)
    return out


def mean_interval(values: Any, clusters: Any, *, seed: int) -> Interval:
    """Mean and interval of the numbers that are there; no interval for a single cluster."""
    values, clusters = np.asarray(values, dtype=float), np.asarray(clusters)
    known = ~np.isnan(values)
    values, clusters = values[known], clusters[known]
    if len(set(clusters)) < 2:
        mean = float(values.mean()) if len(values) else float("nan")
        return Interval(mean, float("nan"), float("nan"), len(values), len(set(clusters)))
    return cluster_interval(values, clusters, seed=seed)


# -- traces and titles ------------------------------------------------------------------------


def band(y: Any, low: Any, high: Any, **options: Any) -> go.Bar:
    """A grey bar behind each row: what matched random sets do."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    look = {"color": parts.GREY, "line": {"color": ROLES["random"].colour, "width": 1.5}}
    return go.Bar(
        x=high - low, base=low, y=y, orientation="h", width=0.62, marker=look,
        hovertemplate="%{customdata}<extra></extra>", **options,
    )  # fmt: skip


def points(x: Any, y: Any, mark: Mark, *, size: float = 10, **options: Any) -> go.Scatter:
    """Marks of one kind; `error_x` gives them whiskers."""
    look = {"color": mark.colour, "symbol": mark.symbol, "size": size}
    return go.Scatter(
        x=x, y=y, mode="markers", marker=look,
        hovertemplate="%{customdata}<extra></extra>", **options,
    )  # fmt: skip


def labelled_rows(fig: go.Figure, labels: Sequence[str], **where: Any) -> None:
    """Rows from top to bottom with safe labels; row i lies at y = i."""
    fig.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=list(labels), showgrid=False, zeroline=False,
        range=[len(labels) - 0.4, -0.6], automargin=True, **where,
    )  # fmt: skip
    fig.update_xaxes(zeroline=False, **where)
    # a shape, unlike a zero line, is kept in view
    fig.add_vline(x=0, line={"color": parts.INK, "width": 2}, layer="below", **where)


def set_title(
    fig: go.Figure, result: "ValidationResult", title: str, *below: str, panels: bool = False
) -> None:
    """Title with the model, what is beneath it, and a legend below the figure."""
    name = wrapped(f"{result.provenance.model}: {title}", width=44)
    text = wrapped("; ".join(below))
    top = 78 + 26 * name.count("<br>") + 17 * text.count("<br>") + (30 if panels else 0)
    parts.frame(fig, name, text, top=top, bottom=112)
    fig.update_layout(
        legend={
            "orientation": "h", "x": 0.01, "y": 0, "xref": "container", "yref": "container",
            "xanchor": "left", "yanchor": "bottom",
        }
    )  # fmt: skip
