"""Figures of re-activation, with Plotly; pure functions of a trace or a saved result."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from apps import figure_parts as parts
from circuits.prompt_trace import NEW, REACTIVATED
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    from circuits.prompt_trace import PromptTrace
    from circuits.reactivation_result import ReactivationResult

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7f8c8d"
CARRIER_COLOURS = {"function": BLUE, "content": ORANGE}


def draw(result: "ReactivationResult", kind: str = "index", **options: Any) -> go.Figure:
    """One figure of a corpus; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure. ResultError: what it shows was not measured.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind][0](result, **options)


def prompt_map(trace: "PromptTrace", *, n_features: int = 24) -> go.Figure:
    """Positions by features: where features of content tokens are active again.

    The re-activated features of largest attribution; colour is the activation over the feature's
    largest in the prompt, a ring marks a re-activation, function tokens are in colour.

    Raises:
        ResultError: no feature came back.
    """
    again = trace.features[trace.features["kind"] == REACTIVATED]
    if again.empty:
        raise ResultError("no feature of a content token came back in this prompt")
    size = again["attribution"].abs().groupby(again["feature"]).sum()
    chosen = [int(f) for f in size.nlargest(n_features).index]
    rows = trace.features[trace.features["feature"].isin(chosen)]
    first = rows.groupby("feature")["position"].min()
    chosen.sort(key=lambda f: int(first[f]))
    line = {f: i for i, f in enumerate(chosen)}
    shape = (len(chosen), len(trace.positions))
    y, x = rows["feature"].map(line).to_numpy(), rows["position"].to_numpy()
    value, words = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    largest = rows.groupby("feature")["activation"].transform("max")
    value[y, x] = rows["activation"] / largest
    words[y, x] = [
        f"{html.escape(trace.name(f))}<br>activation {a:.3g}<br>attribution {g:+.3g}<br>{k}"
        for f, a, g, k in zip(rows["feature"], rows["activation"], rows["attribution"],
                              rows["kind"], strict=True)
    ]  # fmt: skip
    fig = go.Figure(go.Heatmap(
        z=value, customdata=words, colorscale="Blues", zmin=0, zmax=1, xgap=1, ygap=1,
        hoverongaps=False, hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "activation,<br>share of largest"}},
    ))  # fmt: skip
    ring = (rows["kind"] == REACTIVATED).to_numpy()
    fig.add_scatter(
        x=x[ring], y=y[ring], mode="markers", name=REACTIVATED, hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 9, "color": ORANGE, "line": {"width": 1.6}},
    )  # fmt: skip
    labels = [
        f'<span style="color:{BLUE}"><b>{t}</b></span>' if f else t
        for t, f in zip(map(html.escape, trace.positions["text"]), trace.positions["function"],
                        strict=True)
    ]  # fmt: skip
    fig.update_xaxes(tickvals=list(range(shape[1])), ticktext=labels, tickangle=-60, showgrid=False)
    fig.update_yaxes(tickvals=list(range(shape[0])), autorange="reversed", showgrid=False,
                     ticktext=[html.escape(trace.name(f)[:40]) for f in chosen])  # fmt: skip
    about = trace.about
    parts.frame(
        fig, f"{html.escape(about['model'])}: features of content tokens that come back",
        f"{about['site']}; next token {html.escape(about['target_text'])} (p = {about['p']:.3f}); "
        "function tokens in blue; rings: active at a content token before", top=90, bottom=110,
    )  # fmt: skip
    width = max(760, 320 + 24 * shape[1])
    fig.update_layout(height=230 + 22 * shape[0], width=width, margin={"l": 250},
                      showlegend=False)  # fmt: skip
    return fig


def index(result: "ReactivationResult") -> go.Figure:
    """The index by control, and by class of the carrier, with intervals over documents."""
    controls, classes = result.tables["index"], result.tables["classes"]
    fig = go.Figure()
    for source, colour in zip(controls["source"].unique(), (GREY, BLUE), strict=False):
        part = controls[controls["source"] == source]
        fig.add_bar(
            x=[f"function tokens,<br>{c}" for c in part["control"]], y=part["index"],
            name=f"function tokens, {source}", marker_color=colour, customdata=part[["observed",
            "expected"]], error_y=parts.whiskers(part["low"], part["index"], part["high"]),
            hovertemplate="%{x}: %{y:.2f}<br>observed %{customdata[0]:.3f}, expected "
            "%{customdata[1]:.3f}<extra></extra>",
        )  # fmt: skip
    part = classes[~classes["class"].isin(["function token", "other token"])]
    fig.add_bar(
        x=part["class"], y=part["index"], name="classes, shuffled labels", marker_color=GREEN,
        error_y=parts.whiskers(part["low"], part["index"], part["high"]), customdata=part["n"],
        hovertemplate="%{x}: %{y:.2f}, %{customdata:,} re-activations<extra></extra>",
    )  # fmt: skip
    fig.add_hline(y=1, line={"dash": "dash", "color": ORANGE})
    fig.update_yaxes(title="re-activations, observed over expected", rangemode="tozero")
    fig.update_layout(barmode="group", height=520)
    return _titled(fig, result, "where features of content tokens come back",
                   "dashed: chance; 95 % intervals over documents")  # fmt: skip


