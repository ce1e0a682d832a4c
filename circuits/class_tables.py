"""Degrees by class of token at equal counts: function and content, and the linguistic classes.

Function tokens are by definition more frequent than all others, so that no pairs of equal
frequency can be made of them: degrees at equal numbers of occurrences compare them. Function
*words* have frequencies that content words have too, and there nearest neighbours do as well.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.block_intervals import Blocks, block_intervals
from circuits.degree_fits import degrees
from circuits.feature_counts import FeatureCounts
from circuits.richness import Tokens, checked_tokens, rarefied_degree
from circuits.statistics import auroc
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

FUNCTION, OTHERS = "function tokens", "other tokens"
"""The two groups by frequency: arXiv 2510.08203's, and the rest (its content tokens)."""
SIZES = (10, 30, 100)
CALIPER = 1.25
"""Largest ratio of frequencies at which two tokens are taken as equally frequent."""
TERMS = ("intercept", "log occurrences", "log documents", "class")


def token_groups(
    classes: Int[np.ndarray, " token"], names: Sequence[str], function: Tokens
) -> dict[str, Int[np.ndarray, " some"]]:
    """Tokens of each group: function tokens and the others by frequency, then each class."""
    member = np.zeros(len(classes), bool)
    member[np.asarray(function, dtype=np.int64)] = True
    groups = {FUNCTION: np.flatnonzero(member), OTHERS: np.flatnonzero(~member)}
    return groups | {name: np.flatnonzero(classes == i) for i, name in enumerate(names)}


def by_class(
    counts: FeatureCounts,
    groups: Mapping[str, Tokens],
    *,
    m: Sequence[int] = SIZES,
    reference: str = OTHERS,
    null: FeatureCounts | None = None,
) -> "pd.DataFrame":
    """Rarefied degrees of each group at each m, and how they compare with those of `reference`.

    A row a group and m: m, group, n (tokens with m occurrences), low, median, high (quartiles),
    mean (geometric), ratio (of medians), p_above (chance that a token of the group has more than
    one of the reference, ties half). With `null`, counts of labels shuffled within documents
    (`circuits.shuffles`), also relative: geometric mean of degree over the token's own null, and
    relative_ratio, that of the group over that of the reference.

    Raises:
        UnknownNameError: the reference is no group.
    """
    import pandas as pd

    if reference not in groups:
        raise UnknownNameError("group", reference, groups)
    rows = []
    for size in m:
        found = {name: _degrees(counts, tokens, size) for name, tokens in groups.items()}
        shifts = {name: _shifts(counts, null, tokens, size) for name, tokens in groups.items()}
        for name, degree in found.items():
            row: dict[str, Any] = {"m": size, "group": name, "n": len(degree)}
            row |= _compared(degree, found[reference])
            if null is not None:
                row["relative"] = _geometric(shifts[name])
                row["relative_ratio"] = row["relative"] / _geometric(shifts[reference])
            rows.append(row)
    return pd.DataFrame(rows)


