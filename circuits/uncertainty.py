"""How sure is a score, a rank, a top-k set? Bootstrap over needles, not over trials.

Trials of one needle hardly differ from one another; needles do. Resampling trials would give
intervals several times too narrow, so needles are resampled, each with all of its trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import ResultError

N_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Bootstrap of a score over clusters. Arrays are `[head]`, heads flattened.

    Attributes:
        mean: mean over trials.
        low, high: 95 % percentile interval.
        p_top: share of draws in which the head is among the top k.
        p_above: share of draws in which its mean is above the threshold.
        expected_overlap: mean share of the top-k set that a draw keeps.
    """

    mean: Float[np.ndarray, " head"]
    low: Float[np.ndarray, " head"]
    high: Float[np.ndarray, " head"]
    p_top: Float[np.ndarray, " head"]
    p_above: Float[np.ndarray, " head"]
    expected_overlap: float
    n_clusters: int
    n_trials: int


def cluster_sums(
    values: Float[np.ndarray, "trial head"], clusters: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of trials in each cluster: `[cluster, head]`, `[cluster]`."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


def bootstrap(
    values: Float[np.ndarray, "trial head"],
    clusters: Sequence[str] | np.ndarray,
    *,
    k: int = 10,
    threshold: float = 0.1,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Uncertainty:
    """Resample clusters with replacement.

    Raises:
        ResultError: fewer than two clusters, which give no interval.
    """
    sums, counts = cluster_sums(values, clusters)
    if len(counts) < 2:
        raise ResultError(
            f"an interval needs at least 2 needles, {len(counts)} passed; ask for more needles"
        )
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n_draws)
    draws = weights @ sums / (weights @ counts)[:, None]
    mean = sums.sum(0) / counts.sum()
    best = top(mean, k)
    chosen = np.zeros_like(draws, dtype=bool)
    order = np.argsort(-np.nan_to_num(draws, nan=-np.inf), axis=1, kind="stable")[:, :k]
    np.put_along_axis(chosen, order, True, axis=1)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return Uncertainty(
        mean, low, high, chosen.mean(0), (draws > threshold).mean(0),
        float(chosen[:, best].sum(1).mean() / len(best)), len(counts), len(values),
    )  # fmt: skip


def top(mean: Float[np.ndarray, " head"], k: int) -> np.ndarray:
    """Indices of the k largest, first index first on ties; NaN (not applicable) never."""
    order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), kind="stable")[:k]
    return order[~np.isnan(mean[order])]


@dataclass(frozen=True)
class SplitHalf:
    """Agreement between halves of the needles, mean over random splits.

    `ceiling` is the reliability of the whole (Spearman-Brown): the highest correlation that
    another run can be expected to reach with this one.
    """

    pearson: float
    overlap: float
    k: int
    ceiling: float
    n_splits: int


def split_half(
    values: Float[np.ndarray, "trial head"],
    clusters: Sequence[str] | np.ndarray,
    *,
    k: int = 10,
    n_splits: int = 100,
    seed: int = 0,
) -> SplitHalf | None:
    """Split the needles in two at random, many times; None with fewer than four needles."""
    sums, counts = cluster_sums(values, clusters)
    if len(counts) < 4:
        return None
    rng = np.random.default_rng(seed)
    pearsons, overlaps = [], []
    for _ in range(n_splits):
        order = rng.permutation(len(counts))
        halves = [
            sums[part].sum(0) / counts[part].sum() for part in np.array_split(order, 2)
        ]  # two means over disjoint needles
        good = ~np.isnan(halves[0])
        if all(np.ptp(h[good]) > 0 for h in halves):
            pearsons.append(np.corrcoef(halves[0][good], halves[1][good])[0, 1])
        a, b = (set(top(h, k).tolist()) for h in halves)
        overlaps.append(len(a & b))
    r = float(np.mean(pearsons)) if pearsons else float("nan")
    return SplitHalf(r, float(np.mean(overlaps)), k, 2 * r / (1 + r), n_splits)


def settled(uncertainty: Uncertainty, *, share: float = 0.9) -> bool:
    """Whether another sample of needles would keep the top-k set: a draw keeps `share` of it."""
    return uncertainty.expected_overlap >= share