def distances(result: "ReactivationResult") -> go.Figure:
    """The index by the distance back to the nearest source."""
    t = result.tables["distances"]
    fig = go.Figure(go.Bar(
        x=t["distance"], y=t["index"], marker_color=BLUE, customdata=t["n"],
        error_y=parts.whiskers(t["low"], t["index"], t["high"]),
        hovertemplate="%{x} tokens: %{y:.2f}, %{customdata:,} re-activations<extra></extra>",
    ))  # fmt: skip
    fig.add_hline(y=1, line={"dash": "dash", "color": ORANGE})
    fig.update_xaxes(title="tokens back to the nearest content token with the feature",
                     type="category")  # fmt: skip
    fig.update_yaxes(title="share at function tokens, over shuffled labels", rangemode="tozero")
    return _titled(fig, result, "by distance to the source", "95 % intervals over documents")


def attribution(result: "ReactivationResult") -> go.Figure:
    """Mean size of attributions of re-activated and new features, by carrier and distance."""
    t = _table(result, "attribution")
    fig = go.Figure()
    for (carrier, kind), part in t.groupby(["carrier", "kind"]):
        fig.add_bar(
            x=part["apart"], y=part["mean"], name=f"{kind}, {carrier} token",
            marker={"color": CARRIER_COLOURS[str(carrier)],
                    "pattern": {"shape": "/" if kind == NEW else ""}},
            error_y=parts.whiskers(part["low"], part["mean"], part["high"]),
            customdata=part[["features", "signed"]],
            hovertemplate="%{x}: %{y:.3g} a feature, signed %{customdata[1]:.3g}, "
            "%{customdata[0]:,} features<extra></extra>",
        )  # fmt: skip
    fig.update_layout(barmode="group")
    order = ["last", "1-4", "5-12", "13-32", "33 on"]
    fig.update_xaxes(title="tokens from the carrier to the last one", type="category",
                     categoryorder="array", categoryarray=order)  # fmt: skip
    fig.update_yaxes(title="mean |gradient x activation| of a feature", type="log")
    return _titled(fig, result, "what features do to the next token",
                   f"{result.text['predictions']} predictions of content tokens")  # fmt: skip


def carriers(result: "ReactivationResult", *, n: int = 20) -> go.Figure:
    """The heads that bring most of the re-activated features; retrieval heads in colour."""
    t = _table(result, "heads")
    t = t[t["carrier"] == "all"].head(n)
    fig = go.Figure(go.Bar(
        x=t["share"], y=t["head"], orientation="h", customdata=t[["weight", "top"]],
        marker_color=np.where(t["retrieval"], ORANGE, BLUE),
        hovertemplate="%{y}: %{x:.1%} of the activation, attention %{customdata[0]:.2f}, largest "
        "of all heads in %{customdata[1]:.1%}<extra></extra>",
    ))  # fmt: skip
    fig.update_xaxes(title="share of the activation that comes from the sources", tickformat=".0%")
    fig.update_yaxes(autorange="reversed", type="category", dtick=1)
    fig = _titled(fig, result, "heads that bring re-activated features", "orange: retrieval heads")
    return fig.update_layout(height=140 + 22 * len(t))


Figure = Callable[..., go.Figure]
FIGURES: dict[str, tuple[Figure, str]] = {
    "index": (index, "Where features of content tokens come back, against each control"),
    "distances": (distances, "The same by distance to the source"),
    "attribution": (attribution, "What re-activated and new features do to the next token"),
    "carriers": (carriers, "Heads that bring re-activated features"),
}


# -- helpers ----------------------------------------------------------------------------------


def _table(result: "ReactivationResult", name: str) -> Any:
    if name not in result.tables:
        raise ResultError(f"{name} was not measured; run it with predictions")
    return result.tables[name]


def _titled(fig: go.Figure, result: "ReactivationResult", title: str, below: str) -> go.Figure:
    name = html.escape(result.provenance.model)
    facts = f"{result.station}; {result.text['positions']:,} positions; {below}"
    parts.frame(fig, f"{name}: {title}", facts, top=90)
    return fig
