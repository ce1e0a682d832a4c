"""The re-activation index: do features of content tokens come back at function tokens more often?

Three controls, none of which arXiv 2510.08203 has:

| control | what is expected |
|---|---|
| shuffled labels | share of re-activations at function tokens, labels of each window shuffled |
| matched content | odds of content tokens with as many active features, as far on in the window |
| own share | share of the same features' firings, anywhere in the graph, at function tokens |

The index is observed over expected share; for matched content it is the odds ratio of Mantel and
Haenszel over strata, since rates near 1, as in long windows, leave a ratio of them no room. 1 is
chance. Intervals resample documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from circuits.reactivation_pairs import find_sources
from circuits.uncertainty import cluster_sums
from interp.errors import ResultError
from probes.token_classes import CLASSES

if TYPE_CHECKING:
    import pandas as pd

DISTANCES: dict[str, tuple[int, int]] = {
    "1": (1, 1), "2-4": (2, 4), "5-16": (5, 16), "17-64": (17, 64), "65 and more": (65, 1 << 30),
}  # fmt: skip
"""Tokens back to the nearest source, both ends included."""
SOURCES = ("any source", "another token")
"""What counts as a source: any content token, or one that is not the carrier's own token."""
LABELS = 2 * len(CLASSES)
"""Labels of a position: twice the index of its class, plus one for a function token."""
ACTIVITY, PLACE = 24, 24
"""Bins of a position's number of active features and of its place, both logarithmic."""
N_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Cells:
    """Counts of windows.

    Attributes:
        positions: by label. active: active features, by label of the position.
        observed: re-activated ones, by source rule, label of the carrier and distance.
        shuffled: the same under shuffled labels, mean over draws.
        strata: by source rule, stratum, function or not: active and re-activated.
        own: by source rule: re-activations expected at function tokens from the features' own
            shares.
    """

    positions: Int[np.ndarray, "window label"]
    active: Int[np.ndarray, "window label"]
    observed: Int[np.ndarray, "window source label distance"]
    shuffled: Float[np.ndarray, "window source label distance"]
    strata: Int[np.ndarray, "window source stratum function what"]
    own: Float[np.ndarray, "window source"]


def labels_of(
    classes: Int[np.ndarray, " token"], function: np.ndarray
) -> Int[np.ndarray, " token"]:
    """The label of every token of the vocabulary."""
    return 2 * classes + function.astype(classes.dtype)


def count_window(
    tokens: Int[np.ndarray, " pos"],
    position: Int[np.ndarray, " active"],
    feature: Int[np.ndarray, " active"],
    *,
    labels: Int[np.ndarray, " token"],
    own_share: Float[np.ndarray, " feature"],
    n_shuffles: int,
    rng: np.random.Generator,
) -> Cells:
    """Counts of one window, as `Cells` of one window."""
    label = labels[tokens]
    order = np.argsort(rng.random((n_shuffles, len(tokens))), axis=1)
    drawn = np.concatenate([label[None], label[order]])
    found = find_sources(position, feature, drawn % 2 == 0, tokens)
    bins = np.searchsorted([low for low, _ in DISTANCES.values()], position - found.nearest,
                           side="right") - 1  # fmt: skip
    carrier = drawn[:, position]
    counts = []
    for again in (found.nearest >= 0, found.other):
        draw = np.broadcast_to(np.arange(len(drawn))[:, None], again.shape)
        code = (draw * LABELS + carrier) * len(DISTANCES) + bins
        size = len(drawn) * LABELS * len(DISTANCES)
        counts.append(np.bincount(code[again], minlength=size).reshape(len(drawn), LABELS, -1))
    every = np.stack(counts, axis=1)
    again = np.stack([found.nearest[0] >= 0, found.other[0]])
    shuffled = every[1:].mean(0) if n_shuffles else np.zeros(every.shape[1:])
    return Cells(
        np.bincount(label, minlength=LABELS)[None],
        np.bincount(carrier[0], minlength=LABELS)[None], every[:1], shuffled[None],
        _strata(position, carrier[0] % 2, again, len(tokens))[None],
        (again * own_share[feature]).sum(-1)[None],
    )  # fmt: skip


def joined(cells: Sequence[Cells]) -> Cells:
    """Counts of windows one after the other."""
    return Cells(*(np.concatenate([getattr(c, f.name) for c in cells]) for f in fields(Cells)))


def index_table(cells: Cells, documents: Sequence[int], *, seed: int = 0) -> "pd.DataFrame":
    """One row a source rule and control: observed, expected, index, interval over documents.

    Raises:
        ResultError: fewer than two documents, or no feature that came back.
    """
    import pandas as pd

    rows = []
    for s, source in enumerate(SOURCES):
        observed = cells.observed[:, s].sum(-1)
        shuffled = cells.shuffled[:, s].sum(-1)
        again = _by_function(observed)
        measures = {
            "shuffled labels": (np.hstack([again, _by_function(shuffled)]), _share_index),
            "matched content": (cells.strata[:, s].reshape(len(observed), -1), _matched_index),
            "own share": (np.column_stack([again, cells.own[:, s]]), _own_index),
        }
        for control, (columns, statistic) in measures.items():
            row = _interval(columns, documents, statistic, seed)
            rows.append({"source": source, "control": control, "n": int(observed.sum()), **row})
    return pd.DataFrame(rows)


