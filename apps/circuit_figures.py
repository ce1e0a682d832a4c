"""Figures of patching and of circuits, with Plotly; pure functions of saved results.

Layers on y, layer 0 at the bottom; effects on a diverging scale centred at 0. Channels differ by
colour and by dash, so that neither has to be told apart alone.
"""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import figure_parts as parts
from circuits.circuit_result import LOGITS
from interp.errors import ResultError, UnknownNameError
from probes.spreads import CLASSES

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from circuits.circuit_result import CircuitResult
    from circuits.patch_result import PatchResult

CHANNEL = {"q": ("#0072B2", "solid"), "k": ("#D55E00", "dash"), "v": ("#009E73", "dot"),
           "direct": ("#5B6570", "solid")}  # fmt: skip
RANKING = {"attribution": ("#0072B2", "circle"), "retrieval score": ("#D55E00", "diamond"),
           "random": ("#7A8794", "line-ns")}  # fmt: skip


def draw_patch(result: "PatchResult", kind: str = "sites", **options: Any) -> go.Figure:
    """One figure of a patching run.

    Raises:
        UnknownNameError: no such figure.
        ResultError: the run does not hold what it shows.
    """
    if kind not in PATCH_FIGURES:
        raise UnknownNameError("figure", kind, PATCH_FIGURES)
    return PATCH_FIGURES[kind](result, **options)


def draw_circuit(result: "CircuitResult", kind: str = "graph", **options: Any) -> go.Figure:
    """One figure of a circuit; raises as `draw_patch` does."""
    if kind not in CIRCUIT_FIGURES:
        raise UnknownNameError("figure", kind, CIRCUIT_FIGURES)
    return CIRCUIT_FIGURES[kind](result, **options)


# -- patching ---------------------------------------------------------------------------------


def patched_sites(result: "PatchResult") -> go.Figure:
    """Share of the gap between the two prompts that a patch closes, by site, layer and class."""
    frame = result.to_frame("share")
    frame = frame[frame["site"] != "z"]
    if frame.empty:
        raise ResultError("only heads were patched; ask for resid_pre, attn_out or mlp_out")
    sites, ways = list(dict.fromkeys(frame["site"])), list(dict.fromkeys(frame["direction"]))
    fig = make_subplots(
        len(ways), len(sites), shared_yaxes=True, shared_xaxes=True,
        horizontal_spacing=0.04, vertical_spacing=0.13,
        subplot_titles=[f"{w}: {s}" for w in ways for s in sites],
    )  # fmt: skip
    for i, way in enumerate(ways):
        for j, site in enumerate(sites):
            part = frame[(frame["direction"] == way) & (frame["site"] == site)]
            fig.add_trace(_share_map(part), i + 1, j + 1)
    n = result.rows["needle"].nunique()
    parts.frame(
        fig, f"{html.escape(result.provenance.model)}: what patches carry the answer",
        f"share of the logit difference closed, 1 = all of it; mean over {n} needles", top=110,
    )  # fmt: skip
    fig.update_yaxes(type="category", showgrid=False)
    fig.update_yaxes(title="layer", col=1)
    fig.update_xaxes(tickangle=-40, showgrid=False)
    return fig.update_layout(
        height=190 + len(ways) * (110 + 17 * frame["layer"].nunique()),
        coloraxis=parts.score_axis("share", -1, 1, parts.DIVERGING),
    )


def _share_map(part: "pd.DataFrame") -> go.Heatmap:
    wide = part.pivot_table(index="layer", columns="class", values="effect")
    wide = wide[[c for c in CLASSES if c in wide.columns]]
    told = {
        (r["layer"], r["class"]): f"95 % interval {r['low']:.2f} to {r['high']:.2f}"
        for r in part.to_dict("records")
    }
    text = [[told.get((layer, c), "") for c in wide.columns] for layer in wide.index]
    return go.Heatmap(
        z=wide.to_numpy(), x=list(wide.columns), y=[str(x) for x in wide.index],
        coloraxis="coloraxis", xgap=1, ygap=1, customdata=text,
        hovertemplate="layer %{y}, %{x}: %{z:.2f}<br>%{customdata}<extra></extra>",
    )  # fmt: skip


