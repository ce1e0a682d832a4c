"""The pages of runs over checkpoints: groups of losses, growth of features. One offline file each.

What is known in numbers first, then what the numbers do not say, figures, the whole table.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import growth_figures, loss_figures
from apps import html_parts as h
from apps.result_kinds import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from circuits.growth_result import GrowthResult
    from circuits.loss_result import LossResult

LOSS_COLUMNS = {
    "model": "model", "group": "group", "target": "targets", "positions": "positions",
    "share": "of positions", "loss": "loss, nats", "loss_share": "of the loss",
    "ngram": "n-gram, nats", "over_ngram": "loss - n-gram", "fall_share": "of the fall",
    "gradient_norm_share": "of the norms", "gradient_share": "of the gradient",
}  # fmt: skip
NARROW = {
    "model": "model", "group": "group", "share": "pos", "loss": "nats", "loss_share": "loss",
    "ngram": "n-gram", "over_ngram": "beside", "fall_share": "fall",
    "gradient_share": "grad",
}  # fmt: skip
"""The same for the console: shares of positions, loss, fall and gradient; mean, n-gram, difference
in nats."""
GROWTH_COLUMNS = {
    "model": "model", "layer": "layer", "dictionary": "dictionary", "alive": "alive",
    "features": "of", "alive_share": "share", "l0": "L0", "fvu": "FVU",
    "alive_matched": "alive at equal L0", "l0_matched": "that L0", "reading": "reading",
}  # fmt: skip
BOUNDED = ("loss", "loss_share", "over_ngram")
SHARES = ("share", "loss_share", "fall_share", "gradient_norm_share", "gradient_share",
          "alive_share")  # fmt: skip


def loss_page(result: "LossResult") -> str:
    """The page of a run over groups of losses."""
    return h.document(loss_title(result), loss_body(result))


def loss_title(result: "LossResult") -> str:
    """What the page over groups of losses is about."""
    return f"Losses by group: {_series(result)}"


def growth_page(result: "GrowthResult") -> str:
    """The page of a run over the growth of features."""
    return h.document(growth_title(result), growth_body(result))


def growth_title(result: "GrowthResult") -> str:
    """What the page over the growth of features is about."""
    return f"Features that fire: {_series(result)}"


def written(rows: "pd.DataFrame", columns: dict[str, str], *, bounds: bool = True) -> list[list]:
    """The rows of a table as text; a mean with its interval where it has one."""
    return [[_cell(row, name, bounds) for name in columns] for row in rows.to_dict("records")]


def loss_body(result: "LossResult") -> Iterator[h.Part]:
    """The page over groups of losses without its title."""
    yield from h.head(loss_answer(result), KINDS["loss-groups"].caveats)
    captions = {kind: caption for kind, (_, caption) in loss_figures.FIGURES.items()}
    yield from h.figures(result.figure, captions)
    yield "<h2>All numbers, with 95 % intervals over documents</h2>"
    yield h.table(list(LOSS_COLUMNS.values()), written(result.rows, LOSS_COLUMNS))
    yield "<h2>Text</h2>" + h.pairs(result.text)
    yield from h.made_by(result.settings, result.provenance)


def growth_body(result: "GrowthResult") -> Iterator[h.Part]:
    """The page over the growth of features without its title."""
    yield from h.head(growth_answer(result), KINDS["feature-growth"].caveats)
    captions = {kind: caption for kind, (_, caption) in growth_figures.FIGURES.items()}
    yield from h.figures(result.figure, captions)
    yield "<h2>All numbers</h2>"
    yield h.table(list(GROWTH_COLUMNS.values()), written(result.rows, GROWTH_COLUMNS))
    yield "<h2>Text</h2>" + h.pairs(result.text)
    yield from h.made_by(result.settings, result.provenance)


def loss_answer(result: "LossResult") -> str:
    """Shares and means of the last model."""
    return result.reading


def growth_answer(result: "GrowthResult") -> str:
    """Counts of the first and the last model, as they are and at equal L0."""
    rows = result.rows[~result.rows["control"]]
    told = []
    for (layer, kind), own in rows.groupby(["layer", "dictionary"], sort=False):
        first, last = own.iloc[0], own.iloc[-1]
        told.append(
            f"layer {layer}, {kind} dictionary: {first['alive']} to {last['alive']} features fire, "
            f"at equal L0 {first['alive_matched']} to {last['alive_matched']}"
        )
    names = list(result.models)
    return h.sentence(f"{names[0]} to {names[-1]}: {'; '.join(told)}")


def _series(result: "LossResult | GrowthResult") -> str:
    names = list(result.models)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _cell(row: dict[Any, Any], name: str, bounds: bool) -> Any:
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return h.Numeral(f"{value:,}")
    if value != value:  # noqa: PLR0124
        return h.Numeral("–")
    form = ".1%" if name in SHARES else ".2f"
    told = f"{value:{form}}"
    if bounds and name in BOUNDED:
        told += f" ({row[f'{name}_low']:{form}} to {row[f'{name}_high']:{form}})"
    return h.Numeral(told)
