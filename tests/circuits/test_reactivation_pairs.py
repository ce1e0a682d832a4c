"""Sources of re-activated features against a double loop over all pairs of firings."""

import numpy as np
import pytest

from circuits.reactivation_pairs import find_sources, source_positions


def window(seed, *, n=14, n_features=5, n_tokens=4, rate=0.4):
    rng = np.random.default_rng(seed)
    position, feature = np.nonzero(rng.random((n, n_features)) < rate)
    order = rng.permutation(len(position))
    return position[order], feature[order], rng.random(n) < 0.5, rng.integers(n_tokens, size=n)


def by_hand(position, feature, content, tokens):
    for p, f in zip(position, feature, strict=True):
        found = sorted(
            q for q, g in zip(position, feature, strict=True) if g == f and q < p and content[q]
        )
        other = any(tokens[q] != tokens[p] for q in found)
        yield (found[0], found[-1], len(found), other) if found else (-1, -1, 0, False)


@pytest.mark.parametrize("seed", range(6))
def test_sources_are_those_of_a_double_loop(seed):
    args = window(seed)
    found = find_sources(*args)
    first, nearest, number, other = zip(*by_hand(*args), strict=True)
    np.testing.assert_array_equal(found.first, first)
    np.testing.assert_array_equal(found.nearest, nearest)
    np.testing.assert_array_equal(found.number, number)
    np.testing.assert_array_equal(found.other, other)
    assert 0 < np.sum(found.nearest >= 0) < len(first)


def test_draws_of_labels_are_answered_one_by_one():
    position, feature, content, tokens = window(3)
    draws = np.stack([content, ~content, np.ones_like(content)])
    many = find_sources(position, feature, draws, tokens)
    for draw, labels in enumerate(draws):
        one = find_sources(position, feature, labels, tokens)
        np.testing.assert_array_equal(many.nearest[draw], one.nearest)
        np.testing.assert_array_equal(many.other[draw], one.other)


def test_nothing_active_has_no_source():
    empty = np.empty(0, int)
    found = find_sources(empty, empty, np.ones((2, 4), bool), np.arange(4))
    assert found.nearest.shape == (2, 0)


def test_the_latest_sources_are_listed_and_the_rest_is_filled():
    position = np.array([0, 1, 2, 3, 3])
    feature = np.array([7, 7, 7, 7, 8])
    content = np.array([True, True, False, True])
    found = source_positions(position, feature, content, chosen=np.array([3, 1, 4]), most=5)
    np.testing.assert_array_equal(found, [[1, 0], [0, -1], [-1, -1]])
    one = source_positions(position, feature, content, chosen=np.array([3]), most=1)
    np.testing.assert_array_equal(one, [[1]])
