"""The table of a run over groups of losses, from sums by document alone.

Every number is a ratio of two sums over positions. Its interval resamples documents, each with all
of its positions, and all numbers of all models share the draws.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.loss_plan import GROUPS, TARGETS

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""Name of a row over all groups, or over both kinds of targets."""
ROWS = tuple((group, target) for group in (*GROUPS, ALL) for target in (ALL, *TARGETS))
GRADIENTS = ("gradient_norm", "gradient_norm_share", "gradient_share")
CELLS = 2**22
"""Weights of bootstrap draws held at a time."""


@dataclass(frozen=True, eq=False)
class ModelLoss:
    """What is measured of one model: summed losses in nats, and rows of gradients or none."""

    losses: Float[np.ndarray, "document group target"]
    gradients: list[dict[str, Any]] = field(default_factory=list)


def loss_table(
    sums: Mapping[str, Float[np.ndarray, "document group target"]],
    found: Mapping[str, ModelLoss],
    *,
    n_draws: int,
    seed: int,
) -> "pd.DataFrame":
    """A row a model, group and target, each also over all.

    Columns: model, group, target, positions, share (of positions); loss (mean, nats), loss_low,
    loss_high; loss_share (of the summed loss), loss_share_low, loss_share_high; unigram, ngram
    (mean surprisal, nats); over_ngram (loss minus ngram), over_ngram_low, over_ngram_high;
    fall_share (of the fall of the summed loss since the model before); the gradient's columns, see
    `circuits.loss_gradients`. Intervals are of 95 %. What cannot be told is NaN.
    """
    import pandas as pd

    positions, unigram, ngram = (margins(sums[n]) for n in ("positions", "unigram", "ngram"))
    rows: list[dict[str, Any]] = []
    before = None
    for name, own in found.items():
        loss = margins(own.losses)
        whole = np.broadcast_to(loss[:, -3:-2], loss.shape)
        pairs = {
            "loss": (loss, positions), "loss_share": (loss, whole),
            "over_ngram": (loss - ngram, positions),
        }  # fmt: skip
        columns = {
            "positions": positions.sum(0).astype(int),
            "share": positions.sum(0) / positions[:, -3].sum(),
            **_with_intervals(pairs, n_draws, seed),
            "unigram": _ratio(unigram.sum(0), positions.sum(0)),
            "ngram": _ratio(ngram.sum(0), positions.sum(0)),
            "fall_share": _fall(before, loss.sum(0)),
        }
        gradients = {(row["group"], ALL): row for row in own.gradients}
        for i, (group, target) in enumerate(ROWS):
            told = gradients.get((group, target), {})
            rows.append(
                {"model": name, "group": group, "target": target}
                | {k: v[i] for k, v in columns.items()}
                | {k: told.get(k, np.nan) for k in GRADIENTS}
            )
        before = loss.sum(0)
    return pd.DataFrame(rows)


def margins(
    sums: Float[np.ndarray, "document group target"],
) -> Float[np.ndarray, "document row"]:
    """Sums of every row of `ROWS`."""
    groups = np.concatenate([sums, sums.sum(1, keepdims=True)], axis=1)
    both = np.concatenate([groups.sum(2, keepdims=True), groups], axis=2)
    return both.reshape(len(sums), len(ROWS))


def ratio_draws(
    top: Float[np.ndarray, "document row"],
    bottom: Float[np.ndarray, "document row"],
    *,
    n_draws: int,
    seed: int,
) -> Float[np.ndarray, "draw row"]:
    """Ratios of sums in draws of documents with replacement; NaN where a draw holds nothing."""
    parts = [_ratio(w @ top, w @ bottom) for w in _weights(len(top), n_draws, seed)]
    return np.concatenate(parts)


def reading(rows: "pd.DataFrame") -> str:
    """What the last model's rows say, in numbers alone."""
    last = rows[rows["model"] == rows["model"].iloc[-1]].set_index(["group", "target"])
    parts = []
    for group in ("F->C", "C->C"):
        row = last.loc[group, ALL]
        parts.append(
            f"{group} makes {row['share']:.1%} of the positions and {row['loss_share']:.1%} of the "
            f"loss ({row['loss_share_low']:.1%} to {row['loss_share_high']:.1%}), "
            f"{row['loss']:.2f} nats on average, {row['over_ngram']:+.2f} beside the n-gram model"
        )
    first = ", ".join(f"{g} {last.loc[(g, TARGETS[0]), 'loss']:.2f}" for g in ("F->C", "C->C"))
    return (
        f"At {rows['model'].iloc[-1]}, {'; '.join(parts)}. With targets that begin a word: {first}."
    )


# -- helpers ----------------------------------------------------------------------------------


def _with_intervals(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], n_draws: int, seed: int
) -> dict[str, np.ndarray]:
    out = {}
    for name, (top, bottom) in pairs.items():
        draws = ratio_draws(top, bottom, n_draws=n_draws, seed=seed)
        empty = np.isnan(draws).all(0)
        draws[:, empty] = 0
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
        out[name] = _ratio(top.sum(0), bottom.sum(0))
        out[f"{name}_low"] = np.where(empty, np.nan, low)
        out[f"{name}_high"] = np.where(empty, np.nan, high)
    return out


def _weights(n: int, n_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each document is in each draw, some draws at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // n)
    for start in range(0, n_draws, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, n_draws - start))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _fall(before: np.ndarray | None, now: np.ndarray) -> np.ndarray:
    if before is None:
        return np.full(len(now), np.nan)
    fall = before - now
    return _ratio(fall, np.full(len(fall), fall[-3]))
