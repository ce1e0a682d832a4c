"""Pieces that the figures share: colours, scales, hover texts, axes, titles."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.scores import METRICS, ROLE_METRICS, Metric
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


def ranking(result: "ScanResult", metric: str = "copy") -> "pd.DataFrame":
    """One row a head, layer by layer: name, layer, head, score, interval, probabilities, role.

    A score without an interval (role scores; a single needle answered) has NaN there.
    """
    import pandas as pd

    mean = mean_score(result, metric).reshape(-1)
    layer, head = np.divmod(np.arange(mean.size), result.shape[1])
    frame = pd.DataFrame({"layer": layer, "head": head, "score": mean})
    frame.insert(0, "name", [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)])
    sure = result.uncertainty(metric) if has_interval(result, metric) else None
    for column in ("low", "high", "p_top", "p_above"):
        frame[column] = np.nan if sure is None else getattr(sure, column)
    frame["roles"] = [name for row in result.labels for name in row]
    return frame


def mean_score(result: "ScanResult", metric: str) -> np.ndarray:
    """Mean score of every head, `[layer, head]`."""
    if metric not in METRICS or metric not in (*result.values, *result.roles):
        raise UnknownNameError("score", metric, (*result.values, *result.roles))
    return result.mean(metric)


def has_interval(result: "ScanResult", metric: str) -> bool:
    """Whether enough needles were answered for an interval."""
    return metric in result.values and result.trials["needle"][result.gated()].nunique() > 1


def trial_count(result: "ScanResult", metric: str) -> str:
    """What the mean is over."""
    if metric in ROLE_METRICS:
        return f"mean over {len(result.roles[metric])} random repeated sequences"
    keep = result.gated()
    needles = result.trials["needle"][keep].nunique()
    return f"mean over {keep.sum()} answered of {len(keep)} questions, {needles} needles"


def whiskers_of(result: "ScanResult", metric: str) -> str:
    """What the whiskers are, for a subtitle."""
    if has_interval(result, metric):
        return "whiskers: 95 % bootstrap interval over needles"
    return "no interval: it needs needles, at least 2 of them answered"


def known_head(result: "ScanResult", head: "str | Head") -> Head:
    """The head asked for, if the model has it."""
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


def text_colours(values: "pd.Series", score: np.ndarray, metric: Metric) -> list[str]:
    """Ink that can be read upon the colour of each value."""
    return ink_on(values, _range(score, metric))


def ink_on(values: "pd.Series | np.ndarray", scale: tuple[str, float, float]) -> list[str]:
    """Black or white, whichever can be read upon the colour that the scale gives each value."""
    name, low, high = scale
    share = (values - low) / (high - low)
    dark = (share < 0.2) | (share > 0.8) if name == DIVERGING else share < 0.55
    return ["#ffffff" if d else "#000000" for d in dark]


def heads_trace(score: np.ndarray, heads: "pd.DataFrame", metric: Metric) -> go.Heatmap:
    """The heat map of all heads of a scan."""
    words = [_words(row) for row in heads.itertuples()]
    scale = _range(score, metric)
    return heads_map(score, words, scale=scale, name=metric.name, title=metric.title)


def heads_map(
    values: np.ndarray,
    words: Sequence[str],
    *,
    scale: tuple[str, float, float],
    name: str,
    title: str,
) -> go.Heatmap:
    """A heat map of `[layer, head]` with hover texts, head after head; scale: name, low, high."""
    return go.Heatmap(
        z=values, colorscale=scale[0], zmin=scale[1], zmax=scale[2], xgap=1, ygap=1, name=name,
        customdata=np.array(words, dtype=object).reshape(values.shape), hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>", colorbar={"title": {"text": title}},
    )  # fmt: skip


def _words(row: Any) -> str:
    """What hovering over a head says."""
    lines = [f"<b>{row.name}</b>", f"score {row.score:.3f}"]
    if not np.isnan(row.low):
        lines += [
            f"95 % interval {row.low:.3f} to {row.high:.3f}",
            f"P(top k) {row.p_top:.2f}, P(above threshold) {row.p_above:.2f}",
        ]
    return "<br>".join([*lines, f"roles: {row.roles or 'none'}"])


def hatched_cells(missing: np.ndarray) -> go.Heatmap:
    """A grey, hatched cell for every head without attention rows."""
    z = np.where(missing, 0.0, np.nan)
    return go.Heatmap(
        z=z, colorscale=[[0, GREY], [1, GREY]], showscale=False, xgap=1, ygap=1,
        name="not applicable", text=np.where(missing, "╱╱", ""), texttemplate="%{text}",
        textfont={"color": "#868e96"}, hoverongaps=False,
        hovertemplate=f"L%{{y}}H%{{x}}<br>{NOT_APPLICABLE}<extra></extra>",
    )  # fmt: skip


def outline(
    fig: go.Figure, x: tuple, y: tuple, *, name: str, colour: str = MARK, width: float = 2.5
) -> None:
    """A box around cells."""
    fig.add_shape(
        type="rect", x0=x[0] - 0.5, x1=x[1] + 0.5, y0=y[0] - 0.5, y1=y[1] + 0.5, name=name,
        line={"color": colour, "width": width},
    )  # fmt: skip


def mark_ranks(fig: go.Figure, heads: Sequence[Head], colours: Sequence[str]) -> None:
    """Outline heads in a map, best first, and write their ranks."""
    for head in heads:
        outline(fig, (head.head, head.head), (head.layer, head.layer), name=str(head))
    x, y = [h.head for h in heads], [h.layer for h in heads]
    font = {"size": 11, "color": list(colours)}
    ranks = [str(i + 1) for i in range(len(heads))]
    fig.add_scatter(
        x=x, y=y, text=ranks, textfont=font, mode="text", name="rank", hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip


def head_axes(fig: go.Figure, shape: tuple[int, int]) -> None:
    """Head on x, layer on y with layer 0 at the bottom; a size that suits their numbers."""
    n_layers, n_heads = shape
    fig.update_xaxes(title="head", **counted_ticks(n_heads), range=[-0.5, n_heads - 0.5])
    fig.update_yaxes(title="layer (0 at the bottom)", **counted_ticks(n_layers))
    fig.update_yaxes(range=[-0.5, n_layers - 0.5])
    fig.update_layout(
        height=190 + n_layers * (20 if n_layers > 20 else 30),
        width=max(700, 250 + 36 * n_heads) if n_heads <= 16 else None,
    )


def main_roles(result: "ScanResult") -> list[str]:
    """The strongest of each head's roles other than retrieval."""
    means = {n: v.mean(0).reshape(-1) for n, v in result.roles.items()}
    labels = [name.split("+") for row in result.labels for name in row]
    kept = [[(means[n][i], n) for n in names if n in means] for i, names in enumerate(labels)]
    return [max(pairs)[1] if pairs else "none" for pairs in kept]


