"""Which features that fired at a content token earlier in a window fire again, and where.

Plain arrays, no model: a feature active at a position is *re-activated* there if it was active at
an earlier content position of the same window, its source. The question is that of arXiv
2510.08203 (Fig. 6 there); the paper shows single prompts and no control.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class Sources:
    """Earlier content positions at which each active feature was active; -1 where there is none.

    Attributes:
        first, nearest: the earliest and the latest of them.
        number: how many there are.
        other: one of them holds another token than the position itself, so that the feature does
            not merely come back with its token.
    """

    first: Int[np.ndarray, "*draw active"]
    nearest: Int[np.ndarray, "*draw active"]
    number: Int[np.ndarray, "*draw active"]
    other: Bool[np.ndarray, "*draw active"]


def find_sources(
    position: Int[np.ndarray, " active"],
    feature: Int[np.ndarray, " active"],
    content: Bool[np.ndarray, "*draw pos"],
    tokens: Int[np.ndarray, " pos"],
) -> Sources:
    """Sources of every active feature of one window, in the order given.

    `content` may carry an axis of draws (shuffled labels) in front: all are answered at once.
    """
    order = np.lexsort((position, feature))
    p, f = position[order], feature[order]
    group = np.cumsum(np.diff(f, prepend=f[:1]) != 0)
    source = content[..., p]
    n, v, token = content.shape[-1], int(tokens.max(initial=0)) + 1, tokens[p]
    nearest = _largest_before(p, source, group, n)
    first = _largest_before(n - 1 - p, source, group, n)
    most = _largest_before(token, source, group, v)
    least = _largest_before(v - 1 - token, source, group, v)
    count = np.cumsum(source, axis=-1) - source
    begin = np.searchsorted(group, group)
    found = nearest >= 0
    columns = {
        "first": np.where(found, n - 1 - first, -1),
        "nearest": nearest,
        "number": count - count[..., begin],
        "other": found & ((most != token) | (v - 1 - least != token)),
    }
    back = np.argsort(order)
    return Sources(**{name: column[..., back] for name, column in columns.items()})


def source_positions(
    position: Int[np.ndarray, " active"],
    feature: Int[np.ndarray, " active"],
    content: Bool[np.ndarray, " pos"],
    *,
    chosen: Int[np.ndarray, " pair"],
    most: int,
) -> Int[np.ndarray, "pair slot"]:
    """The `most` latest sources of some active features, latest first; -1 fills unused slots."""
    found = []
    for i in chosen:
        same = (feature == feature[i]) & (position < position[i]) & content[position]
        found.append(np.sort(position[same])[::-1][:most])
    out = np.full((len(found), max(map(len, found), default=0)), -1)
    for row, places in zip(out, found, strict=True):
        row[: len(places)] = places
    return out


def _largest_before(
    key: np.ndarray, mask: np.ndarray, group: np.ndarray, size: int
) -> Int[np.ndarray, "*draw active"]:
    """The largest key (0 to size - 1) among earlier marked entries of the group, or -1."""
    floor = group.astype(np.int64) * (size + 1)
    best = np.maximum.accumulate(np.where(mask, floor + key + 1, floor), axis=-1)
    before = np.concatenate([np.full((*best.shape[:-1], 1), -1), best[..., :-1]], axis=-1)
    out: np.ndarray = np.maximum(before - floor - 1, -1)[..., : len(group)]
    return out
