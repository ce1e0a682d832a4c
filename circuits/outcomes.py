"""Patched evaluations as the mixture takes them, their averages by cell, and how far two are apart.

A cell is where the three pointers lead, (i_P, i_L, i_R); the published mixture (arXiv 2510.06182)
is of averages over the prompts of each cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.errors import ResultError, UnknownNameError

Weights = Literal["cells", "cases"]
"""What weighs the same in a mean over cells: each cell, as published, or each case."""
FEWEST = 6
"""Clusters below which no interval is given: even a sign test could not pass .05."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Patched evaluations: what the model answered, and where each mechanism pointed.

    Attributes:
        probs: softmax over the n candidate answers, one row for each evaluation.
        cells: i_P, i_L, i_R of each, from 0, in the recipient's groups.
        clusters: entity set of each; evaluations of one set are not independent.

    Raises:
        ResultError: other shapes, indices outside the groups, or rows that are no distribution.
    """

    probs: Float[np.ndarray, "case n"]
    cells: Int[np.ndarray, "case 3"]
    clusters: np.ndarray

    def __post_init__(self) -> None:
        probs, cells = np.asarray(self.probs, dtype=float), np.asarray(self.cells)
        if probs.ndim != 2 or not len(probs) or probs.shape[1] < 2:
            raise ResultError(f"outcomes need probs [case, n], n at least 2, got {probs.shape}")
        if cells.shape != (len(probs), 3) or len(self.clusters) != len(probs):
            raise ResultError(
                f"each of {len(probs)} cases needs i_P, i_L, i_R and a cluster, got cells "
                f"{cells.shape} and {len(self.clusters)} clusters"
            )
        if cells.dtype.kind not in "iu" or cells.min() < 0 or cells.max() >= probs.shape[1]:
            raise ResultError(f"cells hold whole numbers from 0 to {probs.shape[1] - 1}, as groups")
        if not (probs >= 0).all() or not np.allclose(probs.sum(1), 1, atol=1e-3):
            raise ResultError("each row of probs must be finite and sum to 1; apply the softmax")
        # float32 sums to 1 only roughly, and the divergence is asked for to 1e-9
        object.__setattr__(self, "probs", probs / probs.sum(1, keepdims=True))
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "clusters", np.asarray(self.clusters))


@dataclass(frozen=True, eq=False)
class CellMeans:
    """Mean distribution and number of cases of each cell (i_P, i_L, i_R) that occurs."""

    cells: Int[np.ndarray, "cell 3"]
    mean: Float[np.ndarray, "cell n"]
    counts: Float[np.ndarray, " cell"]

    @property
    def n(self) -> int:
        """Number of groups."""
        return self.mean.shape[1]

    def take(self, which: Bool[np.ndarray, " cell"]) -> "CellMeans":
        """Some of the cells."""
        return CellMeans(self.cells[which], self.mean[which], self.counts[which])

    def shares(self, weights: Weights = "cells") -> Float[np.ndarray, " cell"]:
        """Weight of each cell in a mean over cells; they sum to 1."""
        if weights not in get_args(Weights):
            raise UnknownNameError("weights", weights, get_args(Weights))
        each = np.ones(len(self.cells)) if weights == "cells" else self.counts
        return each / each.sum()


# -- averages ---------------------------------------------------------------------------------


def cell_means(data: Outcomes | CellMeans) -> CellMeans:
    """Cases averaged by cell, cells in order; means are passed through."""
    if isinstance(data, CellMeans):
        return data
    cells, index = np.unique(data.cells, axis=0, return_inverse=True)
    index = index.reshape(-1)
    counts = np.bincount(index, minlength=len(cells)).astype(float)
    sums = np.stack([np.bincount(index, column, len(cells)) for column in data.probs.T], axis=1)
    return CellMeans(cells, sums / counts[:, None], counts)


def resampled_means(
    outcomes: Outcomes, n_draws: int, seed: int
) -> Iterator[tuple[CellMeans, Bool[np.ndarray, " cell"]]]:
    """Cell means of clusters drawn with replacement, and which cells they still have."""
    cells, cell = np.unique(outcomes.cells, axis=0, return_inverse=True)
    names, cluster = np.unique(outcomes.clusters, return_inverse=True)
    # a cluster's cases of one cell are drawn together: add them up once
    pairs, pair = np.unique(cell.reshape(-1) * len(names) + cluster, return_inverse=True)
    sums = np.stack([np.bincount(pair, column) for column in outcomes.probs.T], axis=1)
    counts, first = np.bincount(pair), np.unique(pairs // len(names), return_index=True)[1]
    rng = np.random.default_rng(seed)
    for _ in range(n_draws):
        weight = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
        weight = weight[pairs % len(names)]
        total = np.add.reduceat(weight * counts, first)
        mass = np.add.reduceat(weight[:, None] * sums, first)
        kept = total > 0
        mean = mass[kept] / total[kept, None]
        yield CellMeans(cells[kept], mean, total[kept].astype(float)), kept


def jsd(p: Float[np.ndarray, "cell n"], q: Float[np.ndarray, "cell n"]) -> Float[np.ndarray, "..."]:
    """Jensen-Shannon divergence of each row in bits: 0 for equal rows, at most 1."""
    return np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0)


def entropy(p: Float[np.ndarray, "cell n"]) -> Float[np.ndarray, " cell"]:
    """Shannon entropy of each row in bits."""
    return -(p * np.log2(np.maximum(p, 1e-300))).sum(-1)


def blend_of_entropy(
    q: Float[np.ndarray, "cell n"], share: Float[np.ndarray, " cell"], bits: float
) -> float:
    """The part, 0 to 1, of one answer drawn from q, the rest being q, of cases of that entropy."""
    from scipy.optimize import brentq

    def excess(part: float) -> float:
        rest = (1 - part) * q
        terms, drawn = (r * np.log2(np.maximum(r, 1e-300)) for r in (rest, rest + part))
        # the entropy by the answer drawn: all terms but its own stay
        by_answer = terms - drawn - terms.sum(1, keepdims=True)
        return float(share @ (q * by_answer).sum(1)) - bits

    if excess(0.0) <= 0:
        return 0.0
    return 1.0 if excess(1.0) >= 0 else float(brentq(excess, 0, 1))