def class_index(cells: Cells, documents: Sequence[int], *, seed: int = 0) -> "pd.DataFrame":
    """One row a class of carrier: its share of all re-activations over that of shuffled labels."""
    import pandas as pd

    function = np.arange(LABELS) % 2 == 1
    groups = {"function token": function, "other token": ~function}
    groups |= {name: np.arange(LABELS) // 2 == i for i, name in enumerate(CLASSES)}
    observed, shuffled = (x[:, 0].sum(-1) for x in (cells.observed, cells.shuffled))
    rows = []
    for name, group in groups.items():
        n, active = int(observed[:, group].sum()), int(cells.active[:, group].sum())
        if not shuffled[:, group].sum():
            continue
        columns = np.column_stack([
            observed[:, ~group].sum(1), observed[:, group].sum(1),
            shuffled[:, ~group].sum(1), shuffled[:, group].sum(1),
        ])  # fmt: skip
        rows.append({
            "class": name, "positions": int(cells.positions[:, group].sum()), "active": active,
            "n": n, "rate": n / max(1, active), **_interval(columns, documents, _share_index, seed),
        })  # fmt: skip
    return pd.DataFrame(rows)


def distance_index(cells: Cells, documents: Sequence[int], *, seed: int = 0) -> "pd.DataFrame":
    """One row a distance to the nearest source: share at function tokens over shuffled labels."""
    import pandas as pd

    rows = []
    for d, name in enumerate(DISTANCES):
        observed, shuffled = cells.observed[:, 0, :, d], cells.shuffled[:, 0, :, d]
        if not observed.sum() or not _by_function(shuffled).sum(0).all():
            continue
        columns = np.hstack([_by_function(observed), _by_function(shuffled)])
        found = _interval(columns, documents, _share_index, seed)
        rows.append({"distance": name, "n": int(observed.sum()), **found})
    return pd.DataFrame(rows)


# -- statistics of summed columns -------------------------------------------------------------

Statistic = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _share_index(x: Float[np.ndarray, "draw 4"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares and their ratio from (rest, own, rest shuffled, own shuffled)."""
    observed, expected = x[:, 1] / (x[:, 0] + x[:, 1]), x[:, 3] / (x[:, 2] + x[:, 3])
    return observed, expected, observed / expected


def _own_index(x: Float[np.ndarray, "draw 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = x[:, 0] + x[:, 1]
    return x[:, 1] / total, x[:, 2] / total, x[:, 1] / x[:, 2]


def _matched_index(
    x: Float[np.ndarray, "draw column"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates at function tokens, of content tokens in the same strata, and the odds ratio."""
    cells = x.reshape(len(x), -1, 2, 2)
    content, again = cells[:, :, 0, 0], cells[:, :, 0, 1]
    active, observed = cells[:, :, 1, 0], cells[:, :, 1, 1]
    shared = (content > 0) & (active > 0)
    active, observed = active * shared, observed * shared
    rate = again / np.maximum(content, 1)
    both = np.maximum(content + active, 1)
    odds = (observed * (content - again) / both).sum(1) / ((active - observed) * again / both).sum(
        1
    )
    return observed.sum(1) / active.sum(1), (active * rate).sum(1) / active.sum(1), odds


def _interval(
    columns: np.ndarray, documents: Sequence[int], statistic: Statistic, seed: int
) -> dict[str, float]:
    """Observed, expected, their ratio, and its percentile interval, documents resampled."""
    sums, _ = cluster_sums(np.asarray(columns, float), np.asarray(documents))
    n = len(sums)
    if n < 2:
        raise ResultError("intervals need text of 2 documents or more; give more files")
    if not sums.any():
        raise ResultError("no feature came back in this text; give more text, or longer windows")
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS)])
    with np.errstate(invalid="ignore", divide="ignore"):
        observed, expected, ratio = statistic(weights @ sums)
    known = ratio[1:][np.isfinite(ratio[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return {
        "observed": float(observed[0]), "expected": float(expected[0]), "index": float(ratio[0]),
        "low": float(low), "high": float(high),
    }  # fmt: skip


def _by_function(x: Float[np.ndarray, "window label"]) -> Float[np.ndarray, "window 2"]:
    return np.column_stack([x[:, ::2].sum(1), x[:, 1::2].sum(1)])


def _strata(
    position: np.ndarray, function: np.ndarray, again: np.ndarray, n: int
) -> Int[np.ndarray, "source stratum function what"]:
    """Active and re-activated features by how many are active there, and how far on."""
    number = np.bincount(position, minlength=n)[position]
    activity = np.minimum(3 * np.log2(1 + number), ACTIVITY - 1).astype(int)
    place = np.minimum(2 * np.log2(1 + position), PLACE - 1).astype(int)
    code = (activity * PLACE + place) * 2 + function
    size = ACTIVITY * PLACE * 2
    active = np.bincount(code, minlength=size)
    out = [np.stack([active, np.bincount(code[a], minlength=size)], -1) for a in again]
    return np.stack(out).reshape(len(again), -1, 2, 2)