def matched_pairs(
    counts: FeatureCounts, members: Tokens, pool: Tokens, *, k: int = 5, m: int = 30
) -> "pd.DataFrame":
    """Each member against the k tokens of the pool nearest to it in frequency.

    A row a member that occurs: token, occurrences, partners (those within a factor of 1.25, at
    most k), partner_occurrences (mean), log_ratio of raw degrees and log_ratio_rarefied at m,
    each the mean over partners; NaN where there is none, or fewer than m occurrences.

    Raises:
        ResultError: a token of the members is in the pool.
    """
    import pandas as pd

    members, pool = checked_tokens(counts, members), checked_tokens(counts, pool)
    if np.intersect1d(members, pool).size:
        raise ResultError("a token cannot be its own partner; take the members out of the pool")
    members, pool = (t[counts.occurrences[t] > 0] for t in (members, pool))
    every = np.log(np.maximum(degrees(counts), 0.5))
    rarefied = np.full(counts.n_tokens, np.nan)
    both = np.concatenate([members, pool])
    rarefied[both] = np.log(np.maximum(rarefied_degree(counts, both, m), 0.5))
    log = np.log(np.maximum(counts.occurrences, 1))
    rows = []
    for token in members:
        far = np.abs(log[pool] - log[token])
        near = pool[np.argsort(far, kind="stable")[:k]]
        near = near[np.abs(log[near] - log[token]) <= np.log(CALIPER)]
        rows.append({
            "token": int(token), "occurrences": int(counts.occurrences[token]),
            "partners": len(near),
            "partner_occurrences": _mean(counts.occurrences[near]),
            "log_ratio": every[token] - _mean(every[near]),
            "log_ratio_rarefied": rarefied[token] - _mean(rarefied[near]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def degree_regression(
    counts: FeatureCounts, member: Bool[np.ndarray, " token"], tokens: Tokens
) -> Float[np.ndarray, " term"]:
    """Least squares of log degree on `TERMS` over the tokens, in nats; `member` is the class."""
    tokens = checked_tokens(counts, tokens)
    columns = (
        np.ones(len(tokens)), np.log(counts.occurrences[tokens]),
        np.log(counts.token_documents[tokens]), member[tokens],
    )  # fmt: skip
    degree = np.log(np.maximum(degrees(counts)[tokens], 0.5))
    return np.linalg.lstsq(np.stack(columns, axis=1), degree, rcond=None)[0]


def class_effect(
    blocks: Blocks, member: Bool[np.ndarray, " token"], *, least: int = 10
) -> "pd.DataFrame":
    """The regression with block intervals: term, estimate, low, high, n (tokens).

    Over tokens that keep `least` occurrences whichever block is left out. The class's term is how
    much more a member reaches at equal occurrences and documents, if both act as powers.

    Raises:
        ResultError: too few blocks, or all of these tokens are in the class or none is.
    """
    import pandas as pd

    tokens = steady_tokens(blocks, least)
    if len(np.unique(member[tokens])) < 2:
        raise ResultError(
            f"all or none of the {len(tokens)} tokens with {least} occurrences are in the class; "
            "count more text, or take another class"
        )
    found = block_intervals(blocks, lambda counts: degree_regression(counts, member, tokens))
    return pd.DataFrame({
        "term": TERMS, "estimate": found.estimate, "low": found.low, "high": found.high,
        "n": len(tokens),
    })  # fmt: skip


def steady_tokens(blocks: Blocks, m: int, *, unit: str = "occurrences") -> Int[np.ndarray, " some"]:
    """Tokens that have m occurrences (or `token_documents`) whichever block is left out."""
    each = np.stack([getattr(block, unit) for block in blocks])
    return np.flatnonzero(each.sum(0) - each.max(0) >= m)


# -- helpers ----------------------------------------------------------------------------------


def _degrees(counts: FeatureCounts, tokens: Tokens, m: int) -> np.ndarray:
    degree = rarefied_degree(counts, tokens, m)
    return degree[~np.isnan(degree)]


def _shifts(
    counts: FeatureCounts, null: FeatureCounts | None, tokens: Tokens, m: int
) -> np.ndarray:
    if null is None:
        return np.zeros(0)
    pair = rarefied_degree(counts, tokens, m), rarefied_degree(null, tokens, m)
    own, shuffled = (np.maximum(d[~np.isnan(d)], 0.5) for d in pair)
    return own / shuffled


def _compared(degree: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    nan = float("nan")
    names = ("low", "median", "high", "mean", "ratio", "p_above")
    if not len(degree) or not len(reference):
        return dict.fromkeys(names, nan)
    low, median, high = np.percentile(degree, [25, 50, 75])
    other = float(np.median(reference))
    above = auroc(
        np.append(degree, reference), np.arange(len(degree) + len(reference)) < len(degree)
    )
    values = (low, median, high, _geometric(degree), median / other if other else nan, above)
    return dict(zip(names, map(float, values), strict=True))


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean())) if len(values) else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