def screen_map(result: "PatchResult") -> go.Figure:
    """The gradient screen of all heads, noising and denoising, with its rank agreement."""
    if not result.screen:
        raise ResultError("heads were not screened; add z to the sites")
    ways = list(result.screen)
    maps = {w: result.screen[w].mean(0).sum(0) for w in ways}
    fig = make_subplots(1, len(ways), shared_yaxes=True, horizontal_spacing=0.05,
                        subplot_titles=ways)  # fmt: skip
    largest = max(float(np.abs(m).max()) for m in maps.values()) or 1.0
    for col, way in enumerate(ways, 1):
        fig.add_trace(
            go.Heatmap(
                z=maps[way], coloraxis="coloraxis", xgap=1, ygap=1,
                hovertemplate="L%{y}H%{x}: %{z:.3f} logits<extra></extra>",
            ),
            1, col,
        )  # fmt: skip
    told = ", ".join(
        f"{name} {'undefined' if rho is None else f'{rho:.2f}'}"
        for name, rho in result.agreement.items()
    )
    parts.frame(
        fig, f"{html.escape(result.provenance.model)}: attribution screen of all heads",
        f"first-order effect on the logit difference<br>rank agreement with exact patches: {told}",
        top=130,
    )  # fmt: skip
    n_layers, n_heads = maps[ways[0]].shape
    fig.update_xaxes(title="head", **parts.counted_ticks(n_heads))
    fig.update_yaxes(**parts.counted_ticks(n_layers), range=[-0.5, n_layers - 0.5])
    fig.update_yaxes(title="layer", col=1)
    axis = parts.score_axis("logits", -largest, largest, parts.DIVERGING)
    return fig.update_layout(height=230 + 17 * n_layers, coloraxis=axis)


def confirmed(result: "PatchResult") -> go.Figure:
    """Screen against exact patch, head by head and question by question."""
    heads = result.rows[result.rows["site"] == "z"]
    if heads.empty:
        raise ResultError("heads were not patched; add z to the sites")
    fig = go.Figure()
    marks = {"screen": ("#0072B2", "circle"), "random": ("#D55E00", "x")}
    for (way, picked), part in heads.groupby(["direction", "picked"]):
        colour, symbol = marks[str(picked)]
        fig.add_trace(
            go.Scatter(
                x=part["estimate"], y=part["logit_diff"], mode="markers",
                name=f"{way}, picked by {picked}",
                marker={"color": colour, "size": 7, "opacity": 0.7,
                        "symbol": symbol if way == "noising" else f"{symbol}-open"},
                text=[f"L{a}H{b}, {html.escape(str(n))}" for a, b, n in
                      zip(part["layer"], part["head"], part["needle"], strict=True)],
                hovertemplate="%{text}<br>screen %{x:.2f}, exact %{y:.2f}<extra></extra>",
            )
        )  # fmt: skip
    both = heads[["estimate", "logit_diff"]].to_numpy()
    ends = [float(both.min()), float(both.max())]
    line = {"color": parts.GREY, "dash": "dash"}
    fig.add_trace(
        go.Scatter(x=ends, y=ends, mode="lines", name="screen = exact", line=line, hoverinfo="skip")
    )
    parts.frame(
        fig, f"{html.escape(result.provenance.model)}: screen against exact patches of heads",
        "change of the logit difference; a point is a head in a question", top=90,
    )  # fmt: skip
    return fig.update_layout(height=520, xaxis_title="attribution screen, logits",
                             yaxis_title="exact patch, logits")  # fmt: skip


# -- circuits ---------------------------------------------------------------------------------


