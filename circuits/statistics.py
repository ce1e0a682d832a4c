"""Intervals, p-values and corrections for effects of head sets. Pure functions of arrays.

Trials of one needle (or template) repeat each other, so every interval and every sign flip works
on clusters of trials, as in `circuits.uncertainty`. Heads of one layer are not independent either,
so the permutation over heads stays within layers: a free one, as a plain Spearman p assumes, finds
the layer's effect in place of the head's. scipy and statsmodels do what they can do; they are
imported only when called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from circuits.uncertainty import cluster_sums
from interp.errors import ResultError, UnknownNameError

FLIPPED = 16
"""Clusters up to which all flips of signs are gone through."""

Clusters = Sequence[str] | np.ndarray
Tail = Literal["less", "greater", "two-sided"]
N_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over trials and its bootstrap interval over clusters, in the values' unit."""

    mean: float
    low: float
    high: float
    n_trials: int
    n_clusters: int


@dataclass(frozen=True, eq=False)
class Intervals:
    """The same for many columns at once; all columns share the draws."""

    mean: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    n_trials: int
    n_clusters: int


@dataclass(frozen=True)
class McNemar:
    """Paired pass or fail: trials lost, trials gained, two-sided exact p."""

    lost: int
    gained: int
    p: float


# -- intervals --------------------------------------------------------------------------------


