"""Figures of the mixture that was fitted to a binding study, and the look of all binding figures.

Colours are Okabe and Ito's, one a mechanism wherever it is drawn, with a symbol and a dash of its
own. What a run does not hold is said, with the reason, and nothing is drawn in its place.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import figure_parts as parts
from apps.validation_parts import Mark, between, hover, wrapped
from circuits.binding_labels import POINTERS
from circuits.case_level import BETWEEN, COMPONENTS, WITHIN
from circuits.mixture import MixtureFit
from circuits.mixture_table import mechanism_weights
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.binding_result import BindingResult, StudyResult

MARKS = {
    "positional": Mark("positional", "#0072B2", "circle", "●"),
    "lexical": Mark("lexical", "#D55E00", "diamond", "◆"),
    "reflexive": Mark("reflexive", "#009E73", "square", "■"),
    "no_effect": Mark("no effect", "#7A8794", "line-ns", "|"),
    "near_positional": Mark("near positional", "#8CC5EA", "circle-open", "○"),
    "mixed": Mark("mixed", "#CC79A7", "cross", "+"),
    "ambiguous": Mark("ambiguous", "#F0E442", "hexagram", "*"),
    "copied": Mark("copied", parts.INK, "x", "✖"),
    "other": Mark("other", "#DDE1E6", "star", "☆"),
}
"""How a label is drawn; the mechanisms in all figures alike."""
DASHES = {"positional": "solid", "lexical": "dash", "reflexive": "dot"}
SPLITS = {
    "jss": Mark("cells fitted", parts.INK, "circle", "●"),
    "jss_cells": Mark("cells held out", parts.MARK, "diamond", "◆"),
    "jss_positions": Mark("positions held out", "#E69F00", "square", "■"),
}
"""Columns of the table of variants: the cells on which a similarity was measured."""
GATES = {"positional": "peak", "lexical": "w_lex", "reflexive": "w_ref"}
"""Mechanism: the name of its estimates."""
SURE = "95 % interval over entity sets"
LINE = 52
"""Characters of a line of a title, so that it fits a narrow screen."""

# -- what was fitted --------------------------------------------------------------------------


def not_measured(reason: str) -> ResultError:
    """What is said in place of a figure."""
    return ResultError(f"not measured: {reason.rstrip('.')}")


def measured(study: "StudyResult") -> "StudyResult":
    """The study, refused with its verdict where nothing was patched."""
    if study.layer is None:
        raise not_measured(study.verdict)
    return study


def part_of(study: "StudyResult", name: str) -> Any:
    """A part of the mixture's description, such as `ceiling`.

    Raises:
        ResultError: it holds a reason instead, or nothing.
    """
    mixture: dict[str, Any] = measured(study).conclusion.get("mixture") or {}
    found = mixture.get(name)
    if not found:
        raise not_measured(mixture.get("reason") or f"this run has no {name.replace('_', ' ')}")
    if isinstance(found, str):
        raise not_measured(found)
    if isinstance(found, dict) and set(found) <= {"reason", "verdict"}:
        raise not_measured(found.get("reason") or found["verdict"])
    return found


def part_or_reason(study: "StudyResult", name: str) -> tuple[Any, str]:
    """The same; where there is none, None and the words for it."""
    try:
        return part_of(study, name), ""
    except ResultError as error:
        return None, f"{name.replace('_', ' ')} {error}"


def intervals_of(study: "StudyResult") -> tuple[dict[tuple[str, int | None], Any], str]:
    """Estimates by name and group, and why none has an interval, or else what it is."""
    found, reason = part_or_reason(study, "intervals")
    if found is None:
        return {}, reason
    sure = {(e["name"], e["index"]): e for e in found["estimates"]}
    return sure, f"no intervals: {found['reason']}" if found.get("reason") else SURE


def number(value: float | None) -> float:
    """A number of a result file, which has no word for NaN."""
    return float("nan") if value is None else float(value)


# -- look -------------------------------------------------------------------------------------


def study_name(study: "StudyResult") -> str:
    """Task, target, what the question names, number of groups."""
    filler = f", {study.filler} sentences between groups" if study.filler else ""
    asked = " and ".join(study.asked)
    return f"{study.task}, {study.target} by {asked}, n = {study.n}{filler}"


def full_name(result: "BindingResult", study: "StudyResult") -> str:
    """Model and study, as titles begin."""
    return f"{result.provenance.model}, {study_name(study)}"


def titled(
    fig: go.Figure, of: str, finding: str, *below: str, height: int, panels: bool = False
) -> go.Figure:
    """Title: what was studied and, on lines of its own, the finding; legend below the figure."""
    title = "<br>".join(wrapped(words, width=LINE) for words in (of, finding))
    text = wrapped("; ".join(words for words in below if words), width=76)
    top = 82 + 27 * title.count("<br>") + 17 * text.count("<br>") + (26 if panels else 0)
    bottom = 118
    parts.frame(fig, title, text, top=top, bottom=bottom)
    legend = {"orientation": "h", "xref": "container", "yref": "container", "x": 0.01, "y": 0,
              "xanchor": "left", "yanchor": "bottom"}  # fmt: skip
    fig.update_annotations(font_size=13)
    return fig.update_layout(legend=legend, height=top + height + bottom)


def group_axis(fig: go.Figure, n: int, title: str, **where: Any) -> None:
    """Groups from 1, as a reader counts them."""
    ticks = {"dtick": 1 if n <= 24 else 5, "tick0": 0, "showgrid": False, "zeroline": False}
    fig.update_xaxes(title=title, range=[0.6, n + 0.4], **ticks, **where)


def rows_axis(fig: go.Figure, labels: Sequence[str], **where: Any) -> None:
    """Rows from top to bottom with safe labels; row i lies at y = i."""
    fig.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=list(labels), showgrid=False, zeroline=False,
        range=[len(labels) - 0.4, -0.6], automargin=True, **where,
    )  # fmt: skip


def marks(x: Any, y: Any, mark: Mark, words: list[str], **options: Any) -> go.Scatter:
    """Marks of one kind with hover texts; on a line where a `dash` is given.

    `sure_x` or `sure_y`: both ends of their intervals, of which some or all may be NaN.
    """
    look: dict[str, Any] = {"name": mark.words, "mode": "markers"}
    if dash := options.pop("dash", ""):
        look |= {"mode": "lines+markers", "line": {"color": mark.colour, "dash": dash, "width": 2}}
    for axis, middle in (("x", x), ("y", y)):
        low, high = options.pop(f"sure_{axis}", (np.nan, np.nan))
        if not np.isnan(low).all():
            look[f"error_{axis}"] = parts.whiskers(low, middle, high, colour=mark.colour)
    dot = {"color": mark.colour, "symbol": mark.symbol, "size": options.pop("size", 9)}
    return go.Scatter(
        x=x, y=y, marker=dot, customdata=words, hovertemplate="%{customdata}<extra></extra>",
        **look | options,
    )  # fmt: skip


def ribbon(x: Any, low: Any, high: Any, colour: str, **options: Any) -> go.Scatter:
    """A band between two curves, where both are known."""
    x, low, high = (np.asarray(v, dtype=float) for v in (x, low, high))
    known = ~(np.isnan(low) | np.isnan(high))
    rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return go.Scatter(
        x=[*x[known], *x[known][::-1]], y=[*high[known], *low[known][::-1]], fill="toself",
        mode="none", fillcolor=f"rgba({rgb},{options.pop('alpha', 0.17)})", hoverinfo="skip",
        **options,
    )  # fmt: skip


def _ends(sure: dict[tuple[str, int | None], Any], name: str, n: int) -> tuple[np.ndarray, ...]:
    """Both ends of the intervals of a name's estimates, by group."""
    found = [sure.get((name, i), {}) for i in range(n)]
    low, high = (np.array([number(e.get(end)) for e in found]) for end in ("low", "high"))
    return low, high


