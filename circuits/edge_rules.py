"""When does a token "activate" a feature? Rules for edges, and what a blind null gives under each.

arXiv 2510.08203 draws an edge for a single activation of any size. On a small model 59-66 % of
such edges rest on one activation, and asking for 30 % of the feature's largest activation takes
the coverage of the first token from 63-83 % to 4-41 %: so the rule is part of the result.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuits.feature_counts import FeatureCounts
from circuits.richness import Tokens, checked_tokens, log_missed
from interp.errors import UnknownNameError


@dataclass(frozen=True)
class EdgeRule:
    """A rule, by its kind (see `KINDS`) and the number that the kind asks for."""

    name: str
    kind: str
    at: float
    title: str


def peak_rule(share: float) -> EdgeRule:
    """An edge needs one activation of this share of the feature's largest."""
    return EdgeRule(f"{share:.6g}%", "peak", share, f"{share:.6g} % of the feature's largest")


def count_rule(n: float) -> EdgeRule:
    """An edge needs this many occurrences of the token at which the feature fired."""
    return EdgeRule(f"count>={n:.6g}", "count", n, f"{n:.6g} occurrences")


def documents_rule(n: float) -> EdgeRule:
    """An edge needs this many documents in which it was seen."""
    return EdgeRule(f"documents>={n:.6g}", "documents", n, f"{n:.6g} documents")


def mass_rule(share: float) -> EdgeRule:
    """Edges go to the fewest tokens that hold this share of the feature's activation."""
    return EdgeRule(f"mass>={share:.6g}%", "mass", share, f"{share:.6g} % of all activation")


ANY = EdgeRule("any", "count", 1, "any activation (the paper's)")
RULES: dict[str, EdgeRule] = {
    rule.name: rule
    for rule in (
        ANY, *map(peak_rule, (10, 20, 30, 50)), *map(count_rule, (2, 5, 10)),
        *map(documents_rule, (2, 5)), mass_rule(90),
    )
}  # fmt: skip
"""Rules that are compared when none is named."""

SPELLINGS: dict[str, Callable[[float], EdgeRule]] = {
    r"(\d+(?:\.\d+)?)%": peak_rule,
    r"count>=(\d+)": count_rule,
    r"documents>=(\d+)": documents_rule,
    r"mass>=(\d+(?:\.\d+)?)%": mass_rule,
}


def parse_rule(text: str) -> EdgeRule:
    """A rule from "any", "30%", "count>=5", "documents>=2" or "mass>=90%".

    Raises:
        UnknownNameError: none of these, or a number that no edge could meet.
    """
    plain = re.sub(r"\s", "", text)
    if plain == "any":
        return ANY
    for spelling, make in SPELLINGS.items():
        if (found := re.fullmatch(spelling, plain)) is not None:
            rule = make(float(found[1]))
            if 0 < rule.at <= (100 if "%" in plain else np.inf):
                return rule
    remedy = "(a share such as 25%, count>=N, documents>=N or mass>=N%)"
    raise UnknownNameError("edge rule", text, RULES, remedy=remedy)


def apply_rule(counts: FeatureCounts, rule: EdgeRule) -> FeatureCounts:
    """The entries that are edges under the rule.

    `counts` must hold every token's row: the largest activation of a feature, and all of it, are
    taken over all tokens.
    """
    return counts.select(KINDS[rule.kind](counts, rule.at))


def blind_range(counts: FeatureCounts, rule: EdgeRule, tokens: Tokens) -> tuple[float, float]:
    """Coverage that the tokens would have if labels were permuted over positions: low, high.

    A share of the features that fired at all. `count`: exact (hypergeometric). `peak`: how many
    of an entry's activations reach the threshold lies between bounds, from its number, its sum
    and its largest; each bound is then exact. NaN for `documents` and `mass`, which need more than
    counts.
    """
    sizes = counts.occurrences[checked_tokens(counts, tokens)]
    alive = counts.firing > 0
    if rule.kind == "count" and rule.at > 1:
        hits, features = np.unique(counts.firing[alive], return_counts=True)
        below = _all_fewer(counts.n_positions, hits, sizes, int(np.ceil(rule.at)))
        value = 1 - float(features @ below / features.sum())
        return value, value
    if rule.kind == "count":
        return _blind(counts.n_positions, counts.firing[alive], sizes)
    if rule.kind != "peak":
        return float("nan"), float("nan")
    low, high = (
        np.bincount(counts.feature, bound, counts.n_features)[alive]
        for bound in _strong(counts, rule.at)
    )
    return (
        _blind(counts.n_positions, low, sizes)[0], _blind(counts.n_positions, high, sizes)[0],
    )  # fmt: skip


