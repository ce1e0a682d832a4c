"""Patched evaluations one by one: is the mixture of mechanisms inside a prompt or between prompts?

The published mixture (arXiv 2510.06182) is of averages over prompts. The same averages arise where
every prompt holds the mixture, and where every prompt follows one mechanism and prompts differ; an
audit of single outputs found most of them near one-hot. The entropies
tell: H(mean) = mean H + what the case says about the answer. We add the correction without which
cells of few cases decide nothing, intervals over entity sets, and a verdict that can abstain.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from circuits.outcomes import FEWEST, Outcomes, entropy
from circuits.statistics import cluster_interval
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    from circuits.mixture import MixtureFit

Pooled = Literal["cells", "roles"]
"""Cases of which the mean is taken: of one cell, or of one i_P with candidates named by role."""
Where = Literal["within prompts", "between prompts", "undecided"]

COMPONENTS = ("positional", "lexical", "reflexive", "own", "other")
ROLES = ("positional", "near", "lexical", "reflexive", "own", "other")
"""i_P, its neighbours, i_L, i_R, the recipient's own answer i_N, and all other groups."""

WITHIN, BETWEEN = 0.75, 0.25
"""Shares of the entropy that decide: three quarters of it inside prompts, or one quarter."""
LEAST_ENTROPY = 0.2
"""Bits below which the mean is nearly one answer, and nothing is mixed."""


@dataclass(frozen=True)
class CaseLevel:
    """Where the mixture is, and the figures that decide it; entropies in bits.

    Attributes:
        share, low, high: mean entropy of a case over entropy of the mean, from 0 (each prompt gives
            one answer) to 1 (each gives the mean), and its 95 % interval over clusters.
        mean_entropy, entropy_of_mean: the two, means over cases; the latter is corrected.
        one_hot: share of cases whose top answer has at least .9.
        like_mean: share of cases as concentrated as their mean, within the tolerance, of those
            whose mean is farther from one-hot than twice that; None where there are none.
            Concentration is 1 - H / log2(number of candidates).
        n_cases, n_left_out, n_groups: cases used and not used, and groups whose mean was taken.
    """

    pooled: Pooled
    share: float
    low: float | None
    high: float | None
    mean_entropy: float
    entropy_of_mean: float
    one_hot: float
    like_mean: float | None
    n_cases: int
    n_left_out: int
    n_groups: int
    n_clusters: int
    verdict: Where
    reason: str


@dataclass(frozen=True, eq=False)
class Responsibilities:
    """Which mechanism answered: for each case, and the mean by i_P; columns are `COMPONENTS`."""

    case: Float[np.ndarray, "case component"]
    by_position: Float[np.ndarray, "n component"]
    clear: float


# -- verdict ----------------------------------------------------------------------------------


def locate(
    outcomes: Outcomes,
    *,
    i_n: Int[np.ndarray, " case"] | None = None,
    pooled: Pooled = "cells",
    tolerance: float = 0.1,
    seed: int = 0,
) -> CaseLevel:
    """Whether single prompts hold the mixture that their average shows.

    The rule, fixed beforehand:

    0. undecided: fewer than 6 clusters, or a mean with an entropy below 0.2 bits.
    1. within prompts: the interval of the share lies wholly above 0.75.
    2. between prompts: the interval lies wholly below 0.25.
    3. undecided: anything else.

    Cells need 2 cases, and the entropy of their mean is corrected by the jackknife over cases:
    the mean of two one-hot cases has at most 1 bit whatever they are drawn from. Pooling by role
    serves where cells have one case each. It keeps cases whose candidates are clear (i_L, i_R and
    i_N are distinct and not i_P or next to it), and counts differences between cells of one i_P
    as differences between prompts, so that it errs towards "between prompts".

    Clusters are resampled with their jackknife pseudo-values, not with their cases: a case drawn
    twice into a small cell would look like two prompts that agree. Their mean is the share, which
    takes out more of the bias; with 2 cases a cell, what is left of it may be +.1 between the ends.

    Raises:
        ResultError: no group of 2 cases, or an i_n that is no group of each case.
        UnknownNameError: no such pooling.
    """
    probs, group, kept = _pool(outcomes, _own(outcomes, i_n), pooled)
    cluster = np.unique(outcomes.clusters[kept], return_inverse=True)[1].reshape(-1)
    case, mean, used = _entropies(probs, group)
    if not used.any():
        raise ResultError(
            f"no 2 of {len(used)} cases share one of the {pooled}, so that none has a mean; patch "
            "more prompts into each cell, or pass pooled='roles'"
        )
    share = _ratio(case[used].sum(), mean[used].sum())
    names = np.unique(cluster[used])
    low, high = None, None
    if len(names) >= FEWEST:
        pseudo = [
            len(names) * share - (len(names) - 1) * _without(probs, group, cluster == c)
            for c in names
        ]
        ends = cluster_interval(np.array(pseudo), names, seed=seed)
        share, low, high = (float(np.clip(v, 0, 1)) for v in (ends.mean, ends.low, ends.high))
    verdict, reason = _judge(share, low, high, len(names), float(mean[used].mean()))
    top = np.log2(probs.shape[1])
    mixed = used & (mean / top > 2 * tolerance)
    alike = np.abs(case - np.minimum(mean, top))[mixed] / top <= tolerance
    return CaseLevel(
        pooled, share, low, high, float(case[used].mean()), float(mean[used].mean()),
        float((outcomes.probs[kept][used].max(1) >= 0.9).mean()),
        float(alike.mean()) if alike.size else None, int(used.sum()),
        len(outcomes.probs) - int(used.sum()), len(np.unique(group[used])), len(names),
        verdict, reason,
    )  # fmt: skip


