"""The figures of a validation, with Plotly: what ablating heads does, beside matched controls.

Changes are treated minus baseline, in the metric's unit, the sign kept: to the left of 0 the answer
loses. Grey is what matched random sets do (95 % of them). Figures are returned, never shown. Every
title says which model, how many questions, the metric, and where the ablation acted.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import figure_parts as parts
from apps import validation_parts as own
from apps.validation_details import repair, score_effect, specificity
from circuits.effects import Finding
from circuits.validation_result import DENOISE
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.validation_result import ValidationResult


def draw(result: "ValidationResult", kind: str = "effects", **options: Any) -> go.Figure:
    """One figure of a validation; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure, or no such metric.
        ResultError: the result does not hold what the figure shows.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind](result, **options)


# -- effects ----------------------------------------------------------------------------------


def effects(result: "ValidationResult") -> go.Figure:
    """One row a finding: effect with interval, band of random sets, control sets, verdict."""
    groups = _panels(result)
    heights = [len(found) for found in groups.values()]
    fig = make_subplots(
        len(groups), 1, subplot_titles=list(groups), row_heights=heights,
        vertical_spacing=1.5 / (sum(heights) + 2),
    )  # fmt: skip
    named: set[str] = set()
    for row, found in enumerate(groups.values(), start=1):
        for trace in _rows(result, found):
            trace.showlegend = trace.name not in named
            named.add(trace.name)
            fig.add_trace(trace, row, 1)
        own.labelled_rows(fig, [_label(f) for f in found], row=row, col=1)
    words, unit = own.metric_unit(result)
    own.set_title(
        fig, result, f"effect of {own.candidates(result)}",
        f"{words}, change in {unit}",
        f"mean over {own.counted_effects(f.effect for f in result.findings)}",
        f"scope {result.settings['scope']}", own.WHISKERS,
        "grey: 95 % of the matched random sets", panels=True,
    )  # fmt: skip
    fig.update_xaxes(title=f"change, {unit}", row=len(groups), col=1)
    return fig.update_layout(height=340 + 46 * (sum(heights) + len(groups)), bargap=0)


def _panels(result: "ValidationResult") -> dict[str, list[Finding]]:
    """Findings by what was done to the heads."""
    found = result.findings
    if not found:
        why = "; ".join(result.missing().values())
        raise ResultError(f"no effect could be measured: {why or 'nothing was run'}")
    back = [f for f in found if f.effect.direction == "denoising"]
    away = [f for f in found if f not in back]
    groups = {"taken away: harm is to the left": away, "put back: recovery is to the right": back}
    return {title: some for title, some in groups.items() if some}


def _label(finding: Finding) -> str:
    """The run, and its verdict in words, symbol and colour."""
    mark = own.VERDICTS[finding.verdict]
    verdict = f'<span style="color:{mark.colour}">{mark.sign} {mark.words}</span>'
    return f"<b>{own.wrapped(own.run_name(finding))}</b><br>{verdict}"


def _rows(result: "ValidationResult", found: list[Finding]) -> list[go.Bar | go.Scatter]:
    """Traces of a panel, back to front: random sets, control sets, the candidates."""
    low, high = zip(*(own.band_of(f.effect) for f in found), strict=True)
    words = [_random_words(f) for f in found]
    controls = [_control_marks(result, role, found) for role in ("bottom", "sink")]
    verdicts = [_verdict_marks(verdict, found) for verdict in own.VERDICTS]
    return [
        own.band(list(range(len(found))), low, high, customdata=words, name="random sets"),
        *(t for t in (*controls, *verdicts) if t.x),
    ]


def _control_marks(result: "ValidationResult", role: str, found: list[Finding]) -> go.Scatter:
    """A control set in each row where it was run."""
    name, runs = own.role_name(result, role), [own.run_name(f) for f in found]
    pairs = zip(runs, own.role_effects(result, role, runs), strict=True)
    some = [(i, run, e) for i, (run, e) in enumerate(pairs) if e is not None]
    words = [own.hover(f"{name}, {run}", *own.effect_words(e)) for _, run, e in some]
    return own.points(
        [e.effect for _, _, e in some], [i + own.SHIFTS[role] for i, _, _ in some],
        own.ROLES[role], size=8, name=name, customdata=words,
    )  # fmt: skip


