"""Figures of the growth of features over checkpoints; pure functions of the saved result."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from apps.figure_parts import frame
from interp.errors import UnknownNameError

if TYPE_CHECKING:
    from circuits.growth_result import GrowthResult

LOOKS = {"shared": ("#0072B2", "one dictionary"), "own": ("#D55E00", "a dictionary each")}
"""Colour and name of each kind of dictionary."""
COUNTS = (("alive", "solid", "as it is"), ("alive_matched", "dot", "at equal L0"))


def draw(result: "GrowthResult", kind: str = "growth", **options: Any) -> go.Figure:
    """One figure of a run; `kind` is a name in `FIGURES`.

    Raises:
        UnknownNameError: no such figure.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    return FIGURES[kind][0](result, **options)


def growth(result: "GrowthResult", *, layer: int | None = None) -> go.Figure:
    """Features that fire at least once, as they are and at equal L0; the first layer if None."""
    rows = result.rows
    layer = int(rows["layer"].iloc[0]) if layer is None else layer
    rows = rows[rows["layer"] == layer]
    fig = go.Figure()
    for kind, (colour, name) in LOOKS.items():
        own = rows[rows["dictionary"] == kind]
        for column, dash, how in COUNTS:
            if len(own):
                fig.add_scatter(
                    x=own["model"], y=own[column], name=f"{name}, {how}", mode="lines+markers",
                    line={"color": colour, "dash": dash}, customdata=own[["l0", "fvu", "reading"]],
                    hovertemplate="%{x}: %{y}<br>L0 %{customdata[0]:.1f}, "
                    "FVU %{customdata[1]:.2f}<br>%{customdata[2]}<extra></extra>",
                )  # fmt: skip
    fig.add_hline(y=float(rows["features"].max()), line={"dash": "dash", "color": "#7f8c8d"})
    fig.update_yaxes(title="features that fire at least once", rangemode="tozero")
    fig.update_xaxes(type="category")
    fig.update_layout(height=480)
    below = f"{rows['positions'].iloc[0]:,} positions; dashed line: size of the dictionary"
    frame(fig, f"Features that fire, layer {layer}", below, top=90)
    return fig


FIGURES: dict[str, tuple[Callable[..., go.Figure], str]] = {
    "growth": (
        growth,
        "Counts are comparable at equal L0 only, and not where the dictionary is used up or leaves "
        "most of the variance unexplained. The last place is a model of shuffled weights.",
    ),
}
"""Name of each figure, and its caption."""
