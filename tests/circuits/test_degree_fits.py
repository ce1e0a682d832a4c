"""Shapes of degrees against closed forms, and exponents against the law that was drawn from."""

import numpy as np
import pytest
from graphs import counted, random_counts

from circuits import degree_fits
from circuits.degree_fits import fit_power_law, frequency_slope, inequality, token_specificity


def test_inequality_in_closed_form():
    same = inequality(np.full(50, 3.0))
    assert same.gini == pytest.approx(0) and same.effective == pytest.approx(50)
    assert same.participation == pytest.approx(50) and same.top_share == pytest.approx(0.02)
    x = np.random.default_rng(0).pareto(1.5, 40) + 1
    brute = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    found = inequality(np.append(x, [0, 0]))
    assert found.gini == pytest.approx(brute) and found.n == 40
    assert found.top_share == pytest.approx(x.max() / x.sum())
    assert np.isnan(inequality(np.zeros(3)).gini)


def test_specificity_of_one_token_of_an_even_spread_and_of_too_few_firings():
    tokens = np.repeat(np.arange(4), 4)
    row = np.array([0, 1, 2, 0, 4, 8, 12, 5])
    feature = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    counts = counted(tokens, tokens, row, feature, np.ones(8), n_tokens=4, n_features=4)
    assert token_specificity(counts)[:2] == pytest.approx([1, 0])
    assert np.isnan(token_specificity(counts)[2:]).all()


def test_slope_is_that_of_a_regression():
    from scipy.stats import linregress

    counts = random_counts(1, n=300, n_tokens=40, n_features=60)
    degree = degree_fits.degrees(counts)
    known = degree > 0
    truth = linregress(np.log(counts.occurrences[known]), np.log(degree[known]))
    found = frequency_slope(counts)
    assert (found.slope, found.r2) == pytest.approx((truth.slope, truth.rvalue**2))
    assert np.array_equal(np.isnan(found.residual), ~known)
    assert np.isnan(frequency_slope(random_counts(1, n=3, n_tokens=2)).slope)


def test_a_power_law_is_recovered_and_a_lognormal_is_not_taken_for_one():
    pytest.importorskip("powerlaw")
    rng = np.random.default_rng(0)
    sizes = np.arange(4, 20_000)
    law = sizes**-2.5 / (sizes**-2.5).sum()
    found = fit_power_law(rng.choice(sizes, 1000, p=law))
    assert abs(found.alpha - 2.5) < 3 * found.sigma < 0.4 and found.problem == ""
    assert found.n_tail <= found.n == 1000 and found.ratios["exponential"][0] > 0
    other = fit_power_law(np.round(rng.lognormal(3, 1, 1000)).astype(int) + 1)
    ratio, p = other.ratios["lognormal"]
    assert ratio < 0 and p < 0.05


def test_large_samples_are_thinned(monkeypatch):
    pytest.importorskip("powerlaw")
    monkeypatch.setattr(degree_fits, "LARGEST_FIT", 300)
    values = np.random.default_rng(0).zipf(2.2, 1000)
    assert fit_power_law(values).n == 300


def test_too_few_values_are_no_error():
    found = fit_power_law(np.array([1, 2, 2, 3, 0]))
    assert found.problem == "could not be fitted: 3 distinct values, 10 are needed"
    assert np.isnan(found.alpha) and found.n == 4