def _verdict_marks(verdict: str, found: list[Finding]) -> go.Scatter:
    """The candidates in each row that has this verdict, with intervals."""
    mark, here = own.VERDICTS[verdict], [i for i, f in enumerate(found) if f.verdict == verdict]
    some = [found[i].effect for i in here]
    x, low, high = ([getattr(e, end) for e in some] for end in ("effect", "low", "high"))
    words = [_finding_words(found[i]) for i in here]
    return own.points(
        x, here, mark, size=11, name=f"{found[0].effect.name}: {verdict}", customdata=words,
        error_x=parts.whiskers(low, x, high, colour=mark.colour),
    )  # fmt: skip


def _random_words(finding: Finding) -> str:
    effect = finding.effect
    return own.hover(
        f"{effect.n_draws} matched random sets",
        f"mean {own.signed(effect.control - effect.baseline)} {effect.unit}",
        f"95 % of them: {own.between(*own.band_of(effect))}",
    )


def _finding_words(finding: Finding) -> str:
    effect = finding.effect
    return own.hover(
        finding.claim, f"verdict: {finding.verdict}", *own.effect_words(effect),
        f"p after Holm's correction {own.p_words(effect.p_holm)}",
    )  # fmt: skip


# -- other figures of the main runs -----------------------------------------------------------


