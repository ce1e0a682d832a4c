"""The bootstrap against a slow loop and against worlds whose answer is known."""

import numpy as np
import pytest

from circuits.uncertainty import bootstrap, cluster_sums, settled, split_half, top
from interp.errors import ResultError


def _world(n_clusters, n_each, between, within, seed=0, means=(0.5, 0.3, 0.1)):
    rng = np.random.default_rng(seed)
    means = np.array(means)
    effect = between * rng.standard_normal((n_clusters, 1, len(means)))
    noise = within * rng.standard_normal((n_clusters, n_each, len(means)))
    values = (means + effect + noise).reshape(-1, len(means))
    return values, np.repeat([f"n{i}" for i in range(n_clusters)], n_each)


def test_bootstrap_equals_a_slow_loop_over_resampled_needles():
    values, clusters = _world(7, 3, 0.1, 0.02)
    ours = bootstrap(values, clusters, n_draws=400, seed=3)
    names = np.unique(clusters)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(7, np.full(7, 1 / 7), size=400)
    draws = []
    for row in weights:
        rows = [values[clusters == n] for n, w in zip(names, row, strict=True) for _ in range(w)]
        draws.append(np.concatenate(rows).mean(0))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    assert np.allclose(ours.low, low) and np.allclose(ours.high, high)
    assert np.allclose(ours.mean, values.mean(0))


def test_intervals_cover_the_truth_where_trials_of_a_needle_repeat_each_other():
    covered = 0
    for seed in range(200):
        values, clusters = _world(20, 8, 0.2, 0.01, seed)
        u = bootstrap(values, clusters, n_draws=200, seed=seed)
        covered += int(u.low[0] <= 0.5 <= u.high[0])
    assert 0.86 * 200 <= covered <= 0.99 * 200


def test_resampling_trials_instead_would_be_several_times_too_narrow():
    values, clusters = _world(10, 20, 0.2, 0.01)
    by_needle = bootstrap(values, clusters)
    by_trial = bootstrap(values, np.arange(len(values)).astype(str))
    assert (by_needle.high - by_needle.low)[0] > 3 * (by_trial.high - by_trial.low)[0]


def test_rank_probabilities_and_stopping():
    sure, clusters = _world(12, 2, 0.01, 0.01)
    u = bootstrap(sure, clusters, k=1, threshold=0.2)
    assert u.p_top.tolist() == [1, 0, 0] and u.p_above.tolist() == [1, 1, 0]
    assert settled(u)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((12, 40))
    assert not settled(bootstrap(noise, [f"n{i}" for i in range(12)], k=10))


def test_split_half_is_high_for_stable_heads_and_low_for_noise():
    values, clusters = _world(12, 2, 0.01, 0.01, means=np.linspace(0, 1, 30))
    stable = split_half(values, clusters, k=5)
    assert stable.pearson > 0.99 and stable.overlap > 4.5 and stable.ceiling >= stable.pearson
    noise = np.random.default_rng(1).standard_normal((24, 30))
    assert split_half(noise, clusters, k=5).overlap < 3


def test_one_needle_gives_no_interval_but_a_clear_line():
    with pytest.raises(ResultError, match="at least 2 needles"):
        bootstrap(np.ones((3, 4)), ["a", "a", "a"])
    assert split_half(np.ones((3, 4)), ["a", "b", "c"]) is None


def test_heads_without_attention_are_never_on_top():
    mean = np.array([0.1, np.nan, 0.3])
    assert top(mean, 3).tolist() == [2, 0]
    sums, counts = cluster_sums(np.ones((3, 2)), ["a", "b", "a"])
    assert counts.tolist() == [2, 1] and sums[0].tolist() == [2, 2]
