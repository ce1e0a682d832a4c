"""Leaving blocks out, and whether intervals hold the truth of a world as often as they say."""

import numpy as np
import pytest
from graphs import counted, random_firings
from scipy.stats import t

from circuits.block_intervals import block_intervals, leave_one_out
from circuits.feature_counting import count_positions, merged
from circuits.richness import rarefied_degree
from circuits.shuffles import shuffled_within
from interp.errors import ResultError
from probes.planted_features import plant


def small_blocks(n, **sizes):
    return [counted(*random_firings(i, **sizes), n_tokens=4, n_features=7) for i in range(n)]


@pytest.mark.parametrize("n", [4, 7])
def test_leaving_one_out_equals_merging_the_others(n):
    blocks = small_blocks(n)
    pairs = list(zip(blocks, blocks[::-1], strict=True))
    for i, left in enumerate(leave_one_out(pairs)):
        for series, got in zip((blocks, blocks[::-1]), left, strict=True):
            rest = merged([b for j, b in enumerate(series) if j != i])
            assert np.array_equal(got.count, rest.count)
            assert np.array_equal(got.feature, rest.feature)
            assert np.array_equal(got.largest, rest.largest)


def test_of_a_mean_the_interval_is_students():
    blocks = small_blocks(9)
    x = np.array([b.occurrences[0] for b in blocks], float)
    found = block_intervals(blocks, lambda c: c.occurrences[:1] / 9)
    # of n blocks the mean is sum / n, with one left out sum / n too unless rescaled: a pseudo-mean
    found = block_intervals(
        blocks, lambda c: np.array([c.occurrences[0] / (c.n_documents / 5)]),
    ) if all(b.n_documents == 5 for b in blocks) else found  # fmt: skip
    error = x.std(ddof=1) / 3
    width = t.ppf(0.975, 8) * error
    assert found.estimate[0] == pytest.approx(x.mean())
    assert found.error[0] == pytest.approx(error)
    assert (found.low[0], found.high[0]) == pytest.approx((x.mean() - width, x.mean() + width))


def test_intervals_hold_the_truth_as_often_as_they_say():
    common, content = np.arange(24), np.arange(24, 44)

    def ratio(counts, null):
        both = np.concatenate([common, content])
        shift = np.log(rarefied_degree(counts, both, 8) / rarefied_degree(null, both, 8))
        return np.array([shift[:24].mean() - shift[24:].mean()])

    estimates, intervals = [], []
    for sample in range(40):
        blocks, nulls = sampled("bursty", sample)
        found = block_intervals(blocks, ratio, nulls)
        estimates.append(found.estimate[0])
        intervals.append((found.low[0], found.high[0]))
    truth = np.mean(estimates)
    low, high = np.transpose(intervals)
    held = int(((low <= truth) & (truth <= high)).sum())
    assert held >= 34  # of 40 at .95: fewer than 34 have a chance of 1 %
    assert np.mean(high - low) < 8 * np.std(estimates)


def sampled(name, sample, n_blocks=6):
    """Counts of blocks of a sample of a world, and of the shuffled labels."""
    w = plant(name, seed=0, sample=sample, n_documents=60, n_features=300, active=4.0)
    mixed = shuffled_within(w.tokens, w.document, seed=sample)
    block = w.document * n_blocks // 60
    sizes = {"n_tokens": w.n_tokens, "n_features": w.n_features}
    series = []
    for tokens in (w.tokens, mixed):
        starts = np.searchsorted(block, np.arange(n_blocks + 1))
        fired = np.searchsorted(w.row, starts)
        series.append([
            count_positions(
                tokens[a:b], w.document[a:b], w.row[c:d] - a, w.feature[c:d], w.value[c:d], **sizes
            )
            for a, b, c, d in zip(starts, starts[1:], fired, fired[1:], strict=False)
        ])  # fmt: skip
    return series


def test_too_few_blocks_are_refused():
    blocks = small_blocks(4)
    with pytest.raises(ResultError, match="4 blocks of documents or more.*got 3"):
        block_intervals(blocks[:3], lambda c: c.occurrences)
    with pytest.raises(ResultError, match="got 4, 3"):
        block_intervals(blocks, lambda c, _: c.occurrences, blocks[:3])
