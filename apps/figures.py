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

from circuits.scores import METRICS, ROLE_METRICS, Metric
from circuits.uncertainty import top as best
from interp.errors import ResultError, UnknownNameError
from interp.sites import Head

if TYPE_CHECKING:
    import pandas as pd

    from circuits.scan_result import ScanResult

SEQUENTIAL, DIVERGING, ATTENTION = "Cividis", "RdBu_r", "Blues"
MARK, GREY, INK = "#d81b60", "#c9ccd1", "#1f2933"
ROLE_COLOURS = {
    "induction": "#0072B2",
    "duplicate": "#009E73",
    "previous": "#CC79A7",
    "sink": "#E69F00",
    "none": "#7A8794",
}
"""Okabe and Ito's colours, which the colour-blind can tell apart."""
NOT_APPLICABLE = "no attention in this layer: score not applicable"


def draw(result: "ScanResult", kind: str = "map", **options: Any) -> go.Figure:
    """One figure of a scan; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure, or no such score.
        ResultError: the result does not hold what the figure shows.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind](result, **options)


def ranking(result: "ScanResult", metric: str = "copy") -> "pd.DataFrame":
    """One row a head, layer by layer: name, layer, head, score, interval, probabilities, role.

    A score without an interval (role scores; a single needle answered) has NaN there.
    """
    import pandas as pd

    mean = _mean(result, metric).reshape(-1)
    layer, head = np.divmod(np.arange(mean.size), result.shape[1])
    frame = pd.DataFrame({"layer": layer, "head": head, "score": mean})
    frame.insert(0, "name", [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)])
    sure = result.uncertainty(metric) if _has_interval(result, metric) else None
    for column in ("low", "high", "p_top", "p_above"):
        frame[column] = np.nan if sure is None else getattr(sure, column)
    frame["roles"] = [name for row in result.labels for name in row]
    return frame


def head_map(result: "ScanResult", metric: str = "copy") -> go.Figure:
    """Heat map of all heads; the top k are outlined and numbered by rank."""
    score, heads = _mean(result, metric), ranking(result, metric)
    fig = go.Figure(_heads_trace(score, heads, METRICS[metric]))
    missing = np.isnan(score)
    if missing.any():
        fig.add_trace(_hatched(missing))
    first = heads.iloc[best(heads["score"].to_numpy(), result.settings["top"])]
    for row in first.itertuples():
        _box(fig, (row.head, row.head), (row.layer, row.layer), name=row.name)
    fig.add_trace(
        go.Scatter(
            x=first["head"], y=first["layer"], mode="text", hoverinfo="skip", showlegend=False,
            text=[str(i + 1) for i in range(len(first))], name="rank",
            textfont={"size": 11, "color": _on_scale(first["score"], score, METRICS[metric])},
        )
    )  # fmt: skip
    n_layers, n_heads = result.shape
    _titled(fig, result, f"{METRICS[metric].title} of each head", _over(result, metric),
            f"outlined: the top {len(first)} with their ranks")  # fmt: skip
    fig.update_xaxes(title="head", **_counted(n_heads), range=[-0.5, n_heads - 0.5])
    fig.update_yaxes(
        title="layer (0 at the bottom)", **_counted(n_layers), range=[-0.5, n_layers - 0.5]
    )
    return fig.update_layout(
        height=190 + n_layers * (20 if n_layers > 20 else 30),
        width=max(700, 250 + 36 * n_heads) if n_heads <= 16 else None,
    )


def ranked(result: "ScanResult", metric: str = "copy", n: int = 20) -> go.Figure:
    """The best heads as bars, with intervals and the published threshold."""
    heads = ranking(result, metric)
    order = best(heads["score"].to_numpy(), n)
    heads, role = heads.iloc[order], _main_roles(result)
    fig = go.Figure()
    for name, colour in ROLE_COLOURS.items():
        part = heads[[role[i] == name for i in heads.index]]
        if len(part):
            words = METRICS[name].title if name in METRICS else "no other role"
            fig.add_trace(_bars(part, words, colour, result.settings["top"]))
    if metric in ("copy", "copy_exact"):
        line = result.settings["threshold"]
        fig.add_vline(x=line, line={"color": INK, "dash": "dash", "width": 1.5})
        fig.add_annotation(x=line, y=1, yref="paper", yanchor="bottom", xanchor="center",
                           text=f"threshold {line:g}", showarrow=False)  # fmt: skip
    _titled(fig, result, f"{METRICS[metric].title}: the {len(heads)} best heads",
            _over(result, metric), _whiskers(result, metric))  # fmt: skip
    fig.update_xaxes(title=METRICS[metric].title, rangemode="tozero")
    fig.update_yaxes(categoryorder="array", categoryarray=list(heads["name"])[::-1],
                     tickmode="linear")  # fmt: skip
    return fig.update_layout(
        height=190 + 24 * len(heads), bargap=0.3, showlegend=True,
        legend={"title": {"text": "main other role"}},
    )  # fmt: skip


def grid(result: "ScanResult", head: "str | Head | None" = None) -> go.Figure:
    """Depth x length: the share of trials answered and, for one head, its mean copy score."""
    table = result.trials[["length", "depth", "passed"]].assign(copy=np.nan)
    titles = ["questions answered (answered / asked)"]
    if head is not None:
        head = _known(result, head)
        table["copy"] = np.where(table["passed"], result.values["copy"][:, head.layer, head.head],
                                 np.nan)  # fmt: skip
        titles.append(f"copy score of {head}, answered questions")
    cells = table.groupby(["depth", "length"])
    fig = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True,
                        horizontal_spacing=0.06)  # fmt: skip
    done, asked = cells["passed"].sum().unstack(), cells["passed"].size().unstack()
    counts = [
        ["" if np.isnan(b) else f"{a:.0f}/{b:.0f}" for a, b in zip(*row, strict=True)]
        for row in zip(done.to_numpy(float), asked.to_numpy(float), strict=True)
    ]
    fig.add_trace(_cells(done / asked, counts, "answered"), 1, 1)
    if head is not None:
        copy = cells["copy"].mean().unstack()
        words = [["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in copy.to_numpy()]
        fig.add_trace(_cells(copy, words, f"copy score of {head}"), 1, 2)
    _titled(fig, result, "needles by place and length of context",
            f"{len(table)} questions; dark = none, bright = all", panels=True)  # fmt: skip
    fig.update_xaxes(title="context length, tokens", type="category", showgrid=False)
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False)
    fig.update_yaxes(title="depth of the needle", col=1)
    return fig.update_layout(height=220 + 44 * len(done),
                             coloraxis=_axis("share", 0, 1, SEQUENTIAL))  # fmt: skip


def agreement(result: "ScanResult", top: int = 20) -> go.Figure:
    """How far the scores agree about heads: rank correlation, and shared top heads."""
    names, matrix = result.agreement(top=top)
    titles = [METRICS[n].title if n in METRICS else n for n in names]
    n_heads = int(np.isfinite(_mean(result, "copy")).sum())
    fig = make_subplots(1, 2, horizontal_spacing=0.04, shared_yaxes=True, subplot_titles=[
        f"Spearman correlation over {n_heads} heads", f"share of the top {top} in common"
    ])  # fmt: skip
    scales = ((DIVERGING, -1, 1), (SEQUENTIAL, 0, 1))
    for col, (scale, low, high) in enumerate(scales, start=1):
        z = matrix[col - 1]
        text = [["–" if np.isnan(v) else f"{v:.2f}".replace("0.", ".") for v in row] for row in z]
        fig.add_trace(
            go.Heatmap(
                z=z, x=titles, y=titles, zmin=low, zmax=high, colorscale=scale, xgap=1, ygap=1,
                text=text, texttemplate="%{text}", textfont={"size": 11}, showscale=False,
                hovertemplate="%{y}<br>%{x}<br>%{z:.3f}<extra></extra>",
            ), 1, col,
        )  # fmt: skip
    _titled(fig, result, "agreement between scores", _over(result, "copy"),
            "1 = the same heads in the same order", panels=True)  # fmt: skip
    fig.update_xaxes(tickangle=-45, showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig.update_layout(height=280 + 36 * len(names))


def profile(result: "ScanResult", metric: str = "copy") -> go.Figure:
    """Layer by layer: the best head, the mean head, and how many heads reach the threshold."""
    score, line = _mean(result, metric), result.settings["threshold"]
    layers = np.flatnonzero(~np.isnan(score).all(1))
    some = score[layers]
    fig = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.65, 0.35], subplot_titles=[
        METRICS[metric].title, f"heads at {line:g} or more"], horizontal_spacing=0.05)  # fmt: skip
    series = (("best head", np.nanmax(some, 1), "#0072B2", "circle"),
              ("mean head", np.nanmean(some, 1), "#D55E00", "diamond"))  # fmt: skip
    for name, x, colour, symbol in series:
        fig.add_trace(
            go.Scatter(
                x=x, y=layers, name=name, mode="lines+markers", line={"color": colour},
                marker={"symbol": symbol, "size": 7},
                hovertemplate="layer %{y}: %{x:.3f}<extra>" + name + "</extra>",
            ), 1, 1,
        )  # fmt: skip
    count = (some >= line).sum(1)
    fig.add_trace(
        go.Bar(
            x=count, y=layers, orientation="h", marker={"color": "#56789a"}, showlegend=False,
            text=["" if c == 0 else str(c) for c in count], textposition="outside",
            name="heads", hovertemplate="layer %{y}: %{x} heads<extra></extra>",
        ), 1, 2,
    )  # fmt: skip
    n_layers, n_heads = result.shape
    left_out = f"; {n_layers - len(layers)} without attention" if len(layers) < n_layers else ""
    _titled(fig, result, f"{METRICS[metric].title} by layer", _over(result, metric),
            f"{n_heads} heads a layer; layer 0 at the bottom{left_out}", panels=True)  # fmt: skip
    fig.update_yaxes(**_counted(n_layers), range=[-0.7, n_layers - 0.3])
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
    tokens, produced = ([_visible(t) for t in rows[k]] for k in ("tokens", "produced"))
    heat = go.Heatmap(
        z=rows["weights"][rows["heads"].index(wanted)], zmin=0, zmax=1, colorscale=ATTENTION,
        xgap=1, ygap=1, colorbar={"title": {"text": "weight"}},
        customdata=[tokens] * len(produced), text=[[t] * len(tokens) for t in produced],
        hovertemplate="producing %{text}<br>looks at %{customdata}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    fig = go.Figure(heat)
    for key, colour, width in (("needle", "#7A8794", 1.5), ("answer", MARK, 3)):
        start, stop = (p - rows["first"] for p in rows[key])
        _box(fig, (start, stop - 1), (0, len(produced) - 1), name=key, colour=colour, width=width)
        fig.add_annotation(x=start - 0.5, y=1, yref="paper", text=key, showarrow=False,
                           xanchor="left", yanchor="bottom", font={"color": colour})  # fmt: skip
    _titled(fig, result, f"attention around one needle: {wanted}",
            f"one trial of {len(result.trials)}, {html.escape(rows['trial'])}",
            "each row is one answer token being produced; its weights sum to 1 over the context",
            panels=True)  # fmt: skip
    fig.update_xaxes(title="token of the context (␣ space, ⏎ new line)", tickangle=-90,
                     tickvals=list(range(len(tokens))), ticktext=tokens, showgrid=False,
                     tickfont={"size": 12})  # fmt: skip
    fig.update_yaxes(title="token produced", tickvals=list(range(len(produced))),
                     ticktext=produced, autorange="reversed", showgrid=False)  # fmt: skip
    fig.update_layout(height=330 + 34 * len(produced), updatemenus=[_menu(result, fig, wanted)])
    return fig


FIGURES: dict[str, Callable[..., go.Figure]] = {
    "map": head_map,
    "ranked": ranked,
    "grid": grid,
    "agreement": agreement,
    "profile": profile,
    "attention": attention,
}

# -- parts of figures -------------------------------------------------------------------------


def _mean(result: "ScanResult", metric: str) -> np.ndarray:
    if metric not in METRICS or metric not in (*result.values, *result.roles):
        raise UnknownNameError("score", metric, (*result.values, *result.roles))
    return result.mean(metric)


def _has_interval(result: "ScanResult", metric: str) -> bool:
    return metric in result.values and result.trials["needle"][result.gated()].nunique() > 1


def _over(result: "ScanResult", metric: str) -> str:
    """What the mean is over."""
    if metric in ROLE_METRICS:
        return f"mean over {len(result.roles[metric])} random repeated sequences"
    keep = result.gated()
    needles = result.trials["needle"][keep].nunique()
    return f"mean over {keep.sum()} answered of {len(keep)} questions, {needles} needles"


def _whiskers(result: "ScanResult", metric: str) -> str:
    if _has_interval(result, metric):
        return "whiskers: 95 % bootstrap interval over needles"
    return "no interval: it needs needles, at least 2 of them answered"


def _known(result: "ScanResult", head: "str | Head") -> Head:
    found, (n_layers, n_heads) = Head.parse(head), result.shape
    if found.layer >= n_layers or found.head >= n_heads:
        raise ResultError(f"no head {found}: the model has {n_layers} layers of {n_heads} heads")
    return found


def _range(score: np.ndarray, metric: Metric) -> tuple[str, float, float]:
    """Colour scale: sequential from 0 up to the next tenth, or diverging about 0."""
    largest = float(np.nanmax(np.abs(score)))
    if metric.low < 0:
        return DIVERGING, -(largest or 1.0), largest or 1.0
    return SEQUENTIAL, 0.0, min(1.0, max(0.1, np.ceil(largest * 10) / 10))


def _on_scale(values: "pd.Series", score: np.ndarray, metric: Metric) -> list[str]:
    """Ink that can be read upon the colour of each value."""
    _, low, high = _range(score, metric)
    share = (values - low) / (high - low)
    dark = share < 0.55 if metric.low >= 0 else (share < 0.2) | (share > 0.8)
    return ["#ffffff" if d else "#000000" for d in dark]


def _heads_trace(score: np.ndarray, heads: "pd.DataFrame", metric: Metric) -> go.Heatmap:
    scale, low, high = _range(score, metric)
    words = [_words(row) for row in heads.itertuples()]
    return go.Heatmap(
        z=score, colorscale=scale, zmin=low, zmax=high, xgap=1, ygap=1, name=metric.name,
        customdata=np.array(words, dtype=object).reshape(score.shape), hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>", colorbar={"title": {"text": metric.title}},
    )  # fmt: skip


def _words(row: Any) -> str:
    """What hovering over a head says."""
    lines = [f"<b>{row.name}</b>", f"score {row.score:.3f}"]
    if not np.isnan(row.low):
        lines += [f"95 % interval {row.low:.3f} to {row.high:.3f}",
                  f"P(top k) {row.p_top:.2f}, P(above threshold) {row.p_above:.2f}"]  # fmt: skip
    return "<br>".join([*lines, f"roles: {row.roles or 'none'}"])


def _hatched(missing: np.ndarray) -> go.Heatmap:
    z = np.where(missing, 0.0, np.nan)
    return go.Heatmap(
        z=z, colorscale=[[0, GREY], [1, GREY]], showscale=False, xgap=1, ygap=1,
        name="not applicable", text=np.where(missing, "╱╱", ""), texttemplate="%{text}",
        textfont={"color": "#868e96"}, hoverongaps=False,
        hovertemplate=f"L%{{y}}H%{{x}}<br>{NOT_APPLICABLE}<extra></extra>",
    )  # fmt: skip


def _box(fig: go.Figure, x: tuple, y: tuple, *, name: str, colour: str = MARK,
         width: float = 2.5) -> None:  # fmt: skip
    fig.add_shape(type="rect", x0=x[0] - 0.5, x1=x[1] + 0.5, y0=y[0] - 0.5, y1=y[1] + 0.5,
                  name=name, line={"color": colour, "width": width})  # fmt: skip


def _main_roles(result: "ScanResult") -> list[str]:
    """The strongest of each head's roles other than retrieval."""
    means = {n: v.mean(0).reshape(-1) for n, v in result.roles.items()}
    labels = [name.split("+") for row in result.labels for name in row]
    return [
        max((n for n in names if n in means), key=lambda n, i=i: means[n][i], default="none")
        for i, names in enumerate(labels)
    ]


