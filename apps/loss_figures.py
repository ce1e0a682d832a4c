"""Figures of groups of losses over checkpoints, with Plotly; pure functions of the saved result."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from apps.figure_parts import GREY, frame, whiskers
from circuits.loss_plan import GROUPS, TARGETS
from circuits.loss_tables import ALL
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.loss_result import LossResult

COLOURS = {"F->F": "#009E73", "F->C": "#D55E00", "C->F": "#56B4E9", "C->C": "#0072B2"}
"""Colour-blind-safe; warm for what the paper says dominates."""
POSITIONS = "positions"
"""The bar beside those of the models."""
WHISKERS = "whiskers: 95 % bootstrap interval over documents"


def draw(result: "LossResult", kind: str = "shares", **options: Any) -> go.Figure:
    """One figure of a run; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure. ResultError: the run did not measure it.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind][0](result, **options)


def shares(result: "LossResult") -> go.Figure:
    """Share of the summed loss, stacked, beside the share of positions."""
    fig = go.Figure()
    for group in GROUPS:
        own = _rows(result, group)
        y = [own["share"].iloc[-1], *own["loss_share"]]
        fig.add_bar(
            x=[POSITIONS, *own["model"]], y=y, name=group, marker_color=COLOURS[group],
            text=[f"{v:.0%}" for v in y], hovertemplate="%{x}: %{y:.1%}<extra>" + group,
        )  # fmt: skip
    fig.update_layout(barmode="stack")
    fig.update_yaxes(title="share", tickformat=".0%", range=[0, 1])
    return _titled(fig, "share of the loss by group", "first bar: share of the positions")


def means(result: "LossResult", *, target: str = ALL) -> go.Figure:
    """Mean loss of each group over the models."""
    fig = go.Figure()
    for group in GROUPS:
        own = _rows(result, group, target)
        fig.add_scatter(
            x=own["model"], y=own["loss"], name=group, mode="lines+markers",
            line={"color": COLOURS[group]},
            error_y=whiskers(own["loss_low"], own["loss"], own["loss_high"], colour=COLOURS[group]),
        )  # fmt: skip
    fig.update_yaxes(title="mean loss, nats", rangemode="tozero")
    return _titled(fig, f"mean loss by group, targets: {target}", WHISKERS)


def baseline(result: "LossResult") -> go.Figure:
    """Loss minus the n-gram model's at the last model, by kind of target."""
    fig = go.Figure()
    name = result.rows["model"].iloc[-1]
    for target, colour in zip((ALL, *TARGETS), ("#0072B2", "#E69F00", GREY), strict=True):
        own = result.rows[(result.rows["model"] == name) & (result.rows["target"] == target)]
        bounds = (own["over_ngram_low"], own["over_ngram"], own["over_ngram_high"])
        fig.add_bar(
            x=own["group"], y=own["over_ngram"], name=f"targets: {target}", marker_color=colour,
            error_y=whiskers(*bounds), customdata=own[["loss", "ngram", "positions"]],
            hovertemplate="%{x}: %{y:+.2f}<br>loss %{customdata[0]:.2f}, "
            "n-gram %{customdata[1]:.2f}<br>%{customdata[2]} positions<extra></extra>",
        )  # fmt: skip
    fig.update_yaxes(title="loss minus n-gram surprisal, nats")
    return _titled(fig, f"{html.escape(str(name))} beside the n-gram model", WHISKERS)


def gradients(result: "LossResult") -> go.Figure:
    """Share of the gradient along the whole gradient, over the models.

    Raises:
        ResultError: gradients were not asked for.
    """
    if result.rows["gradient_share"].isna().all():
        raise ResultError("gradients were not measured; run it with gradients=8 or so")
    fig = go.Figure()
    for group in GROUPS:
        own = _rows(result, group)
        fig.add_scatter(
            x=own["model"], y=own["gradient_share"], name=group, mode="lines+markers",
            line={"color": COLOURS[group]},
        )  # fmt: skip
    fig.update_yaxes(title="share of the gradient", tickformat=".0%")
    below = f"g . G / |G|^2 on {result.settings['gradients']} windows; the shares add up to one"
    return _titled(fig, "share of the gradient by group", below)


def _rows(result: "LossResult", group: str, target: str = ALL) -> "pd.DataFrame":
    rows = result.rows
    return rows[(rows["group"] == group) & (rows["target"] == target)]


def _titled(fig: go.Figure, title: str, below: str) -> go.Figure:
    fig.update_xaxes(type="category")
    fig.update_layout(height=460)
    frame(fig, title[0].upper() + title[1:], below, top=90)
    return fig


FIGURES: dict[str, tuple[Callable[..., go.Figure], str]] = {
    "shares": (shares, "A mean is no share: a group counts by its loss and by its positions."),
    "means": (means, "The paper's figure: mean loss of the next token by the two classes."),
    "baseline": (
        baseline,
        "What the model saves beside the last tokens alone. Targets inside a word are foretold by "
        "the word's beginning, and flatter the group they fall in.",
    ),
    "gradients": (gradients, "Which group moves the weights: the share along the whole gradient."),
}
"""Name of each figure, and its caption."""
