"""How many features a token reaches, at equal numbers of occurrences: exact, without resampling.

A token that stands at ten times as many positions meets more features, whatever it is: the raw
degree of arXiv 2510.08203 is mostly a frequency. So an occurrence is taken as a sampling unit at
which a feature fires or not, as a trap is in ecology, and degrees are compared at m occurrences
(rarefaction), at m documents, or at equal completeness. Unseen features are told of too: Good and
Turing's completeness, Chao's lower bound of the degree at any number of occurrences.

Occurrences in one document are not independent of each other, and neither rarefaction heals that:
documents of one topic are still documents of one topic. The null that does, labels permuted
within documents, cannot be derived from counts; count `circuits.shuffles.shuffled_within` tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuits.feature_counts import FeatureCounts
from interp.errors import ResultError

Tokens = Sequence[int] | Int[np.ndarray, " some"]
Number = np.ndarray | float
CHUNK = 4_000_000
"""Entries worked on at a time."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """Features reached by the first k tokens of a list, and their share of two denominators.

    `of_dictionary` divides by all features, `of_alive` by those that any token of the counts
    activated; the paper does not say which of the two it used.
    """

    reached: Int[np.ndarray, " k"]
    of_dictionary: Float[np.ndarray, " k"]
    of_alive: Float[np.ndarray, " k"]


def rarefied_degree(counts: FeatureCounts, tokens: Tokens, m: float) -> Float[np.ndarray, " some"]:
    """Expected number of distinct features in m occurrences of each token; NaN below m.

    D_t(m) = sum over f of 1 - C(N_t - n_tf, m) / C(N_t, m).

    Raises:
        ResultError: m below 1, or a token outside the vocabulary.
    """
    return _rarefied(counts, tokens, m, counts.occurrences, counts.count)


def document_rarefied_degree(
    counts: FeatureCounts, tokens: Tokens, m: float
) -> Float[np.ndarray, " some"]:
    """Expected number of distinct features in m documents that hold the token; NaN below m.

    Whole documents are drawn, so a token that stands more often in each of them meets more
    features: this controls for spread over documents, not for density within one.

    Raises:
        ResultError: m below 1, or a token outside the vocabulary.
    """
    return _rarefied(counts, tokens, m, counts.token_documents, counts.documents)


def rarefaction_curves(
    counts: FeatureCounts, tokens: Tokens, sizes: Sequence[float]
) -> Float[np.ndarray, "some size"]:
    """`rarefied_degree` at each of several numbers of occurrences."""
    return np.stack([rarefied_degree(counts, tokens, m) for m in sizes], axis=1)


def random_positions(counts: FeatureCounts, m: int) -> float:
    """Expected number of distinct features at m positions drawn blindly from all positions read.

    Exact (hypergeometric), for labels permuted over all positions. `counts` must hold every
    token's row.

    Raises:
        ResultError: m outside 0 to the number of positions.
    """
    if not 0 <= m <= counts.n_positions:
        raise ResultError(f"{m} positions were asked for of {counts.n_positions} that were read")
    firing, features = np.unique(counts.firing[counts.firing > 0], return_counts=True)
    return float(features @ -np.expm1(log_missed(counts.n_positions, firing, m)))


def blind_coverage(counts: FeatureCounts, n_positions: int) -> float:
    """The same as a share of the features that fired at all: mean of 1 - C(N - n_f, M)/C(N, M).

    Raises:
        ResultError: more positions than were read, or no feature fired.
    """
    alive = int((counts.firing > 0).sum())
    if not alive:
        raise ResultError("no feature fired at any position, so there is no coverage; count again")
    return random_positions(counts, n_positions) / alive


def cumulative_coverage(counts: FeatureCounts, tokens: Tokens) -> Coverage:
    """Features reached by the first 1, 2, ... of the tokens, in the order given.

    Raises:
        ResultError: a token outside the vocabulary, or one named twice.
    """
    tokens = checked_tokens(counts, tokens)
    first = np.full(counts.n_features, len(tokens))
    for _, entries, owner in _blocks(counts, tokens):
        fresh = first[counts.feature[entries]] == len(tokens)
        # backwards, since the last of several values that are written to a place stays
        first[counts.feature[entries][fresh][::-1]] = owner[fresh][::-1]
    reached = np.cumsum(np.bincount(first, minlength=len(tokens) + 1)[: len(tokens)])
    alive = max(1, int((counts.firing > 0).sum()))
    return Coverage(reached, reached / counts.n_features, reached / alive)


def completeness(counts: FeatureCounts, tokens: Tokens) -> Float[np.ndarray, " some"]:
    """Good and Turing's 1 - f1/n: share of the token's firing that falls on features seen.

    f1 is the number of features seen once with the token, n its firings in all; NaN where none.
    """
    once, firings = _sums(counts, tokens, [lambda n: n == 1, lambda n: n])
    with np.errstate(invalid="ignore"):
        return 1 - once / np.where(firings, firings, np.nan)


def chao2(counts: FeatureCounts, tokens: Tokens) -> Float[np.ndarray, " some"]:
    """Lower bound of the degree at any number of occurrences, S + (N-1)/N f1^2 / (2 f2).

    With no feature seen twice, f1 (f1 - 1) / 2 stands for the quotient (Chao 1987).
    """
    seen, once, twice = _sums(counts, tokens, [lambda n: n > 0, lambda n: n == 1, lambda n: n == 2])
    n = np.maximum(counts.occurrences[np.asarray(tokens, dtype=np.int64)], 1)
    unseen = np.where(twice > 0, once**2 / np.maximum(2 * twice, 1), once * (once - 1) / 2)
    return seen + (n - 1) / n * unseen


def equally_complete_degree(
    counts: FeatureCounts, tokens: Tokens, target: float
) -> Float[np.ndarray, " some"]:
    """Degree at equal completeness: D_t at the m at which the expected completeness is `target`.

    That of m occurrences is 1 - sum over f of (n_tf / n_t) C(N_t - n_tf, m) / C(N_t - 1, m)
    (Chao and Jost 2012, for incidence); m may be a fraction. NaN where all the occurrences but
    one are less complete than that.

    Raises:
        ResultError: a target outside 0 to 1.
    """
    if not 0 < target < 1:
        raise ResultError(f"a completeness lies between 0 and 1, got {target}")
    tokens = checked_tokens(counts, tokens)
    n = counts.occurrences[tokens].astype(float)
    low, high = np.zeros(len(tokens)), np.maximum(n - 1, 0)
    reached = completeness(counts, tokens) >= target
    for _ in range(40):
        middle = (low + high) / 2
        enough = _expected_completeness(counts, tokens, middle) >= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reached, _degrees(counts, tokens, np.maximum(high, 1e-9)), np.nan)


# -- helpers ----------------------------------------------------------------------------------


def log_missed(units: Number, hits: Number, m: Number) -> Float[np.ndarray, "..."]:
    """Log of C(units - hits, m) / C(units, m): that m units drawn hold none of the hits."""
    from scipy.special import gammaln

    left = np.asarray(units - hits, dtype=float)
    possible = left >= m
    left = np.where(possible, left, m)
    units = np.asarray(units, dtype=float)
    constant = gammaln(np.maximum(units - m, 0) + 1) - gammaln(units + 1)
    return np.where(possible, gammaln(left + 1) - gammaln(left - m + 1) + constant, -np.inf)


def checked_tokens(counts: FeatureCounts, tokens: Tokens) -> Int[np.ndarray, " some"]:
    """The tokens as an array.

    Raises:
        ResultError: a token outside the vocabulary, or one named twice.
    """
    tokens = np.asarray(tokens, dtype=np.int64).reshape(-1)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < counts.n_tokens:
        raise ResultError(
            f"tokens {tokens.min()} to {tokens.max()} were asked for, the counts hold 0 to "
            f"{counts.n_tokens - 1}; were they counted with another tokenizer?"
        )
    if len(np.unique(tokens)) < len(tokens):
        raise ResultError("a token is named twice; name each once")
    return tokens


def _rarefied(
    counts: FeatureCounts, tokens: Tokens, m: float, units: np.ndarray, hits: np.ndarray
) -> np.ndarray:
    if m < 1:
        raise ResultError(f"a degree is rarefied to one occurrence or more, got {m}")
    tokens = checked_tokens(counts, tokens)
    enough = units[tokens] >= m
    kept, out = tokens[enough], np.full(len(tokens), np.nan)
    found = np.zeros(len(kept))
    for some, entries, owner in _blocks(counts, kept):
        met = -np.expm1(log_missed(units[kept[owner]], hits[entries], m))
        found[some] = np.bincount(owner - some.start, met, some.stop - some.start)
    out[enough] = found
    return out


def _degrees(counts: FeatureCounts, tokens: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Degree of each token at its own m."""
    out = np.zeros(len(tokens))
    for some, entries, owner in _blocks(counts, tokens):
        log = log_missed(counts.occurrences[tokens[owner]], counts.count[entries], m[owner])
        out[some] = np.bincount(owner - some.start, -np.expm1(log), some.stop - some.start)
    return out