def _bars(part: "pd.DataFrame", name: str, colour: str, k: int) -> go.Bar:
    whiskers = {
        "type": "data", "symmetric": False, "color": INK, "thickness": 1.4, "width": 4,
        "array": (part["high"] - part["score"]).clip(lower=0),
        "arrayminus": (part["score"] - part["low"]).clip(lower=0),
    }  # fmt: skip
    return go.Bar(
        x=part["score"], y=part["name"], orientation="h", name=name, marker={"color": colour},
        error_x=whiskers if part["low"].notna().all() else None,
        customdata=[_words(r).replace("top k", f"top {k}") for r in part.itertuples()],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _axis(title: str, low: float, high: float, scale: str) -> dict[str, Any]:
    return {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": {"title": {"text": title}}}


def _cells(values: "pd.DataFrame", text: list[list[str]], name: str) -> go.Heatmap:
    return go.Heatmap(
        z=values.to_numpy(float), x=[str(c) for c in values.columns],
        y=[f"{d:.0%}" for d in values.index], text=text, texttemplate="%{text}", xgap=2, ygap=2,
        textfont={"size": 14},
        coloraxis="coloraxis", name=name, hoverongaps=False,
        hovertemplate="depth %{y}, %{x} tokens<br>" + name + ": %{z:.2f}<extra></extra>",
    )  # fmt: skip


def _menu(result: "ScanResult", fig: go.Figure, wanted: str) -> dict[str, Any]:
    """A drop-down that puts another head's weights, and its name, into the figure."""
    copy, title = result.mean("copy"), fig.layout.title.text
    buttons = []
    for name, weights in zip(result.rows["heads"], result.rows["weights"], strict=True):
        at = Head.parse(name)
        label = f"{name}  copy {copy[at.layer, at.head]:.2f}"
        change = [{"z": [weights]}, {"title.text": title.replace(f": {wanted}", f": {name}")}]
        buttons.append({"label": label, "method": "update", "args": change})
    return {"buttons": buttons, "active": result.rows["heads"].index(wanted), "x": 1,
            "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 34}}  # fmt: skip


def _visible(token: str) -> str:
    """A token with its spaces and line ends to be seen, safe in a label."""
    for raw, shown in ((" ", "␣"), ("\r", "␍"), ("\n", "⏎"), ("\t", "⇥")):
        token = token.replace(raw, shown)
    return html.escape(token) or "∅"


def _counted(n: int) -> dict[str, Any]:
    """An axis of whole numbers whose labels do not collide."""
    return {"dtick": 1 if n <= 40 else 4, "tick0": 0, "showgrid": False, "zeroline": False}


def _titled(fig: go.Figure, result: "ScanResult", title: str, *below: str, panels: bool = False):
    name = html.escape(result.provenance.model)
    fig.update_layout(
        title={"text": f"{name}: {title}", "subtitle": {"text": "; ".join(below)}, "x": 0.01,
               "y": 0.97 if panels else 0.96, "yanchor": "top", "yref": "container"},
        template="plotly_white", font={"size": 13, "color": INK},
        margin={"l": 70, "r": 30, "t": 120 if panels else 90, "b": 60},
    )  # fmt: skip
