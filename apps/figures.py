"""The figures of a scan, with Plotly: layer on y, head on x, layer 0 at the bottom.

Scores in [0, 1] have a sequential scale, effects a diverging one centred at 0; both can be told
apart by the colour-blind. Figures are returned, never shown. Every title says which model, over
how many trials, and what the number is; intervals are 95 % bootstrap intervals over needles.
"""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import figure_parts as parts
from circuits.scores import METRICS
from circuits.uncertainty import top as best
from interp.errors import ResultError, UnknownNameError
from interp.sites import Head

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult


def draw(result: "ScanResult", kind: str = "map", **options: Any) -> go.Figure:
    """One figure of a scan; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure, or no such score.
        ResultError: the result does not hold what the figure shows.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind](result, **options)


def head_map(result: "ScanResult", metric: str = "copy") -> go.Figure:
    """Heat map of all heads; the top k are outlined and numbered by rank."""
    score, heads = parts.mean_score(result, metric), parts.ranking(result, metric)
    fig = go.Figure(parts.heads_trace(score, heads, METRICS[metric]))
    missing = np.isnan(score)
    if missing.any():
        fig.add_trace(parts.hatched_cells(missing))
    first = heads.iloc[best(heads["score"].to_numpy(), result.settings["top"])]
    named = [Head.parse(name) for name in first["name"]]
    parts.mark_ranks(fig, named, parts.text_colours(first["score"], score, METRICS[metric]))
    parts.set_title(
        fig,
        result,
        f"{METRICS[metric].title} of each head",
        parts.trial_count(result, metric),
        f"outlined: the top {len(first)} with their ranks",
    )
    parts.head_axes(fig, result.shape)
    return fig


def ranked(result: "ScanResult", metric: str = "copy", n: int = 20) -> go.Figure:
    """The best heads as bars, with intervals and the published threshold."""
    heads = parts.ranking(result, metric)
    order = best(heads["score"].to_numpy(), n)
    heads, role = heads.iloc[order], parts.main_roles(result)
    fig = go.Figure()
    for name, colour in parts.ROLE_COLOURS.items():
        part = heads[[role[i] == name for i in heads.index]]
        if len(part):
            words = METRICS[name].title if name in METRICS else "no other role"
            fig.add_trace(parts.bars_by_role(part, words, colour, result.settings["top"]))
    if metric in ("copy", "copy_exact"):
        line = result.settings["threshold"]
        published = "published " if line == 0.1 else ""
        fig.add_vline(x=line, line={"color": parts.INK, "dash": "dash", "width": 1.5})
        fig.add_annotation(
            x=line,
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="center",
            text=f"{published}threshold {line:g}",
            showarrow=False,
        )
    parts.set_title(
        fig,
        result,
        f"{METRICS[metric].title}: the {len(heads)} best heads",
        parts.trial_count(result, metric),
        parts.whiskers_of(result, metric),
        panels=True,
    )
    fig.update_xaxes(title=METRICS[metric].title, rangemode="tozero")
    fig.update_yaxes(
        categoryorder="array", categoryarray=list(heads["name"])[::-1], tickmode="linear"
    )
    return fig.update_layout(
        height=220 + 24 * len(heads),
        bargap=0.3,
        showlegend=True,
        legend={"title": {"text": "main other role"}},
    )


def grid(result: "ScanResult", head: "str | Head | None" = None) -> go.Figure:
    """Depth x length: the share of trials answered and, for one head, its mean copy score."""
    table = result.trials[["length", "depth", "passed"]].assign(copy=np.nan)
    titles = ["questions answered (answered / asked)"]
    if head is not None:
        head = parts.known_head(result, head)
        table["copy"] = np.where(
            table["passed"], result.values["copy"][:, head.layer, head.head], np.nan
        )
        titles.append(f"copy score of {head}, answered questions")
    cells = table.groupby(["depth", "length"])
    fig = make_subplots(
        1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06
    )
    done, asked = cells["passed"].sum().unstack(), cells["passed"].size().unstack()
    counts = [
        ["" if np.isnan(b) else f"{a:.0f}/{b:.0f}" for a, b in zip(*row, strict=True)]
        for row in zip(done.to_numpy(float), asked.to_numpy(float), strict=True)
    ]
    fig.add_trace(parts.cell_values(done / asked, counts, "answered"), 1, 1)
    if head is not None:
        copy = cells["copy"].mean().unstack()
        words = [["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in copy.to_numpy()]
        fig.add_trace(parts.cell_values(copy, words, f"copy score of {head}"), 1, 2)
    parts.set_title(
        fig,
        result,
        "needles by place and length of context",
        f"{len(table)} questions; dark = none, bright = all",
        panels=True,
    )
    fig.update_xaxes(title="context length, tokens", type="category", showgrid=False)
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False)
    fig.update_yaxes(title="depth of the needle", col=1)
    return fig.update_layout(
        height=220 + 44 * len(done), coloraxis=parts.score_axis("share", 0, 1, parts.SEQUENTIAL)
    )


def agreement(result: "ScanResult", top: int = 20) -> go.Figure:
    """How far the scores agree about heads: rank correlation, and shared top heads."""
    names, matrix = result.agreement(top=top)
    titles = [METRICS[n].title if n in METRICS else n for n in names]
    n_heads = int(np.isfinite(parts.mean_score(result, "copy")).sum())
    fig = make_subplots(
        1,
        2,
        horizontal_spacing=0.04,
        shared_yaxes=True,
        subplot_titles=[
            f"Spearman correlation over {n_heads} heads",
            f"share of the top {top} in common",
        ],
    )
    scales = ((parts.DIVERGING, -1, 1), (parts.SEQUENTIAL, 0, 1))
    for col, (scale, low, high) in enumerate(scales, start=1):
        z = matrix[col - 1]
        text = [["–" if np.isnan(v) else f"{v:.2f}".replace("0.", ".") for v in row] for row in z]
        fig.add_trace(
            go.Heatmap(
                z=z,
                x=titles,
                y=titles,
                zmin=low,
                zmax=high,
                colorscale=scale,
                xgap=1,
                ygap=1,
                text=text,
                texttemplate="%{text}",
                textfont={"size": 11},
                showscale=False,
                hovertemplate="%{y}<br>%{x}<br>%{z:.3f}<extra></extra>",
            ),
            1,
            col,
        )
    parts.set_title(
        fig,
        result,
        "agreement between scores",
        parts.trial_count(result, "copy"),
        "1 = the same heads in the same order",
        panels=True,
    )
    fig.update_xaxes(tickangle=-45, showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig.update_layout(height=280 + 36 * len(names))


def profile(result: "ScanResult", metric: str = "copy") -> go.Figure:
    """Layer by layer: the best head, the mean head, and how many heads reach the threshold."""
    score, line = parts.mean_score(result, metric), result.settings["threshold"]
    layers = np.flatnonzero(~np.isnan(score).all(1))
    some = score[layers]
    fig = make_subplots(
        1,
        2,
        shared_yaxes=True,
        column_widths=[0.65, 0.35],
        subplot_titles=[METRICS[metric].title, f"heads at {line:g} or more"],
        horizontal_spacing=0.05,
    )
    series = (
        ("best head", np.nanmax(some, 1), "#0072B2", "circle"),
        ("mean head", np.nanmean(some, 1), "#D55E00", "diamond"),
    )
    for name, x, colour, symbol in series:
        fig.add_trace(
            go.Scatter(
                x=x,
                y=layers,
                name=name,
                mode="lines+markers",
                line={"color": colour},
                marker={"symbol": symbol, "size": 7},
                hovertemplate="layer %{y}: %{x:.3f}<extra>" + name + "</extra>",
            ),
            1,
            1,
        )
    count = (some >= line).sum(1)
    fig.add_trace(
        go.Bar(
            x=count,
            y=layers,
            orientation="h",
            marker={"color": "#56789a"},
            showlegend=False,
            text=["" if c == 0 else str(c) for c in count],
            textposition="outside",
            name="heads",
            hovertemplate="layer %{y}: %{x} heads<extra></extra>",
        ),
        1,
        2,
    )
    n_layers, n_heads = result.shape
    left_out = f"; {n_layers - len(layers)} without attention" if len(layers) < n_layers else ""
    parts.set_title(
        fig,
        result,
        f"{METRICS[metric].title} by layer",
        parts.trial_count(result, metric),
        f"{n_heads} heads a layer; layer 0 at the bottom{left_out}",
        panels=True,
    )
    fig.update_yaxes(**parts.counted_ticks(n_layers), range=[-0.7, n_layers - 0.3])
    fig.update_yaxes(title="layer", col=1)
    fig.update_xaxes(rangemode="tozero", col=1)
    fig.update_xaxes(range=[0, max(1, count.max()) * 1.15], tickformat="d", col=2)
    return fig.update_layout(height=230 + 17 * n_layers, legend={"x": 0.42, "y": 0.02})


def attention(result: "ScanResult", head: "str | Head | None" = None) -> go.Figure:
    """Attention of a head around one needle, from each produced token; a menu has the others.

    Raises:
        ResultError: the result holds no attention, or not of this head.
    """
    rows = result.rows
    if not rows:
        raise ResultError("this result holds no attention rows; scan again to draw them")
    wanted = rows["heads"][0] if head is None else str(Head.parse(head))
    if wanted not in rows["heads"]:
        kept = ", ".join(rows["heads"])
        raise ResultError(f"no attention of {wanted} was kept; heads kept: {kept}")
    tokens, produced = ([parts.visible_token(t) for t in rows[k]] for k in ("tokens", "produced"))
    heat = go.Heatmap(
        z=rows["weights"][rows["heads"].index(wanted)],
        zmin=0,
        zmax=1,
        colorscale=parts.ATTENTION,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "weight"}},
        customdata=[tokens] * len(produced),
        text=[[t] * len(tokens) for t in produced],
        hovertemplate="producing %{text}<br>looks at %{customdata}: %{z:.3f}<extra></extra>",
    )
    fig = go.Figure(heat)
    for key, colour, width in (("needle", "#7A8794", 1.5), ("answer", parts.MARK, 3)):
        start, stop = (p - rows["first"] for p in rows[key])
        parts.outline(
            fig, (start, stop - 1), (0, len(produced) - 1), name=key, colour=colour, width=width
        )
        fig.add_annotation(
            x=start - 0.5,
            y=1,
            yref="paper",
            text=key,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font={"color": colour},
        )
    parts.set_title(
        fig,
        result,
        f"attention around one needle: {wanted}",
        f"one trial of {len(result.trials)}, {html.escape(rows['trial'])}",
        "each row is one answer token being produced; its weights sum to 1 over the context",
        panels=True,
    )
    fig.update_xaxes(
        title="token of the context (␣ space, ⏎ new line)",
        tickangle=-90,
        tickvals=list(range(len(tokens))),
        ticktext=tokens,
        showgrid=False,
        tickfont={"size": 12},
    )
    fig.update_yaxes(
        title="token produced",
        tickvals=list(range(len(produced))),
        tickangle=0,
        ticktext=produced,
        autorange="reversed",
        showgrid=False,
    )
    fig.update_layout(
        height=330 + 34 * len(produced), updatemenus=[parts.head_menu(result, fig, wanted)]
    )
    return fig


FIGURES: dict[str, Callable[..., go.Figure]] = {
    "map": head_map,
    "ranked": ranked,
    "grid": grid,
    "agreement": agreement,
    "profile": profile,
    "attention": attention,
}