def _expected_completeness(
    counts: FeatureCounts, tokens: np.ndarray, m: np.ndarray
) -> Float[np.ndarray, " some"]:
    out = np.zeros(len(tokens))
    for some, entries, owner in _blocks(counts, tokens):
        hits = counts.count[entries]
        # C(N - n, m) / C(N - 1, m): the unit left out is the one whose feature is asked about
        missed = np.exp(log_missed(counts.occurrences[tokens[owner]] - 1, hits - 1, m[owner]))
        size = some.stop - some.start
        firings = np.bincount(owner - some.start, hits, size)
        lost = np.bincount(owner - some.start, hits * missed, size)
        out[some] = 1 - lost / np.maximum(firings, 1)
    return out


def _sums(
    counts: FeatureCounts, tokens: Tokens, terms: Sequence[Callable[[np.ndarray], np.ndarray]]
) -> list[np.ndarray]:
    """Sums of functions of n_tf over each token's entries."""
    tokens = checked_tokens(counts, tokens)
    out = [np.zeros(len(tokens)) for _ in terms]
    for some, entries, owner in _blocks(counts, tokens):
        for sums, term in zip(out, terms, strict=True):
            value = term(counts.count[entries])
            sums[some] = np.bincount(owner - some.start, value, some.stop - some.start)
    return out


def _blocks(
    counts: FeatureCounts, tokens: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Stretches of tokens, their entries, and the place in `tokens` that each entry belongs to."""
    lengths = counts.indptr[tokens + 1] - counts.indptr[tokens]
    ends = np.cumsum(lengths)
    start = 0
    while start < len(tokens):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        size = lengths[start:stop]
        owner = np.repeat(np.arange(start, stop), size)
        offset = counts.indptr[tokens[start:stop]] - (np.cumsum(size) - size)
        yield slice(start, stop), np.arange(size.sum()) + np.repeat(offset, size), owner
        start = stop