def circuit_graph(result: "CircuitResult") -> go.Figure:
    """The graph: layers upward, receivers outlined, edges by channel, width by effect."""
    graph = result.graph()
    place = _places(graph)
    fig = go.Figure()
    shown: set[str] = set()
    for a, b, facts in graph.edges(data=True):
        for trace in _edge(a, b, facts, place, shown):
            fig.add_trace(trace)
    fig.add_trace(_nodes(graph, place))
    n = result.node_rows["needle"].nunique()
    parts.frame(
        fig, _title(result, "what feeds"),
        f"edges that pass the minimality test; width: effect on the logit difference; {n} needles",
        top=90,
    )  # fmt: skip
    fig.update_xaxes(visible=False)
    fig.update_yaxes(title="layer", showgrid=True, zeroline=False)
    return fig.update_layout(height=680, legend={"title": {"text": "through"}})


def _title(result: "CircuitResult", words: str) -> str:
    return f"{html.escape(result.provenance.model)}: {words} {', '.join(result.settings['heads'])}"


def _places(graph: "nx.DiGraph") -> dict[str, tuple[float, float]]:
    """x by order within a band of three layers, so that neighbours do not lie on each other."""
    rows: dict[int, list[str]] = {}
    for name, facts in sorted(graph.nodes(data=True), key=lambda n: (n[1]["layer"], n[0])):
        rows.setdefault(facts["layer"] // 3, []).append(name)
    place = {}
    for band, names in rows.items():
        for i, name in enumerate(names):
            x = (i - (len(names) - 1) / 2) * 1.4 + (0.35 if band % 2 else -0.35)
            place[name] = (x, float(graph.nodes[name]["layer"]))
    place[LOGITS] = (0.0, place[LOGITS][1] + 1)
    return place


def _edge(
    a: str, b: str, facts: dict[str, Any], place: dict[str, tuple[float, float]], shown: set[str]
) -> list[go.Scatter]:
    """A line for each channel, side by side; and its words in the middle."""
    out = []
    channels = facts["channel"].split(",")
    for i, channel in enumerate(channels):
        colour, dash = CHANNEL[channel]
        shift = 0.08 * (i - (len(channels) - 1) / 2)
        (xa, ya), (xb, yb) = place[a], place[b]
        words = (f"{html.escape(a)} → {html.escape(b)} ({channel})<br>{facts['effect']:.2f} "
                 f"({facts['low']:.2f} to {facts['high']:.2f})")  # fmt: skip
        out.append(
            go.Scatter(
                x=[xa + shift, (xa + xb) / 2 + shift, xb + shift], y=[ya, (ya + yb) / 2, yb],
                mode="lines", name=channel, legendgroup=channel, showlegend=channel not in shown,
                line={"color": colour, "dash": dash,
                      "width": float(np.clip(1 + 1.5 * abs(facts["effect"]), 1, 8))},
                text=[words] * 3, hovertemplate="%{text}<extra></extra>", opacity=0.75,
            )
        )  # fmt: skip
        shown.add(channel)
    return out


def _nodes(graph: "nx.DiGraph", place: dict[str, tuple[float, float]]) -> go.Scatter:
    names = list(graph.nodes)
    words = []
    for name in names:
        f = graph.nodes[name]
        told = "" if name == LOGITS else (
            f"<br>total {f['effect']:.2f} ({f['low']:.2f} to {f['high']:.2f})"
            f"<br>direct {f['effect_direct']:.2f}"
        )  # fmt: skip
        words.append(f"<b>{html.escape(name)}</b>{told}")
    receiver = [bool(graph.nodes[n]["receiver"]) for n in names]
    symbols = {"head": "circle", "mlp": "square", "logits": "star"}
    return go.Scatter(
        x=[place[n][0] for n in names], y=[place[n][1] for n in names], mode="markers+text",
        text=names, textposition="middle right", customdata=words, showlegend=False,
        hovertemplate="%{customdata}<extra></extra>",
        marker={
            "size": 18, "color": ["#FFE08A" if r else "#E8ECF1" for r in receiver],
            "symbol": [symbols[graph.nodes[n]["kind"]] for n in names],
            "line": {"color": [parts.MARK if r else parts.INK for r in receiver], "width": 1.8},
        },
    )  # fmt: skip


def edge_effects(result: "CircuitResult", n: int = 25) -> go.Figure:
    """The largest edges with intervals, and the threshold of minimality."""
    frame = result.edges[result.edges["picked"] != "random"].head(n).iloc[::-1]
    names = [f"{s} → {r} ({c})" for s, r, c in
             zip(frame["sender"], frame["receiver"], frame["channel"], strict=True)]  # fmt: skip
    fig = go.Figure()
    fig.add_trace(
        go.Bar(x=2 * frame["threshold"].clip(upper=frame["effect"].abs().max()), y=names,
               base=-frame["threshold"].clip(upper=frame["effect"].abs().max()), orientation="h",
               marker={"color": parts.GREY, "opacity": 0.6}, name="95 % of random edges",
               hoverinfo="skip")
    )  # fmt: skip
    for stays, colour, symbol in ((True, "#0072B2", "circle"), (False, "#7A8794", "x")):
        part = frame["stays"] == stays
        rows = frame[part]
        fig.add_trace(
            go.Scatter(
                x=rows["effect"], y=[n for n, p in zip(names, part, strict=True) if p],
                mode="markers", name="stays" if stays else "left out",
                marker={"color": colour, "symbol": symbol, "size": 9},
                error_x=parts.whiskers(rows["low"], rows["effect"], rows["high"], colour=colour),
            )
        )  # fmt: skip
    fig.add_vline(x=0, line={"color": parts.INK, "width": 1})
    parts.frame(
        fig, _title(result, "edges into"),
        "change of the logit difference when the edge alone carries the ablation; whiskers: 95 % "
        "bootstrap interval over needles", top=90,
    )  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=names, tickmode="linear")
    return fig.update_layout(height=200 + 22 * len(frame), xaxis_title="logits",
                             margin={"l": 160})  # fmt: skip