def curve(result: "ValidationResult", metric: str | None = None) -> go.Figure:
    """Dose and response: the metric by the number of heads ablated, for each role."""
    table, (words, unit) = result.curve(metric), own.metric_unit(result, metric)
    if table.empty:
        raise ResultError(f"no curve: no set has the {words} on every question that counts")
    fig = go.Figure()
    for role in ("random", "bottom", "top"):
        part = table[table["role"] == role].sort_values("k")
        if role == "random" and len(part):
            fig.add_traces(_curve_band(part))
        if len(part):
            fig.add_trace(_curve_line(part, own.ROLES[role], unit))
    start = float(result.start[result.kept, result.metrics.index(metric or _metric(result))].mean())
    first, sizes = result.settings["ablations"][0], sorted(table["k"].unique())
    edge = 0.06 + 0.04 * np.log10(sizes[-1] / sizes[0])
    ends = np.log10([sizes[0], sizes[-1]]) + [-edge, edge]
    fig.add_scatter(
        x=10**ends, y=[start, start], mode="lines", name=f"no ablation ({start:.2f})",
        line={"color": parts.INK, "dash": "dash", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    own.set_title(
        fig, result, "dose and response", f"{words}, {unit}",
        f"{first} ablation, scope {result.settings['scope']}",
        f"mean over {own.questions(result)}", "grey: 95 % of the matched random sets",
    )  # fmt: skip
    fig.update_xaxes(
        title="heads ablated (log scale)", type="log", tickvals=sizes,
        ticktext=[str(k) for k in sizes], range=ends.tolist(),
    )  # fmt: skip
    fig.update_yaxes(title=f"{metric or _metric(result)}, {unit}", zeroline=False)
    return fig.update_layout(height=540)


def _metric(result: "ValidationResult") -> str:
    return str(result.settings["metric"])


def _curve_line(part: Any, mark: own.Mark, unit: str) -> go.Scatter:
    words = [
        own.hover(f"{mark.words} {r.k}", f"{r.value:.2f} {unit}", *_many(r))
        for r in part.itertuples()
    ]
    symbol = "diamond" if mark.words == "random" else mark.symbol
    return go.Scatter(
        x=part["k"], y=part["value"], mode="lines+markers", name=mark.words, customdata=words,
        line={"color": mark.colour, "width": 2}, marker={"symbol": symbol, "size": 9},
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _many(row: Any) -> list[str]:
    return [f"{row.n} sets, 95 % of them {own.between(row.low, row.high)}"] if row.n > 1 else []


def _curve_band(part: "pd.DataFrame") -> list[go.Scatter]:
    look = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low = go.Scatter(x=part["k"], y=part["low"], name="random low", **look)
    fill = {"fill": "tonexty", "fillcolor": "rgba(122, 135, 148, 0.28)"}
    return [low, go.Scatter(x=part["k"], y=part["high"], name="random high", **look, **fill)]


def alone(result: "ValidationResult", metric: str | None = None) -> go.Figure:
    """Layer by head: what ablating each head alone does; the candidates outlined with ranks."""
    frame, (words, unit) = result.alone_frame(metric), own.metric_unit(result, metric)
    if frame.empty:
        raise ResultError(f"no single head has the {words} on every question that counts")
    shape = result.alone.shape[:2]
    values, text = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    values[frame["layer"], frame["head"]] = frame["effect"]
    text[frame["layer"], frame["head"]] = [_alone_words(r, unit) for r in frame.itertuples()]
    largest = float(np.nanmax(np.abs(values))) or 1.0
    scale = (parts.DIVERGING, -largest, largest)
    title = f"change, {unit}"
    fig = go.Figure(
        parts.heads_map(values, text.reshape(-1).tolist(), scale=scale, name="alone", title=title)
    )
    if np.isnan(values).any():
        fig.add_trace(parts.hatched_cells(np.isnan(values)))
    chosen = [h for h in result.heads if h.layer < shape[0] and h.head < shape[1]]
    at = np.array([values[h.layer, h.head] for h in chosen])
    parts.mark_ranks(fig, chosen, parts.ink_on(at, scale))
    own.set_title(
        fig, result, "each head ablated alone", f"{words}, change in {unit}",
        f"{result.settings['alone_ablation']} ablation at the answer rows",
        f"mean over {own.questions(result)}", "outlined: the candidates with their ranks",
    )  # fmt: skip
    parts.head_axes(fig, shape)
    return fig.update_layout(margin={"b": 60}, height=fig.layout.height + 30)


def _alone_words(row: Any, unit: str) -> str:
    score = f"score {row.score:.3f}" if hasattr(row, "score") else "no score"
    return own.hover(
        row.name, own.with_interval(row.effect, row.low, row.high, unit),
        f"p {own.p_words(row.p)}, p (Holm, all heads) {own.p_words(row.p_holm)}", score,
    )  # fmt: skip


def agreement(result: "ValidationResult") -> go.Figure:
    """Ablations by kind of set: whether the effect depends on what ablating means."""
    names = [own.run_name(f) for f in result.findings if own.run_name(f) != DENOISE]
    if not names:
        raise ResultError("no ablation has an effect that could be measured; none to compare")
    roles = ("top", "bottom", "sink")
    columns = [own.role_effects(result, role, names) for role in roles]
    found = [[np.nan if e is None else e.effect for e in column] for column in columns]
    top = [e for e in columns[0] if e is not None]
    z = np.array([*found, [e.control - e.baseline for e in top]]).T
    largest = float(np.nanmax(np.abs(z))) or 1.0
    words, unit = own.metric_unit(result)
    text = [[own.signed(v) for v in row] for row in z]
    fig = go.Figure(
        go.Heatmap(
            z=z, zmin=-largest, zmax=largest, colorscale=parts.DIVERGING, text=text,
            x=[*(own.role_name(result, r).replace(" ", "<br>") for r in roles), "random<br>mean"],
            y=[own.wrapped(n) for n in names], texttemplate="%{text}", xgap=2, ygap=2,
            textfont={"size": 14}, showscale=False, hoverongaps=False,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    own.set_title(
        fig, result, "effect under each ablation", f"{words}, change in {unit}",
        f"mean over {own.counted_effects(top)}", f"scope {result.settings['scope']}",
        f"random: mean of {top[0].n_draws} matched sets",
    )  # fmt: skip
    fig.update_xaxes(showgrid=False, side="top")
    fig.update_yaxes(autorange="reversed", showgrid=False, title="ablation")
    margin = {"t": fig.layout.margin.t + 34, "b": 30}
    return fig.update_layout(height=180 + 44 * len(names), margin=margin, width=700)


FIGURES: dict[str, Callable[..., go.Figure]] = {
    "effects": effects,
    "curve": curve,
    "alone": alone,
    "repair": repair,
    "score_effect": score_effect,
    "specificity": specificity,
    "agreement": agreement,
}
