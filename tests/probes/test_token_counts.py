"""Counts of tokens against a Counter, the published shares, and a law that was drawn from."""

from collections import Counter

import numpy as np
import pytest

from interp.errors import PromptError, ResultError
from probes.documents import Window
from probes.token_counts import TokenCounts, by_frequency, count_tokens, function_tokens, zipf_fit

PUBLISHED = (
    3.60,
    3.19,
    2.31,
    1.81,
    1.80,
    1.68,
    1.59,
    1.33,
    1.16,
    0.91,
    0.74,
    0.70,
    0.64,
    0.62,
    0.49,
)
"""Shares in % of the first 15 tokens, arXiv 2510.08203."""


def counts_of(occurrences):
    occurrences = np.asarray(occurrences)
    return TokenCounts(occurrences, occurrences, int(occurrences.sum()), 1)


def test_counts_equal_a_counter_whatever_the_batches(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [tuple(rng.integers(9, size=n).tolist()) for n in (5, 1, 30, 0, 12)]
    cut = [
        Window(d, str(d), s, (9, *t[s : s + 4]))
        for d, t in enumerate(texts)
        for s in range(0, max(len(t), 1), 4)
    ]
    for batch in (1, 7, 1000):
        monkeypatch.setattr("probes.token_counts.BATCH", batch)
        for given in (texts, cut):
            found = count_tokens(given, 10, skip=[9])
            brute = Counter(t for text in texts for t in text)
            spread = Counter(t for text in texts for t in set(text))
            assert found.occurrences.tolist() == [brute[t] for t in range(10)]
            assert found.documents.tolist() == [spread[t] for t in range(10)]
            assert (found.n_tokens, found.n_documents) == (48, 5)
    halves = count_tokens(texts[:2], 10).add(count_tokens(texts[2:], 10))
    assert np.array_equal(halves.documents, found.documents) and halves.n_documents == 5


def test_function_tokens_on_the_published_shares():
    top = [round(p * 1000) for p in PUBLISHED]
    rest = np.full(7742, 10)
    counts = counts_of([*top, *rest, 100_000 - sum(top) - rest.sum()][:-1])
    # of a corpus of 100 %: the shares are those printed, so the sums are too, but for rounding
    counts = TokenCounts(counts.occurrences, counts.documents, 100_000, 1)
    assert counts.shares[:10].sum() == pytest.approx(0.1939, abs=2e-4)
    assert counts.shares[:15].sum() == pytest.approx(0.2258, abs=2e-4)
    assert function_tokens(counts, 0.1938).tolist() == list(range(10))
    assert function_tokens(counts, 0.19381).tolist() == list(range(11))


def test_the_token_that_crosses_the_cut_is_in_and_ties_go_by_id():
    counts = counts_of([1, 4, 4, 0, 1])
    assert by_frequency(counts).tolist() == [1, 2, 0, 4]
    assert function_tokens(counts, 0.4).tolist() == [1]
    assert function_tokens(counts, 0.41).tolist() == [1, 2]
    assert function_tokens(counts, 1.0).tolist() == [1, 2, 0, 4]


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_zipf_fit_recovers_the_exponent_drawn_from(exponent):
    rank = np.arange(1, 2001.0)
    exact = np.round(1e9 * rank**-exponent).astype(np.int64)
    fit = zipf_fit(counts_of(exact))
    assert fit.least_squares == pytest.approx(exponent, abs=1e-3) and fit.r2 > 0.9999
    assert fit.likelihood == pytest.approx(exponent, abs=1e-3)
    p = rank**-exponent / (rank**-exponent).sum()
    drawn = np.random.default_rng(0).multinomial(200_000, p)
    found = zipf_fit(counts_of(drawn), last=200)
    # standard error of the exponent from the information in the occurrences of those ranks
    n, x = drawn[:200].sum(), np.log(rank[:200])
    w = p[:200] / p[:200].sum()
    error = 1 / np.sqrt(n * (w @ x**2 - (w @ x) ** 2))
    assert (found.first, found.last) == (1, 200)
    assert abs(found.likelihood - exponent) < 5 * error


def test_refusals():
    with pytest.raises(PromptError, match="vocabulary of 3"):
        count_tokens([[3]], 3)
    with pytest.raises(ResultError, match="0 to 1"):
        function_tokens(counts_of([1]), 0)
    with pytest.raises(ResultError, match="needs 3 ranks"):
        zipf_fit(counts_of([10, 9]))
    with pytest.raises(ResultError, match="one tokenizer"):
        counts_of([1]).add(counts_of([1, 2]))