def responsibilities(
    outcomes: Outcomes, fit: "MixtureFit", *, i_n: Int[np.ndarray, " case"] | None = None
) -> Responsibilities:
    """Posterior of each mechanism for each case, its answer drawn from its distribution.

    Components over groups: i_L, i_R and i_N (where given) are one-hot, `other` is uniform, and
    `positional` is what the fitted kernel adds to uniform, exp(w_pos K) - 1. Priors by i_P are
    estimated from all cases by expectation maximisation. `clear` is the share of cases of which
    one component has at least .9. Colliding components share by their priors.

    Raises:
        ResultError: a fit of other groups, or one without a kernel.
    """
    n, own = fit.n, _own(outcomes, i_n)
    if fit.w_pos is None or fit.oracle is not None or n != outcomes.probs.shape[1]:
        raise ResultError(
            f"responsibilities need a fit with a kernel over {outcomes.probs.shape[1]} groups, got "
            f"{fit.variant!r} over {n}"
        )
    p = outcomes.cells[:, 0]
    excess = np.expm1(np.clip(fit.positional(), 0, 500))
    kernel = (excess / np.maximum(excess.sum(1, keepdims=True), 1e-300))[p]
    at = [outcomes.cells[:, 1], outcomes.cells[:, 2], *([] if own is None else [own])]
    one, rows = np.eye(n)[p], np.arange(len(p))
    count = np.maximum(one.sum(0), 1)[:, None]
    prior = np.full((n, 5), 1 / 5) * [1, 1, 1, own is not None, 1]
    for _ in range(1000):
        mine = prior[p]
        mix = mine[:, :1] * kernel + mine[:, 4:] / n
        for k, index in enumerate(at, start=1):
            mix[rows, index] += mine[:, k]
        odds = outcomes.probs / np.maximum(mix, 1e-300)
        found = np.zeros((len(p), 5))
        found[:, 0], found[:, 4] = (odds * kernel).sum(1), odds.mean(1)
        for k, index in enumerate(at, start=1):
            found[:, k] = odds[rows, index]
        found *= mine
        before, prior = prior, one.T @ found / count
        if np.abs(prior - before)[one.any(0)].max() < 1e-6:
            break
    prior[~one.any(0)] = np.nan
    return Responsibilities(found, prior, float((found.max(1) >= 0.9).mean()))


# -- helpers ----------------------------------------------------------------------------------


def _entropies(probs: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By case: its entropy, the corrected entropy of its group's mean, whether that has 2 cases."""
    count = np.bincount(group)[group].astype(float)
    sums = np.stack([np.bincount(group, column) for column in probs.T], axis=1)[group]
    used = count > 1
    rest = entropy((sums - probs) / np.maximum(count - 1, 1)[:, None])
    rest = (np.bincount(group, rest) / np.maximum(np.bincount(group), 1))[group]
    return entropy(probs), count * entropy(sums / count[:, None]) - (count - 1) * rest, used


def _ratio(case: float, mean: float) -> float:
    return float(case / mean) if mean > 0 else 1.0


def _without(probs: np.ndarray, group: np.ndarray, left_out: np.ndarray) -> float:
    case, mean, used = _entropies(probs[~left_out], group[~left_out])
    return _ratio(case[used].sum(), mean[used].sum())


def _judge(
    share: float, low: float | None, high: float | None, n_clusters: int, entropy_of_mean: float
) -> tuple[Where, str]:
    if low is None or high is None:
        return "undecided", f"{n_clusters} clusters give no interval, {FEWEST} are needed"
    if entropy_of_mean < LEAST_ENTROPY:
        return "undecided", f"the mean has {entropy_of_mean:.2g} bits: nothing is mixed"
    figures = f"{share:.2f} [{low:.2f}, {high:.2f}] of the entropy is inside single prompts"
    if low > WITHIN:
        return "within prompts", f"{figures}, more than {WITHIN}"
    if high < BETWEEN:
        return "between prompts", f"{figures}, less than {BETWEEN}"
    return "undecided", f"{figures}, neither above {WITHIN} nor below {BETWEEN}"


def _own(outcomes: Outcomes, i_n: np.ndarray | None) -> np.ndarray | None:
    if i_n is None:
        return None
    own, n = np.asarray(i_n), outcomes.probs.shape[1]
    if own.shape != (len(outcomes.probs),) or own.dtype.kind not in "iu" or not (own < n).all():
        raise ResultError(f"i_n needs a group from 0 to {n - 1} for each case, got {own.shape}")
    return own


def _pool(
    outcomes: Outcomes, own: np.ndarray | None, pooled: Pooled
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distributions of the cases kept, the group of each, and which were kept."""
    p, lexical, reflexive = outcomes.cells.T
    if pooled == "cells":
        group = np.unique(outcomes.cells, axis=0, return_inverse=True)[1].reshape(-1)
        return outcomes.probs, group, np.ones(len(p), dtype=bool)
    if pooled != "roles":
        raise UnknownNameError("pooling", pooled, get_args(Pooled))
    others = [lexical, reflexive] if own is None else [lexical, reflexive, own]
    clear = np.all([np.abs(i - p) > 1 for i in others], axis=0)
    for k, i in enumerate(others):
        clear &= np.all([i != j for j in others[:k]], axis=0)
    distance = np.abs(np.arange(outcomes.probs.shape[1]) - p[:, None])
    role = np.select([distance == 0, distance == 1], [0, 1], len(ROLES) - 1)
    for k, i in enumerate(others):
        role[np.arange(len(p)), i] = k + 2
    used = [k for k in range(len(ROLES)) if own is not None or ROLES[k] != "own"]
    mass = np.stack([(outcomes.probs * (role == k)).sum(1) for k in used], axis=1)
    return mass[clear], p[clear], clear
