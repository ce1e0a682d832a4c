"""The variance parts against worlds with known ones."""

import numpy as np

from apps.precision import variance_parts


def test_variance_parts_recover_planted_ones():
    rng = np.random.default_rng(0)
    needles = np.repeat(np.arange(400), 5)
    values = 0.3 * rng.standard_normal(400)[needles] + 0.1 * rng.standard_normal(2000)
    between, within = variance_parts(values[:, None], needles.astype(str))
    assert abs(np.sqrt(between[0]) - 0.3) < 0.03
    assert abs(np.sqrt(within[0]) - 0.1) < 0.01


def test_needles_that_do_not_differ_have_no_variance_between():
    rng = np.random.default_rng(1)
    values = rng.standard_normal((2000, 1))
    between, within = variance_parts(values, np.repeat(np.arange(400), 5).astype(str))
    assert between[0] < 0.05 and abs(within[0] - 1) < 0.1
