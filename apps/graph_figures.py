"""The figures of a function-token run, with Plotly; pure functions of the saved result."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from apps import figure_parts as parts
from circuits.class_tables import OTHERS
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    from circuits.effects_result import FeatureEffects
    from circuits.graph_result import FeatureGraph, StationResult

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7f8c8d"
CLASS_COLOURS = {
    "function word": BLUE, "punctuation": ORANGE, "digit": GREEN, "markup": PINK,
    "word-internal": "#E69F00", "content": GREY,
}  # fmt: skip
"""Colour-blind-safe; classes that are not named here are grey too."""
MOST_POINTS = 20_000


def draw(
    result: "FeatureGraph", kind: str = "coverage", *, station: str = "", **options: Any
) -> go.Figure:
    """One figure of a run; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure, or no such dictionary.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind][0](result, result.station(station), **options)


def coverage(result: "FeatureGraph", s: "StationResult") -> go.Figure:
    """Features reached by the most frequent tokens, beside the blind null and content tokens."""
    t = s.tables["coverage"]
    names = [f"{r + 1}<br>{_shown(x)}" for r, x in enumerate(t["text"])]
    fig = go.Figure()
    fig.add_scatter(
        x=[*names, *names[::-1]], y=[*t["content_high"], *t["content_low"][::-1]], fill="toself",
        fillcolor="rgba(127,140,141,.25)", line={"width": 0}, hoverinfo="skip",
        name="random content tokens, 95 %",
    )  # fmt: skip
    for column, name, colour, dash in (
        ("of_alive", "these tokens", BLUE, "solid"),
        ("null_high", "same positions, blind to the token", ORANGE, "dash"),
        ("content_mean", "random content tokens, same positions", GREY, "dot"),
    ):
        fig.add_scatter(
            x=names, y=t[column], name=name, mode="lines+markers",
            line={"color": colour, "dash": dash}, hovertemplate="%{y:.1%}<extra>" + name,
        )  # fmt: skip
    fig.update_yaxes(title="share of features that fired", tickformat=".0%", rangemode="tozero")
    fig.update_xaxes(title="most frequent tokens, cumulative")
    return _titled(fig, result, s, "features reached by the most frequent tokens",
                   f"rule for an edge: {result.settings['rule']}")  # fmt: skip


def sensitivity(result: "FeatureGraph", s: "StationResult") -> go.Figure:
    """The headline under other rules for an edge."""
    t = s.tables["sensitivity"]
    fig = go.Figure()
    top = result.settings["top"]
    for column, name, colour in (
        (f"top_{top}", f"the {top} most frequent tokens", BLUE), ("top_1", "the first", GREEN),
    ):  # fmt: skip
        fig.add_bar(y=t["title"], x=t[column], name=name, orientation="h", marker_color=colour)
    fig.add_scatter(
        y=t["title"], x=t[f"null_{top}_high"], mode="markers", name=f"blind null of the {top}",
        marker={"symbol": "line-ns-open", "size": 16, "color": ORANGE, "line": {"width": 3}},
    )  # fmt: skip
    fig.update_xaxes(title="share of features that fired", tickformat=".0%")
    fig.update_yaxes(autorange="reversed")
    fig.update_layout(barmode="group", height=560)
    fig = _titled(fig, result, s, "coverage under other rules for an edge", "")
    return fig.update_layout(margin={"l": 210})


def classes(result: "FeatureGraph", s: "StationResult", *, m: int = 30) -> go.Figure:
    """Degrees at equal numbers of occurrences, by class.

    Raises:
        ResultError: no token occurs so often.
    """
    t = s.tables["classes"]
    t = t[(t["m"] == m) & (t["n"] > 1)]
    if t.empty:
        raise ResultError(f"no class has two tokens with {m} occurrences")
    names = [f"{g} ({n})" for g, n in zip(t["group"], t["n"], strict=True)]
    fig = go.Figure(go.Scatter(
        x=t["median"], y=names, mode="markers", marker={"size": 11, "color": BLUE},
        error_x={"type": "data", "symmetric": False, "array": t["high"] - t["median"],
                 "arrayminus": t["median"] - t["low"], "color": GREY},
        customdata=t[["ratio", "p_above"]],
        hovertemplate="%{y}: median %{x:.0f}<br>ratio to the other tokens %{customdata[0]:.2f}"
        "<br>chance to be above one of them %{customdata[1]:.2f}<extra></extra>",
    ))  # fmt: skip
    reference = t["median"][t["group"] == OTHERS]
    if len(reference):
        fig.add_vline(x=float(reference.iloc[0]), line={"dash": "dash", "color": ORANGE})
    fig.update_xaxes(title=f"distinct features in {m} occurrences (median, quartiles)")
    fig.update_yaxes(autorange="reversed")
    fig = _titled(
        fig,
        result,
        s,
        "degree at equal occurrences, by class of token",
        "number of tokens in brackets; dashed: tokens that are no function tokens",
    )
    return fig.update_layout(margin={"l": 210}, height=520)  # fmt: skip