def faithfulness(result: "CircuitResult") -> go.Figure:
    """f over circuit size, beside random circuits; completeness dashed."""
    curve, fig = result.faithfulness, go.Figure()
    found = result.areas
    for name, part in curve.groupby("ranking"):
        colour, symbol = RANKING[str(name)]
        area = found[str(name)]
        label = f"{name}: CPR {area['CPR']:.2f}, CMD {area['CMD']:.2f}"
        if (part["draws"] > 1).any():
            fig.add_trace(
                go.Scatter(
                    x=[*part["share"], *part["share"][::-1]],
                    y=[*part["high"], *part["low"][::-1]],
                    fill="toself", mode="none", fillcolor="rgba(122,135,148,.25)",
                    name="random, 95 %", hoverinfo="skip",
                )
            )  # fmt: skip
        lines = (
            ("faithfulness", "solid", label),
            ("completeness", "dot", f"all but the {name} heads"),
        )
        for column, dash, words in lines:
            fig.add_trace(
                go.Scatter(
                    x=part["share"], y=part[column], mode="lines+markers", name=words,
                    line={"color": colour, "dash": dash},
                    marker={"symbol": symbol if dash == "solid" else f"{symbol}-open", "size": 7},
                    customdata=part["size"],
                    hovertemplate="%{customdata} heads: %{y:.2f}<extra>" + words + "</extra>",
                )
            )  # fmt: skip
    for y in (0, 1):
        fig.add_hline(y=y, line={"color": parts.INK, "width": 1, "dash": "dash"})
    parts.frame(
        fig, f"{html.escape(result.provenance.model)}: how much a circuit of heads carries",
        "1: the whole model, 0: the twin prompt, whose outputs the heads outside give",
        top=90,
    )  # fmt: skip
    shares = sorted(set(curve["share"]))
    fig.update_xaxes(
        type="log", title="share of all heads in the circuit", tickvals=shares,
        ticktext=[f"{x:.2g} %" for x in 100 * np.array(shares)],
    )  # fmt: skip
    return fig.update_layout(height=540, yaxis_title="share of the logit difference",
                             legend={"orientation": "h", "y": -0.22})  # fmt: skip


PATCH_FIGURES: dict[str, Callable[..., go.Figure]] = {
    "sites": patched_sites,
    "screen": screen_map,
    "confirmed": confirmed,
}
CIRCUIT_FIGURES: dict[str, Callable[..., go.Figure]] = {
    "graph": circuit_graph,
    "edges": edge_effects,
    "faithfulness": faithfulness,
}
