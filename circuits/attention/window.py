"""Attention of heads over a window of queries and keys of a trial, read on demand, max-pooled.

The queries of the window run again behind what comes before them, so any part of a T x T pattern
can be had without the rest of it. Max-pooling keeps every token that stands out: a mean would
hide a needle of one token among thousands.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuits.attention.capture import MEMORY
from circuits.attention.record import PooledMaps, in_steps
from interp.errors import SiteError
from interp.sites import Head
from interp.trace import Prefix, RowRead
from probes.grid import Context, Trial

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

BINS = 96
"""Bins of an axis: what a panel can show, and a person can see."""
QUERIES = 128
"""Rows read at one time at most."""


def trial_tokens(context: Context, trial: Trial) -> tuple[int, ...]:
    """All that the model reads in a trial, the answer forced but for its last token."""
    return (*context.tokens[: trial.length], *trial.suffix, *trial.answer[:-1])


def edges(start: int, stop: int, n_bins: int = BINS) -> tuple[int, ...]:
    """Bounds of at most n bins of nearly the same size, at least one token each."""
    n = min(n_bins, stop - start)
    return tuple(int(e) for e in np.linspace(start, stop, n + 1).round())


def pooled(
    model: "HFModel",
    prefix: Prefix,
    tokens: Sequence[int],
    heads: Sequence[Head],
    *,
    q_edges: Sequence[int],
    k_edges: Sequence[int],
) -> Float[np.ndarray, "chosen q k"]:
    """Largest weight of each cell of queries and keys; keys behind the query weigh 0.

    Args:
        prefix: the beginning of `tokens`, read; queries behind it run as well.
        q_edges, k_edges: ascending bounds of the cells, positions in `tokens`.

    Raises:
        SiteError: bounds that do not ascend or lie outside the tokens.
    """
    for name, bounds in (("queries", q_edges), ("keys", k_edges)):
        if len(bounds) < 2 or list(bounds) != sorted(set(bounds)):
            raise SiteError(f"{name} need ascending bounds, at least two, got {list(bounds)[:4]}")
        if bounds[0] < 0 or bounds[-1] > len(tokens):
            raise SiteError(f"{name} {bounds[0]} to {bounds[-1]} leave the {len(tokens)} tokens")
    missing = tokens[len(prefix) : q_edges[-1] - 1]
    prefix = model.grow(prefix, missing) if missing else prefix
    out = np.zeros((len(heads), len(q_edges) - 1, len(k_edges) - 1), np.float32)
    step = max(1, min(QUERIES, MEMORY // (4 * len(heads) * q_edges[-1])))
    cells = np.repeat(np.arange(len(q_edges) - 1), np.diff(q_edges))
    for start in range(q_edges[0], q_edges[-1], step):
        asked = tokens[start : min(start + step, q_edges[-1])]
        read = RowRead((tuple(range(len(asked))),), whole=tuple(heads), peaks=False)
        trace = model.extend(prefix if start else None, [asked], at=[start], read=[read])
        for h, head in enumerate(heads):
            for i, row in enumerate(trace.rows[0].whole[head]):
                full = np.zeros(k_edges[-1], np.float32)
                n = min(len(row), len(full))
                full[:n] = row[:n].numpy()
                cell = out[h, cells[start + i - q_edges[0]]]
                np.maximum(cell, np.maximum.reduceat(full, k_edges[:-1]), out=cell)
    return out


def pooled_maps(
    model: "HFModel", prefix: Prefix, context: Context, trial: Trial, heads: Sequence[Head]
) -> PooledMaps:
    """The whole trial's map of a few heads: the context in bins, every token behind it alone."""
    tokens = trial_tokens(context, trial)
    bounds = (*edges(0, trial.length), *range(trial.length + 1, len(tokens) + 1))
    ahead = prefix.crop(trial.length)  # a scan's context goes on behind the trial's
    values = pooled(model, ahead, tokens, heads, q_edges=bounds, k_edges=bounds)
    return PooledMaps(trial.name, tuple(heads), bounds, bounds, in_steps(values))