# -- figures ----------------------------------------------------------------------------------


def width(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """How far the positional pointer spreads around i_P, by group, with its interval."""
    fit = MixtureFit(**part_of(study, "fit"))
    if fit.w_pos is None:
        raise not_measured(f"the variant {fit.variant} has no width")
    sure, why = intervals_of(study)
    x, sigma, (low, high) = np.arange(1, fit.n + 1), fit.sigma(), _ends(sure, "sigma", fit.n)
    words = [
        hover(f"group {i}", f"sigma {s:.2f} groups", f"95 % interval {between(a, b)}")
        for i, s, a, b in zip(x, sigma, low, high, strict=True)
    ]
    fig, mark = go.Figure(), MARKS["positional"]
    if not np.isnan(low).all():
        fig.add_trace(ribbon(x, low, high, mark.colour, name="95 % interval"))
    fig.add_trace(marks(x, sigma, mark, words, dash="solid", name=f"sigma, kernel {fit.kernel}"))
    cut = np.nanmax([*sigma, *high]) > 2 * fit.n
    titled(
        fig, full_name(result, study),
        f"the positional pointer spreads over {sigma.min():.1f} to {sigma.max():.1f} groups, "
        f"widest at group {sigma.argmax() + 1}",
        f"standard deviation of the kernel, convention {fit.kernel}, fitted by {fit.loss}",
        f"band: {why}" if why == SURE else why,
        f"w_pos {fit.w_pos:.1f}; near 0 a width means nothing",
        "axis cut: wider than all groups is flat" if cut else "", height=300,
    )  # fmt: skip
    group_axis(fig, fit.n, "group that the donor asked for, i_P")
    limits = {"range": [0, fit.n]} if cut else {"rangemode": "tozero"}
    return fig.update_yaxes(title="sigma, groups", zeroline=False, **limits)


def weights(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """What each mechanism adds to the logit of the group that it points to, by group."""
    fit = MixtureFit(**part_of(study, "fit"))
    table, _ = part_or_reason(study, "weights")
    table = vars(mechanism_weights(fit)) if table is None else table
    sure, why = intervals_of(study)
    fig, means = go.Figure(), {}
    for name, shift in zip(POINTERS, (-0.12, 0.0, 0.12), strict=True):
        values = np.array([number(v) for v in table[name]])
        if not np.isnan(values).all():
            means[name] = float(np.nanmean(values))
            fig.add_trace(_gates(name, values, sure, shift))
    ranked = sorted(means, key=lambda name: means[name], reverse=True)
    titled(
        fig, full_name(result, study),
        f"logits on average: {', '.join(f'{name} {means[name]:.1f}' for name in ranked)}",
        f"positional: the kernel's peak, w_pos K(i | i), {fit.kernel}, fitted by {fit.loss}",
        f"whiskers: {why}" if why == SURE else why,
        "" if ("peak", 0) in sure else "none for the peak", height=320,
    )  # fmt: skip
    group_axis(fig, fit.n, "group that is pointed to")
    ink = {"zeroline": True, "zerolinecolor": parts.INK}
    return fig.update_yaxes(title="logits", rangemode="tozero", **ink)


def _gates(name: str, values: np.ndarray, sure: dict[Any, Any], shift: float) -> go.Scatter:
    """One mechanism's logits with whiskers, a little aside of the others'."""
    low, high = _ends(sure, GATES[name], len(values))
    words = [
        hover(f"{name}, group {i}", f"{v:.2f} logits", f"95 % interval {between(a, b)}")
        for i, (v, a, b) in enumerate(zip(values, low, high, strict=True), start=1)
    ]
    x = np.arange(1, len(values) + 1) + shift
    return marks(x, values, MARKS[name], words, dash=DASHES[name], sure_y=(low, high))


def variants(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Similarity of every variant of the mixture, beside the most that cases so few allow."""
    table = part_of(study, "variants")
    ceiling, why = part_or_reason(study, "ceiling")
    fig, edge = go.Figure(), [-0.6, len(table) - 0.4]
    for name, colour in (("one_hot", "#E69F00"), ("matched", "#0072B2")) if ceiling else ():
        mean, low, high = ceiling[name]
        words = f"ceiling, {name.replace('_', '-')} cases {mean:.2f} ({between(low, high)})"
        more = max(0.0, 0.003 - (high - low) / 2)  # else a sure ceiling is too thin to see
        ends = ([low - more, high + more], edge[:1] * 2, edge[1:] * 2)
        fig.add_trace(ribbon(*ends, colour, alpha=0.35, name=words))
    for row in table:
        if row["variant"] == "uniform":
            grey = Mark(f"uniform {row['jss']:.2f}", "#7A8794", "line-ns", "|")
            fig.add_trace(marks([row["jss"]] * 2, edge, grey, [grey.words] * 2, dash="dot"))
    for column, shift in zip(SPLITS, (-0.22, 0.0, 0.22), strict=True):
        fig.add_trace(_similarities(table, column, shift))
    titled(
        fig, full_name(result, study), _variant_words(table, ceiling),
        "1 - Jensen-Shannon divergence in bits; 1: equal",
        why or "ceiling: what the mixture itself reaches on as many cases, 95 % of simulations",
        height=40 * len(table) + 30,
    )  # fmt: skip
    rows_axis(fig, [wrapped(row["variant"]) for row in table])
    seen = [v for trace in fig.data for v in trace.x if not np.isnan(v)]
    limits = [min(seen) - 0.02, max(seen) + 0.02]
    return fig.update_xaxes(title="Jensen-Shannon similarity", zeroline=False, range=limits)


def _similarities(table: list[dict[str, Any]], column: str, shift: float) -> go.Scatter:
    mark, values = SPLITS[column], [number(row[column]) for row in table]
    words = [
        hover(f"{row['variant']}, {mark.words}", f"similarity {v:.3f}",
              "converged" if row["converged"] else "the fit did not come to rest")
        for row, v in zip(table, values, strict=True)
    ]  # fmt: skip
    return marks(values, np.arange(len(table)) + shift, mark, words)


def _variant_words(table: list[dict[str, Any]], ceiling: dict[str, Any] | None) -> str:
    jss = {row["variant"]: row["jss"] for row in table}
    most = f" (ceiling {ceiling['matched'][0]:.2f})" if ceiling else ""
    told = [f"{name} {jss[name]:.2f}" for name in ("positional only", "uniform") if name in jss]
    return f"similarity {jss['full']:.2f}{most}; {', '.join(told)}"


def cases(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Whether single prompts hold the mixture, and which mechanism answered at each position."""
    found = part_of(study, "case_level")
    owners, why = part_or_reason(study, "responsibilities")
    titles = ["entropy of the answer", "which mechanism answered"]
    fig = make_subplots(
        1 if owners is None else 2, 1, subplot_titles=titles[: 1 if owners is None else 2],
        row_heights=[110] if owners is None else [110, 270], vertical_spacing=0.24,
    )  # fmt: skip
    _entropies(fig, found)
    if owners is not None:
        fig.add_traces(_owners(owners["by_position"]), rows=2, cols=1)
        group_axis(fig, study.n, "group that the donor asked for, i_P", row=2, col=1)
        fig.update_yaxes(title="share of cases", range=[0, 1.001], row=2, col=1)
        why = f"{owners['clear']:.0%} of the cases are clearly one mechanism's"
    return titled(
        fig, full_name(result, study), f"{found['verdict']}: {found['reason']}",
        f"{found['n_cases']} cases in {found['n_groups']} {found['pooled']}",
        f"{found['one_hot']:.0%} of the cases give one answer .9 or more", why,
        height=130 if owners is None else 500, panels=True,
    ).update_layout(barmode="stack", bargap=0.25, legend_traceorder="normal")  # fmt: skip


def _entropies(fig: go.Figure, found: dict[str, Any]) -> None:
    """Entropy inside a prompt and of the mean; behind them the ends that decide."""
    whole = found["entropy_of_mean"]
    values = [whole, found["mean_entropy"]]
    fig.add_bar(
        x=values, y=["of the mean over prompts", "inside a prompt, mean"], orientation="h",
        width=0.5, marker={"color": ["#7A8794", parts.INK]}, text=[f"{v:.2f}" for v in values],
        showlegend=False, hovertemplate="%{y}: %{x:.3f} bits<extra></extra>", row=1, col=1,
    )  # fmt: skip
    for low, high in ((0, BETWEEN * whole), (WITHIN * whole, whole)):
        fig.add_vrect(x0=low, x1=high, fillcolor=parts.GREY, opacity=0.35, line_width=0,
                      layer="below", row=1, col=1)  # fmt: skip
    fig.update_yaxes(automargin=True, row=1, col=1)
    fig.update_xaxes(title="bits; grey: between prompts (left), within prompts (right)", row=1,
                     col=1, zeroline=False, rangemode="tozero")  # fmt: skip


def _owners(by_position: list[list[float | None]]) -> list[go.Bar]:
    """Stacked shares of the mechanisms at each position."""
    labels = (*POINTERS, "no_effect", "other")
    x, out = list(range(1, len(by_position) + 1)), []
    for k, (component, label) in enumerate(zip(COMPONENTS, labels, strict=True)):
        words = "own answer" if component == "own" else component
        out.append(go.Bar(
            x=x, y=[number(row[k]) if row else float("nan") for row in by_position], name=words,
            marker={"color": MARKS[label].colour},
            hovertemplate=f"group %{{x}}, {words}: %{{y:.0%}}<extra></extra>",
        ))  # fmt: skip
    return out


def behaviour(told: dict[str, Any]) -> list[go.Scatter]:
    """Probability of the right answer with nothing patched: measured, and by the mixture."""
    out, looks = [], ((parts.INK, "square", "solid"), (parts.MARK, "diamond", "dash"))
    for key, (colour, symbol, dash) in zip(("measured", "predicted"), looks, strict=True):
        y = [number(v) for v in told[key]]
        mark = Mark(f"probability, {key}", colour, symbol, "")
        words = [hover(f"group {i}", f"{key} {v:.2f}") for i, v in enumerate(y, start=1)]
        out.append(marks(list(range(1, len(y) + 1)), y, mark, words, dash=dash))
    return out


def behaviour_words(told: dict[str, Any]) -> str:
    """How far the two lie apart, beside a prediction that knows the mean alone."""
    if told["error"] is None:
        return "the mixture predicts no group"
    rank = "" if told["rank"] is None else f", rank correlation {told['rank']:.2f}"
    return f"the mixture errs by {told['error']:.2f}, a constant by {told['flat']:.2f}{rank}"