# -- kinds ------------------------------------------------------------------------------------


def _by_peak(counts: FeatureCounts, share: float) -> Bool[np.ndarray, " entry"]:
    return counts.largest >= _threshold(counts, share)


def _by_mass(counts: FeatureCounts, share: float) -> Bool[np.ndarray, " entry"]:
    order = np.lexsort((-counts.total, counts.feature))
    total = counts.total[order].astype(float)
    sums = np.bincount(counts.feature, counts.total, counts.n_features)
    before = np.cumsum(total) - total
    first = np.searchsorted(counts.feature[order], np.arange(counts.n_features))
    if len(before):
        before -= before[np.minimum(first, len(before) - 1)][counts.feature[order]]
    keep = np.zeros(counts.n_entries, bool)
    # relative slack: a sum of float32 that ought to equal the share misses it in the last bits
    keep[order] = before < share / 100 * sums[counts.feature[order]] * (1 - 1e-6)
    return keep


KINDS: dict[str, Callable[[FeatureCounts, float], Bool[np.ndarray, " entry"]]] = {
    "count": lambda counts, n: counts.count >= n,
    "documents": lambda counts, n: counts.documents >= n,
    "peak": _by_peak,
    "mass": _by_mass,
}
"""Entries that are edges, by kind of rule."""


# -- helpers ----------------------------------------------------------------------------------


def _threshold(counts: FeatureCounts, share: float) -> Float[np.ndarray, " entry"]:
    return np.float32(share / 100) * counts.peak[counts.feature]


def _strong(counts: FeatureCounts, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the number of activations of each entry that reach the threshold."""
    at = _threshold(counts, share).astype(float)
    reached = _by_peak(counts, share)
    n, total = counts.count.astype(float), counts.total.astype(float)
    # k of them at most the largest and the rest below the threshold: total < k largest + (n-k) at
    slack = 1e-5 * total
    least = (total - slack - n * at) / np.maximum(counts.largest - at, 1e-30)
    low = np.clip(np.ceil(least), 1, n)
    high = np.clip(np.floor((total + slack) / np.maximum(at, 1e-30)), 1, n)
    return np.where(reached, np.minimum(low, high), 0), np.where(reached, high, 0)


def _blind(n: int, hits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    value = float(np.mean(-np.expm1(log_missed(n, hits, float(sizes.sum()))))) if len(hits) else 0.0
    return value, value


def _all_fewer(n: int, hits: np.ndarray, sizes: np.ndarray, least: int) -> np.ndarray:
    """Chance that of n positions labelled blindly no token of these sizes gets `least` hits.

    Multivariate hypergeometric: the ways to place j hits on the tokens, fewer than `least` on
    each, are the coefficients of a product of polynomials.
    """
    from scipy.special import logsumexp

    ways = np.zeros(1)
    for size in sizes:
        own = _log_choose(float(size), np.arange(least))
        table = np.full((least, len(ways) + least - 1), -np.inf)
        for k in range(least):
            table[k, k : k + len(ways)] = ways + own[k]
        ways = logsumexp(table, axis=0)
    rest = _log_choose(float(n - sizes.sum()), hits[:, None] - np.arange(len(ways)))
    return np.exp(logsumexp(ways + rest, axis=1) - _log_choose(float(n), hits))


def _log_choose(a: float, b: np.ndarray) -> Float[np.ndarray, "..."]:
    from scipy.special import gammaln

    possible = (b >= 0) & (b <= a)
    b = np.where(possible, b, 0.0)
    log = gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)
    return np.where(possible, log, -np.inf)