def cluster_interval(
    values: Float[np.ndarray, " trial"],
    clusters: Clusters,
    *,
    n_draws: int = N_DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over trials with a percentile interval, clusters resampled with all their trials.

    Raises:
        ResultError: fewer than two clusters, or not one cluster name for each trial.
    """
    column = np.asarray(values, dtype=float)[:, None]
    many = cluster_intervals(column, clusters, n_draws=n_draws, level=level, seed=seed)
    mean, low, high = (float(v[0]) for v in (many.mean, many.low, many.high))
    return Interval(mean, low, high, many.n_trials, many.n_clusters)


def cluster_intervals(
    values: Float[np.ndarray, "trial column"],
    clusters: Clusters,
    *,
    n_draws: int = N_DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """`cluster_interval` of every column; a column that holds NaN is NaN throughout.

    Raises:
        ResultError: fewer than two clusters, or not one cluster name for each trial.
    """
    sums, counts = _by_cluster(values, clusters)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n_draws)
    draws = weights @ sums / (weights @ counts)[:, None]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return Intervals(sums.sum(0) / counts.sum(), low, high, len(values), len(counts))


def clopper_pearson(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate, k passes in n trials that are independent of each other.

    Raises:
        ResultError: no trials, or k outside 0 to n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= k <= n:
        raise ResultError(f"a rate needs 0 <= passes <= trials and a trial, got {k} of {n}")
    interval = binomtest(int(k), int(n)).proportion_ci(confidence_level=level, method="exact")
    return float(interval.low), float(interval.high)


# -- p-values ---------------------------------------------------------------------------------


def randomisation_p(
    observed: float, draws: Float[np.ndarray, " draw"], *, tail: Tail = "two-sided"
) -> float:
    """Share of draws at least as extreme, the observed one counted: (1 + count) / (1 + draws).

    `two-sided` doubles the smaller tail, at most 1. The smallest p that n draws can give is
    1 / (n + 1), twice that for both sides.

    Raises:
        ResultError: no draws, or a number that is not finite.
        UnknownNameError: no such tail.
    """
    draws = np.asarray(draws, dtype=float).reshape(-1)
    if not draws.size or not np.isfinite([observed, *draws]).all():
        raise ResultError("a randomisation test needs draws, all finite; look for NaN in the runs")
    # the same trials summed in another order differ in the last bits, yet are as extreme
    slack = 1e-12 * max(abs(observed), np.abs(draws).max())
    less = (1 + (draws <= observed + slack).sum()) / (1 + draws.size)
    greater = (1 + (draws >= observed - slack).sum()) / (1 + draws.size)
    both = min(1.0, 2 * min(less, greater))
    return float({"less": less, "greater": greater, "two-sided": both}[_tail(tail)])


def sign_flip_p(
    differences: Float[np.ndarray, " trial"],
    clusters: Clusters,
    *,
    tail: Tail = "two-sided",
    n_draws: int = 9999,
    seed: int = 0,
) -> float:
    """Paired permutation test: the sign of each cluster's mean difference is flipped at random.

    Exact where 2 ** clusters is at most `n_draws`; k clusters give no p below 2 ** -k. Clusters
    weigh the same, whatever their number of trials.

    Raises:
        ResultError: fewer than two clusters.
    """
    from scipy.stats import permutation_test

    means = _cluster_means(differences, clusters)
    done = permutation_test(
        (means,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_draws,
        alternative=_tail(tail),
        random_state=np.random.default_rng(seed),  # scipy before 1.15 has no `rng`
    )
    return float(done.pvalue)


def sign_flip_ps(
    differences: Float[np.ndarray, "trial column"], clusters: Clusters, *, seed: int = 0
) -> Float[np.ndarray, " column"]:
    """`sign_flip_p`, two-sided, of many columns at once, with the same flips for all of them.

    Exact up to 16 clusters; beyond, 2 ** 16 random flips, the observed one counted. A column of
    NaN has p NaN.

    Raises:
        ResultError: fewer than two clusters.
    """
    means = np.stack([_cluster_means(column, clusters) for column in differences.T], axis=1)
    n = len(means)
    if n <= FLIPPED:
        codes = np.arange(2**n)[:, None] >> np.arange(n) & 1
        signs = 1.0 - 2 * codes
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2**FLIPPED, n))
        signs[0] = 1
    observed = np.abs(means.mean(0))
    count = np.zeros(means.shape[1])
    for block in np.array_split(signs, max(1, len(signs) // 4096)):
        # flips that give the same mean may differ in the last bits
        count += (np.abs(block @ means / n) >= observed * (1 - 1e-9)).sum(0)
    return np.where(np.isnan(observed), np.nan, count / len(signs))


def layer_permutation_p(
    score: Float[np.ndarray, "layer head"],
    effect: Float[np.ndarray, "layer head"],
    *,
    tail: Tail = "two-sided",
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Spearman's rho between score and effect of heads, and its p; NaN, NaN where one is constant.

    The null permutes heads within their layers, so a score that only tells layers apart is no
    evidence: its p is near 1. Heads with NaN in either are left out.

    Raises:
        ResultError: other shapes, or fewer than 3 heads with both.
    """
    from scipy.stats import rankdata

    if score.shape != effect.shape:
        raise ResultError(f"scores {score.shape} and effects {effect.shape} must be of one shape")
    known = ~(np.isnan(score) | np.isnan(effect))
    if known.sum() < 3:
        raise ResultError(f"a correlation needs 3 heads with score and effect, got {known.sum()}")
    x, y = (_centred(rankdata(v[known])) for v in (score, effect))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    if scale == 0:
        return float("nan"), float("nan")
    draws = _within(y, np.nonzero(known)[0], n_draws, np.random.default_rng(seed))
    rho = float(x @ y) / scale
    return rho, randomisation_p(rho, draws @ x / scale, tail=tail)


def mcnemar_exact(before: Bool[np.ndarray, " trial"], after: Bool[np.ndarray, " trial"]) -> McNemar:
    """Exact test of paired pass or fail, two-sided; trials are taken as independent.

    With several trials a needle, `sign_flip_p` on the difference is the honest test.

    Raises:
        ResultError: other numbers of trials.
    """
    from scipy.stats import binomtest

    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape:
        raise ResultError(f"pairs need as many trials, got {before.size} and {after.size}")
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return McNemar(lost, gained, float(p))


# -- corrections ------------------------------------------------------------------------------


def holm(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Holm's step-down p over the family; NaN stays NaN and does not count.

    Raises:
        ResultError: a p outside 0 to 1.
    """
    from statsmodels.stats.multitest import multipletests

    out, known = _family(p)
    if known.any():
        out[known] = multipletests(out[known], method="holm")[1]
    return out


def benjamini_hochberg(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Benjamini and Hochberg's q over the family; NaN stays NaN and does not count.

    Raises:
        ResultError: a p outside 0 to 1.
    """
    from scipy.stats import false_discovery_control

    out, known = _family(p)
    if known.any():
        out[known] = false_discovery_control(out[known], method="bh")
    return out


# -- sizes ------------------------------------------------------------------------------------


def standardised(differences: Float[np.ndarray, " trial"], clusters: Clusters) -> float:
    """Cohen's d_z: mean over sd of the cluster means; NaN for sd 0 or fewer than two clusters."""
    if len(np.unique(np.asarray(clusters))) < 2:
        return float("nan")
    means = _cluster_means(differences, clusters)
    sd = means.std(ddof=1)
    # equal means differ in their last bits, which would give a size of 1e16
    return float("nan") if sd <= 1e-12 * np.abs(means).max() else float(means.mean() / sd)


def auroc(score: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Chance that a true head scores above a false one, ties half; NaN if there is no such pair.

    Heads whose score is NaN are left out.
    """
    from scipy.stats import mannwhitneyu

    score, truth = np.asarray(score, dtype=float), np.asarray(truth, dtype=bool)
    known = ~np.isnan(score)
    yes, no = score[known & truth], score[known & ~truth]
    if not yes.size or not no.size:
        return float("nan")
    return float(mannwhitneyu(yes, no, method="asymptotic").statistic / (yes.size * no.size))


# -- helpers ----------------------------------------------------------------------------------


def _by_cluster(values: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    if len(values) != len(clusters):
        raise ResultError(f"each trial needs a cluster, got {len(values)} and {len(clusters)}")
    sums, counts = cluster_sums(np.asarray(values, dtype=float), clusters)
    if len(counts) < 2:
        raise ResultError(
            f"an interval needs at least 2 needles, got {len(counts)}; ask for more needles"
        )
    return sums, counts


def _cluster_means(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    sums, counts = _by_cluster(np.asarray(values, dtype=float)[:, None], clusters)
    return sums[:, 0] / counts


def _centred(ranks: np.ndarray) -> np.ndarray:
    return ranks - ranks.mean()


def _within(
    values: np.ndarray, layer: np.ndarray, n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw head"]:
    draws = np.tile(values, (n_draws, 1))
    for one in np.unique(layer):
        mine = layer == one
        draws[:, mine] = rng.permuted(draws[:, mine], axis=1)
    return draws


def _family(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = np.array(p, dtype=float)
    known = ~np.isnan(out)
    if ((out[known] < 0) | (out[known] > 1)).any():
        raise ResultError(f"p-values lie in 0 to 1, got {out[known].min()} to {out[known].max()}")
    return out, known


def _tail(tail: Tail) -> Tail:
    if tail not in get_args(Tail):
        raise UnknownNameError("tail", tail, get_args(Tail))
    return tail
