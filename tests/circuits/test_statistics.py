"""Statistics against loops, full enumeration and worlds whose answer is known."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import statistics as stats
from circuits.uncertainty import bootstrap
from interp.errors import ResultError, UnknownNameError


def _clustered(n_clusters, n_each, seed=0, mean=0.5):
    rng = np.random.default_rng(seed)
    between = 0.2 * rng.standard_normal((n_clusters, 1))
    values = mean + between + 0.02 * rng.standard_normal((n_clusters, n_each))
    return values.reshape(-1), np.repeat([f"n{i}" for i in range(n_clusters)], n_each)


# -- intervals --------------------------------------------------------------------------------


def test_interval_equals_a_slow_loop_over_resampled_clusters():
    values, clusters = _clustered(6, 3)
    values, clusters = values[:-2], clusters[:-2]  # clusters of unequal size
    ours = stats.cluster_interval(values, clusters, n_draws=300, level=0.9, seed=4)
    names = np.unique(clusters)
    rng = np.random.default_rng(4)
    draws = []
    for row in rng.multinomial(6, np.full(6, 1 / 6), size=300):
        drawn = [values[clusters == n] for n, w in zip(names, row, strict=True) for _ in range(w)]
        draws.append(np.concatenate(drawn).mean())
    assert np.allclose([ours.low, ours.high], np.percentile(draws, [5, 95]))
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.n_trials, ours.n_clusters) == (16, 6)


def test_many_columns_at_once_equal_one_at_a_time_and_the_bootstrap_of_scores():
    values, clusters = _clustered(8, 2)
    columns = np.stack([values, values**2, np.full(16, np.nan)], axis=1)
    many = stats.cluster_intervals(columns, clusters, n_draws=200, seed=1)
    one = stats.cluster_interval(columns[:, 1], clusters, n_draws=200, seed=1)
    assert (many.mean[1], many.low[1], many.high[1]) == pytest.approx((one.mean, one.low, one.high))
    assert np.isnan([many.mean[2], many.low[2], many.high[2]]).all()
    scores = bootstrap(columns, clusters, n_draws=200, seed=1)
    assert np.allclose(many.low, scores.low, equal_nan=True)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        u = stats.cluster_interval(*_clustered(20, 5, seed), n_draws=300, seed=seed)
        covered += u.low <= 0.5 <= u.high
    assert 0.86 * 200 <= covered <= 0.99 * 200


def test_one_cluster_or_no_cluster_for_a_trial_is_refused():
    with pytest.raises(ResultError, match="at least 2 needles, got 1"):
        stats.cluster_interval(np.ones(3), ["a"] * 3)
    with pytest.raises(ResultError, match="each trial needs a cluster, got 3 and 2"):
        stats.cluster_interval(np.ones(3), ["a", "b"])


@pytest.mark.parametrize(("k", "n"), [(3, 10), (0, 7), (7, 7), (1, 200)])
def test_clopper_pearson_ends_where_the_binomial_tails_are_two_and_a_half_percent(k, n):
    def tail(p, counts):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    low, high = stats.clopper_pearson(k, n)
    assert low == 0 if k == 0 else tail(low, range(k, n + 1)) == pytest.approx(0.025)
    assert high == 1 if k == n else tail(high, range(k + 1)) == pytest.approx(0.025)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (4, 3), (-1, 3)])
def test_a_rate_of_nothing_is_refused(k, n):
    with pytest.raises(ResultError, match="0 <= passes <= trials"):
        stats.clopper_pearson(k, n)


# -- p-values ---------------------------------------------------------------------------------


def test_randomisation_p_by_hand():
    draws = np.array([1.0, 2, 3, 4])
    assert stats.randomisation_p(0, draws, tail="less") == 1 / 5
    assert stats.randomisation_p(2, draws, tail="less") == 3 / 5  # a tie counts
    assert stats.randomisation_p(2, draws, tail="greater") == 4 / 5
    assert stats.randomisation_p(0, draws, tail="two-sided") == 2 / 5
    assert stats.randomisation_p(2, draws) == 1


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.integers(-5, 5))
def test_randomisation_p_equals_counting(draws, observed):
    less = 1 + sum(d <= observed for d in draws)
    greater = 1 + sum(d >= observed for d in draws)
    n, array = 1 + len(draws), np.array(draws)
    assert stats.randomisation_p(observed, array, tail="less") == less / n
    assert stats.randomisation_p(observed, array, tail="greater") == greater / n
    assert stats.randomisation_p(observed, array) == min(1, 2 * min(less, greater) / n)


def test_a_tie_that_rounding_broke_is_still_a_tie():
    total = 0.1 + 0.2
    assert total != 0.3
    assert stats.randomisation_p(total, np.array([0.3, 9]), tail="greater") == 1
    assert stats.randomisation_p(0.3, np.array([total, -9]), tail="less") == 1


def test_randomisation_p_refuses_nothing_nan_and_unknown_tails():
    for draws in ([], [1.0, np.nan]):
        with pytest.raises(ResultError, match="needs draws, all finite"):
            stats.randomisation_p(0, np.array(draws))
    with pytest.raises(UnknownNameError, match="did you mean less"):
        stats.randomisation_p(0, np.ones(2), tail="lesser")


@pytest.mark.parametrize("tail", ["less", "greater", "two-sided"])
def test_sign_flips_of_few_clusters_are_enumerated(tail):
    values, clusters = _clustered(6, 3, mean=0.15)
    means = [values[clusters == n].mean() for n in np.unique(clusters)]
    null = [np.mean(np.multiply(means, s)) for s in itertools.product([1, -1], repeat=6)]
    less = np.mean([v <= np.mean(means) + 1e-12 for v in null])
    greater = np.mean([v >= np.mean(means) - 1e-12 for v in null])
    expected = {"less": less, "greater": greater, "two-sided": min(1, 2 * min(less, greater))}
    assert stats.sign_flip_p(values, clusters, tail=tail) == pytest.approx(expected[tail])


def test_sign_flips_of_many_clusters_are_drawn_with_the_seed():
    values, clusters = _clustered(20, 2, mean=0.3)
    p = stats.sign_flip_p(values, clusters, n_draws=999, seed=1)
    assert p == stats.sign_flip_p(values, clusters, n_draws=999, seed=1)
    assert p <= 0.01
    with pytest.raises(ResultError, match="at least 2 needles"):
        stats.sign_flip_p(np.ones(3), ["a"] * 3)


def test_sign_flips_do_not_count_repeated_trials_as_evidence():
    """Five needles of 40 equal trials are five observations: p cannot fall below 2 / 2**5."""
    clusters = np.repeat(list("abcde"), 40)
    assert stats.sign_flip_p(np.ones(200), clusters) == pytest.approx(2 / 2**5)


def test_layer_permutation_equals_enumeration_of_all_orders_within_layers():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(2)
    score, effect = rng.standard_normal((2, 3, 4))
    effect = effect - 0.7 * score
    effect[1, 2] = np.nan
    score = score.round(0)  # ties
    known = ~np.isnan(effect)
    rho, p = stats.layer_permutation_p(score, effect, n_draws=20000, seed=0)
    assert rho == pytest.approx(spearmanr(score[known], effect[known]).statistic)
    rows = [list(itertools.permutations(effect[i][known[i]])) for i in range(3)]
    sample = rng.permutation(list(itertools.product(*map(range, map(len, rows)))))[:1500]
    flat = score[known]
    null = np.array(
        [
            spearmanr(flat, np.concatenate([r[i] for r, i in zip(rows, w, strict=True)])).statistic
            for w in sample
        ]
    )
    slow = 2 * min((null <= rho + 1e-9).mean(), (null >= rho - 1e-9).mean())
    assert p == pytest.approx(slow, abs=0.03)


def test_a_score_that_only_tells_layers_apart_is_no_evidence():
    """A free permutation would call this highly significant."""
    rng = np.random.default_rng(0)
    depth = np.arange(6)[:, None] * 10.0
    score, effect = depth + rng.standard_normal((2, 6, 8))
    rho, p = stats.layer_permutation_p(score, effect, seed=0)
    assert rho > 0.9 and p > 0.05
    ties = stats.layer_permutation_p(np.repeat(depth, 8, 1), np.repeat(depth, 8, 1))
    assert ties == pytest.approx((1, 1))


def test_layer_permutation_finds_heads_within_layers():
    rng = np.random.default_rng(0)
    score = rng.standard_normal((6, 8))
    effect = -score + 0.3 * rng.standard_normal((6, 8))
    rho, p = stats.layer_permutation_p(score, effect, n_draws=999)
    assert rho < -0.8 and p == pytest.approx(2 / 1000)
    assert stats.layer_permutation_p(score, effect, n_draws=999, tail="greater")[1] == 1


def test_layer_permutation_of_nothing():
    nan = stats.layer_permutation_p(np.ones((2, 3)), np.arange(6.0).reshape(2, 3))
    assert np.isnan(nan).all()
    with pytest.raises(ResultError, match="needs 3 heads with score and effect, got 2"):
        stats.layer_permutation_p(np.array([[1, 2, np.nan]]), np.array([[1.0, 2, 3]]))
    with pytest.raises(ResultError, match="of one shape"):
        stats.layer_permutation_p(np.ones((2, 3)), np.ones((3, 2)))


def test_layer_permutation_is_fair_where_score_and_effect_are_unrelated():
    hits = 0
    for seed in range(200):
        score, effect = np.random.default_rng(seed).standard_normal((2, 4, 6))
        hits += stats.layer_permutation_p(score, effect, n_draws=199, seed=seed)[1] <= 0.05
    assert hits <= 18  # 200 x .05 and 2.6 sd


@pytest.mark.parametrize(("lost", "gained"), [(6, 1), (3, 3), (0, 5), (0, 0), (12, 2)])
def test_mcnemar_equals_the_binomial_sum(lost, gained):
    before = np.array([True] * lost + [False] * gained + [True] * 4 + [False] * 2)
    after = np.array([False] * lost + [True] * gained + [True] * 4 + [False] * 2)
    n, k = lost + gained, min(lost, gained)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert stats.mcnemar_exact(before, after) == stats.McNemar(lost, gained, pytest.approx(p))


def test_mcnemar_needs_pairs():
    with pytest.raises(ResultError, match="got 2 and 3"):
        stats.mcnemar_exact(np.ones(2, bool), np.ones(3, bool))


# -- corrections and sizes --------------------------------------------------------------------


def _slow_holm(p):
    order = np.argsort(p)
    out, worst = np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def _slow_bh(p):
    return np.array(
        [
            min(min(1.0, len(p) * q / sum(other <= q for other in p)) for q in p if q >= mine)
            for mine in p
        ]
    )


@settings(deadline=None, max_examples=25)  # statsmodels collects garbage at each call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_equal_the_step_by_step_definitions(p):
    assert np.allclose(stats.holm(np.array(p)), _slow_holm(p))
    assert np.allclose(stats.benjamini_hochberg(np.array(p)), _slow_bh(p))


@pytest.mark.parametrize("correct", [stats.holm, stats.benjamini_hochberg])
def test_nan_stays_and_does_not_count(correct):
    p = np.array([[0.01, np.nan], [0.04, 0.5]])
    out = correct(p)
    assert np.allclose(out[~np.isnan(p)], correct(p[~np.isnan(p)]))
    assert np.isnan(out[0, 1]) and out.shape == p.shape
    assert np.isnan(p[0, 1]) and p[0, 0] == 0.01  # the input is as it was
    assert np.isnan(correct(np.array([np.nan]))).all() and correct(np.array([])).size == 0
    with pytest.raises(ResultError, match="lie in 0 to 1"):
        correct(np.array([0.1, 1.2]))


def test_standardised_is_over_cluster_means():
    differences = np.array([1.0, 3, 3, 5, 6])
    assert stats.standardised(differences, list("aabbc")) == pytest.approx(4 / 2)
    assert np.isnan(stats.standardised(differences, ["a"] * 5))
    assert np.isnan(stats.standardised(np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.3]), list("aaabbb")))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_auroc_equals_counting_pairs(heads):
    score = np.array([[float(s) for s, _ in heads], [np.nan] * len(heads)])
    truth = np.array([[t for _, t in heads], [True] * len(heads)])
    pairs = [(a > b) + (a == b) / 2 for a, t in heads if t for b, u in heads if not u]
    out = stats.auroc(score, truth)
    assert out == pytest.approx(np.mean(pairs)) if pairs else np.isnan(out)


def test_importing_is_light():
    heavy = "{'scipy', 'statsmodels', 'pandas', 'yaml', 'torch'}"
    modules = "circuits.statistics, circuits.controls, circuits.head_sets, circuits.effects"
    code = f"import sys; import {modules}; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_sign_flips_of_many_columns_are_those_of_scipy_one_by_one():
    rng = np.random.default_rng(4)
    values = rng.standard_normal((20, 6)) + np.array([0, 0.3, 0.6, 1, 2, -1])
    clusters = np.repeat([f"n{i}" for i in range(10)], 2)
    ours = stats.sign_flip_ps(values, clusters)
    for column, p in zip(values.T, ours, strict=True):
        assert p == pytest.approx(stats.sign_flip_p(column, clusters, n_draws=2**10), abs=1e-9)
    many = rng.standard_normal((40, 3)) + 0.3
    names = np.array([f"n{i}" for i in range(40)])
    for column, p in zip(many.T, stats.sign_flip_ps(many, names), strict=True):
        assert p == pytest.approx(stats.sign_flip_p(column, names, n_draws=20000), abs=0.01)
    constant = np.full((8, 2), 0.5)
    constant[:, 1] = np.nan
    p = stats.sign_flip_ps(constant, [f"n{i}" for i in range(8)])
    assert p[0] == 2 / 2**8 and np.isnan(p[1])
    assert stats.sign_flip_ps(np.zeros((4, 1)), list("abcd"))[0] == 1
