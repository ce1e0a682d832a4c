"""Leaving blocks out, and whether intervals hold the truth of a world as often as they say."""

import numpy as np
import pytest
from graphs import counted, random_firings
from scipy.stats import t

from circuits.block_intervals import block_intervals, leave_one_out
from circuits.class_tables import steady_tokens
from circuits.feature_counting import merged
from circuits.graph_calibration import planted_blocks
from circuits.graph_verdict import widths
from interp.errors import ResultError
from probes.planted_features import COMMON, plant


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
    x = np.array([b.occurrences[0] / 60 for b in blocks])
    found = block_intervals(blocks, lambda c: c.occurrences[:1] / c.n_positions)
    error = x.std(ddof=1) / 3
    width = t.ppf(0.975, 8) * error
    assert found.estimate[0] == pytest.approx(x.mean())
    assert found.error[0] == pytest.approx(error) and found.n_blocks == 9
    assert (found.low[0], found.high[0]) == pytest.approx((x.mean() - width, x.mean() + width))


def test_intervals_hold_the_truth_as_often_as_they_say():
    common = np.arange(COMMON)
    estimates, intervals = [], []
    for sample in range(40):
        planted = plant("bursty", seed=0, sample=sample, n_documents=60, active=4.0)
        blocks, nulls = planted_blocks(planted, n_blocks=6, seed=sample)
        tokens = steady_tokens(blocks, 10)
        mine = np.isin(tokens, common)

        def ratio(*counts, tokens=tokens, mine=mine):
            width = widths(counts, tokens, 10)
            return np.array([width[mine].mean() - width[~mine].mean()])

        found = block_intervals(blocks, ratio, nulls)
        estimates.append(found.estimate[0])
        intervals.append((found.low[0], found.high[0]))
    low, high = np.transpose(intervals)
    # no feature looks at the token, so relative to shuffled labels no class is wider
    held = int(((low <= 0) & (high >= 0)).sum())
    assert held >= 34  # of 40 at .95: fewer than 34 have a chance of 1 %
    assert np.mean(high - low) < 8 * np.std(estimates)


def test_too_few_blocks_are_refused():
    blocks = small_blocks(4)
    with pytest.raises(ResultError, match="4 blocks of documents or more.*got 3"):
        block_intervals(blocks[:3], lambda c: c.occurrences)
    with pytest.raises(ResultError, match="got 4, 3"):
        block_intervals(blocks, lambda c, _: c.occurrences, blocks[:3])