def amounts(result: "FeatureGraph", s: "StationResult") -> go.Figure:
    """Coverage as the text grows."""
    t = s.tables["amounts"]
    top = result.settings["top"]
    fig = go.Figure()
    for column, name, colour, dash in (
        (f"top_{top}", f"the {top} most frequent tokens", BLUE, "solid"),
        (f"null_{top}", "same positions, blind", BLUE, "dash"),
        ("top_1", "the first", GREEN, "solid"), ("null_1", "same positions, blind", GREEN, "dash"),
        ("once", "edges that rest on one activation", GREY, "dot"),
    ):  # fmt: skip
        fig.add_scatter(x=t["positions"], y=t[column], name=name, mode="lines+markers",
                        line={"color": colour, "dash": dash})  # fmt: skip
    fig.update_xaxes(title="positions counted", type="log")
    fig.update_yaxes(title="share", tickformat=".0%", rangemode="tozero")
    return _titled(fig, result, s, "coverage as the text grows", "a share of the features alive")


def degrees(result: "FeatureGraph", s: "StationResult") -> go.Figure:
    """Degree against frequency, by class of token."""
    t = result.tokens.head(MOST_POINTS)
    degree = np.diff(s.counts.indptr)[t["id"]]
    count = np.asarray(s.counts.occurrences)[t["id"]]
    fig = go.Figure()
    for name, part in t.assign(degree=degree, count=count).groupby("class"):
        part = part[(part["degree"] > 0) & (part["count"] > 0)]
        fig.add_scattergl(
            x=part["count"], y=part["degree"], mode="markers", name=str(name),
            marker={"size": 5, "opacity": 0.6, "color": CLASS_COLOURS.get(str(name), "#bbb")},
            text=[_shown(x) for x in part["text"]],
            hovertemplate="%{text}: %{x:,} times, %{y:,} features<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="positions of the token", type="log")
    fig.update_yaxes(title="features it activated (degree)", type="log")
    d = dict(zip(s.tables["degrees"]["quantity"], s.tables["degrees"]["value"], strict=True))
    slope, r2 = d["slope of log degree on log frequency"], d["R2 of that slope"]
    return _titled(fig, result, s, "degree against frequency",
                   f"slope {slope:.2f}, R2 {r2:.2f}: most of the degree is frequency")  # fmt: skip


def hubs(result: "FeatureGraph", s: "StationResult", *, n: int = 30) -> go.Figure:
    """The tokens that reach most at equal occurrences, with intervals.

    Raises:
        ResultError: not measured.
    """
    t = s.tables["hubs"]
    if "ratio" not in t:
        raise ResultError(str(t["reason"].iloc[0]))
    t = t.head(n)
    fig = go.Figure(go.Scatter(
        x=t["ratio"], y=[_shown(x) for x in t["text"]], mode="markers",
        marker={"size": 10, "color": [CLASS_COLOURS.get(c, "#bbb") for c in t["class"]],
                "symbol": np.where(t["hub"], "circle", "circle-open")},
        error_x={"type": "data", "symmetric": False, "array": t["high"] - t["ratio"],
                 "arrayminus": t["ratio"] - t["low"], "color": GREY},
        customdata=t[["class", "q", "occurrences"]],
        hovertemplate="%{y} (%{customdata[0]}, %{customdata[2]:,} times): ratio %{x:.2f}, "
        "q %{customdata[1]:.3g}<extra></extra>",
    ))  # fmt: skip
    fig.add_vline(x=1, line={"dash": "dash", "color": ORANGE})
    fig.update_xaxes(title="features at equal occurrences, ratio to the other tokens", type="log")
    fig.update_yaxes(autorange="reversed", type="category", dtick=1)
    fig = _titled(
        fig,
        result,
        s,
        "tokens that reach most at equal occurrences",
        "filled: a hub at a false-discovery rate of 5 %; 95 % intervals over blocks",
    )
    return fig.update_layout(height=120 + 22 * len(t))  # fmt: skip


def bipartite(
    result: "FeatureGraph", s: "StationResult", *, n_tokens: int = 20, n_features: int = 120,
    rule: str = "30%",
) -> go.Figure:  # fmt: skip
    """Tokens and features side by side, both in the order of their first singular vector."""
    graph = result.to_networkx(s.key, rule=rule, n_tokens=n_tokens, n_features=n_features)
    tokens = [n for n, kind in graph.nodes(data="bipartite") if kind == 0]
    features = [n for n, kind in graph.nodes(data="bipartite") if kind == 1]
    matrix = np.zeros((len(tokens), max(1, len(features))))
    for a, b in graph.edges:
        token, feature = (a, b) if a.startswith("t") else (b, a)
        matrix[tokens.index(token), features.index(feature)] = 1.0
    left, _, right = np.linalg.svd(matrix - matrix.mean(), full_matrices=False)
    place = dict(zip([tokens[i] for i in np.argsort(left[:, 0])], _spread(len(tokens)),
                     strict=True))  # fmt: skip
    place |= dict(zip([features[i] for i in np.argsort(right[0])], _spread(len(features)),
                      strict=False))  # fmt: skip
    fig = go.Figure()
    x = [v for _ in graph.edges for v in (0, 1, None)]
    y = [v for a, b in graph.edges for v in ((place[a], place[b], None) if a.startswith("t")
                                             else (place[b], place[a], None))]  # fmt: skip
    fig.add_scattergl(x=x, y=y, mode="lines", line={"width": 0.6, "color": "rgba(0,114,178,.25)"},
                      hoverinfo="skip", showlegend=False)  # fmt: skip
    for nodes, side, colour, where in ((tokens, 0, ORANGE, "middle left"),
                                       (features, 1, BLUE, "middle right")):  # fmt: skip
        label = [_shown(graph.nodes[n]["label"]) for n in nodes]
        fig.add_scatter(
            x=[side] * len(nodes), y=[place[n] for n in nodes], textposition=where,
            mode="markers+text" if side == 0 else "markers", text=label, showlegend=False,
            marker={"color": colour, "size": 8 if side == 0 else 5},
            hovertext=[f"{x}: {graph.degree[n]} edges" for n, x in zip(nodes, label, strict=True)],
            hoverinfo="text",
        )  # fmt: skip
    fig.update_xaxes(visible=False, range=[-0.35, 1.1])
    fig.update_yaxes(visible=False)
    return _titled(
        fig,
        result,
        s,
        "the most frequent tokens and the features they activate most",
        f"edge: {rule}; {graph.number_of_edges()} edges",
    ).update_layout(height=640)


def effects(result: "FeatureEffects") -> go.Figure:
    """What taking features away costs, by class of the token and distance from the prediction."""
    fig = go.Figure()
    rows = result.rows
    for place, colour in (("function", BLUE), ("content", ORANGE), ("random", GREY)):
        own = rows[rows["place"] == place]
        names: list[str] = []
        means: dict[str, list[float]] = {"treated": [], "random direction": []}
        for name, part in own.groupby("distance", sort=False):
            names.append(str(name))
            for column in means:
                value = part[column].map(np.mean) if column != "treated" else part[column]
                means[column].append(float((value - part["baseline"]).mean()))
        fig.add_bar(x=names, y=means["treated"], name=f"{place} token", marker_color=colour,
                    offsetgroup=place)  # fmt: skip
        fig.add_scatter(
            x=names, y=means["random direction"], mode="markers", name=f"random direction, {place}",
            marker={"symbol": "diamond", "color": colour, "line": {"width": 1, "color": "#222"}},
        )  # fmt: skip
    fig.add_hline(y=0, line={"color": "#222", "width": 1})
    fig.update_xaxes(title="distance of the token from the prediction")
    fig.update_yaxes(title="change of the next token's log-probability, nats")
    parts.frame(
        fig, f"{_shown(result.provenance.model)}: features taken away",
        f"{result.station}; {rows['trial'].nunique()} predictions; diamonds: random directions of "
        "the same length", top=90,
    )  # fmt: skip
    return fig


Figure = Callable[..., go.Figure]
FIGURES: dict[str, tuple[Figure, str]] = {
    "coverage": (coverage, "Features reached by the most frequent tokens, with its controls"),
    "sensitivity": (sensitivity, "The same under other rules for an edge"),
    "amounts": (amounts, "The same as the text grows"),
    "classes": (classes, "Degree at equal occurrences, by class of token"),
    "degrees": (degrees, "Degree against frequency"),
    "hubs": (hubs, "Tokens that reach most at equal occurrences"),
    "bipartite": (bipartite, "The most frequent tokens and their features"),
}


# -- helpers ----------------------------------------------------------------------------------


def _shown(text: str) -> str:
    """Text as text: Plotly reads tags, but shows a quote's entity as it is."""
    return html.escape(str(text), quote=False)


def _titled(
    fig: go.Figure, result: "FeatureGraph", s: "StationResult", title: str, below: str
) -> go.Figure:
    name = _shown(result.provenance.model)
    facts = f"{s.key}, {s.counts.n_features:,} features, {s.counts.n_positions:,} positions"
    parts.frame(fig, f"{name}: {title}", "; ".join(filter(None, (facts, below))), top=90)
    return fig


def _spread(n: int) -> list[float]:
    return [float(v) for v in np.linspace(0, 1, max(n, 1))][:n]