def bars_by_role(part: "pd.DataFrame", name: str, colour: str, k: int) -> go.Bar:
    """Bars with whiskers, of one colour."""
    bounds = whiskers(part["low"], part["score"], part["high"])
    return go.Bar(
        x=part["score"],
        y=part["name"],
        orientation="h",
        name=name,
        marker={"color": colour},
        error_x=bounds if part["low"].notna().all() else None,
        customdata=[_words(r).replace("top k", f"top {k}") for r in part.itertuples()],
        hovertemplate="%{customdata}<extra></extra>",
    )


def whiskers(low: Any, middle: Any, high: Any, *, colour: str = INK) -> dict[str, Any]:
    """Error bars of an interval, which need not be symmetric."""
    low, middle, high = (np.asarray(v, dtype=float) for v in (low, middle, high))
    return {
        "type": "data",
        "symmetric": False,
        "color": colour,
        "thickness": 1.4,
        "width": 4,
        "array": (high - middle).clip(min=0),
        "arrayminus": (middle - low).clip(min=0),
    }


def score_axis(title: str, low: float, high: float, scale: str) -> dict[str, Any]:
    """Limits, scale and bar of a colour axis."""
    return {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": {"title": {"text": title}}}


def cell_values(values: "pd.DataFrame", text: list[list[str]], name: str) -> go.Heatmap:
    """A heat map of a table, with its numbers written in."""
    return go.Heatmap(
        z=values.to_numpy(float),
        x=[str(c) for c in values.columns],
        y=[f"{d:.0%}" for d in values.index],
        text=text,
        texttemplate="%{text}",
        xgap=2,
        ygap=2,
        textfont={"size": 14},
        coloraxis="coloraxis",
        name=name,
        hoverongaps=False,
        hovertemplate="depth %{y}, %{x} tokens<br>" + name + ": %{z:.2f}<extra></extra>",
    )


def head_menu(result: "ScanResult", fig: go.Figure, wanted: str) -> dict[str, Any]:
    """A drop-down that puts another head's weights, and its name, into the figure."""
    copy, title = result.mean("copy"), fig.layout.title.text
    buttons = []
    for name, weights in zip(result.rows["heads"], result.rows["weights"], strict=True):
        at = Head.parse(name)
        label = f"{name}  copy {copy[at.layer, at.head]:.2f}"
        change = [{"z": [weights]}, {"title.text": title.replace(f": {wanted}", f": {name}")}]
        buttons.append({"label": label, "method": "update", "args": change})
    return {
        "buttons": buttons,
        "active": result.rows["heads"].index(wanted),
        "x": 1,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 34},
    }


def visible_token(token: str) -> str:
    """A token with its spaces and line ends to be seen, safe in a label."""
    for raw, shown in ((" ", "␣"), ("\r", "␍"), ("\n", "⏎"), ("\t", "⇥")):
        token = token.replace(raw, shown)
    return html.escape(token) or "∅"


def counted_ticks(n: int) -> dict[str, Any]:
    """An axis of whole numbers whose labels do not collide."""
    return {"dtick": 1 if n <= 40 else 4, "tick0": 0, "showgrid": False, "zeroline": False}


def set_title(fig: go.Figure, result: "ScanResult", title: str, *below: str, panels: bool = False):
    """Title with model, trials and what the number is; room for it."""
    name = html.escape(result.provenance.model)
    frame(fig, f"{name}: {title}", "; ".join(below), top=120 if panels else 90)


def frame(fig: go.Figure, title: str, subtitle: str, *, top: int, bottom: int = 60) -> None:
    """The look that all figures have: title, subtitle, fonts, margins. The texts are safe."""
    fig.update_layout(
        title={
            "text": title,
            "subtitle": {"text": subtitle},
            "x": 0.01,
            "y": 1,
            "pad": {"t": 16 + 14 * title.count("<br>")},
            "yanchor": "top",
            "yref": "container",
        },
        template="plotly_white",
        font={"size": 13, "color": INK},
        margin={"l": 70, "r": 30, "t": top, "b": bottom},
    )
