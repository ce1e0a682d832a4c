"""Degrees at equal counts, against enumeration of every sample and against resampling."""

import itertools

import numpy as np
import pytest
from graphs import counted, random_counts, random_firings

from circuits import richness
from circuits.shuffles import shuffled_within
from interp.errors import ResultError


def fired_at(firings, token, n_features=7):
    """[occurrence, feature] of a token."""
    tokens, _, row, feature, _ = firings
    dense = np.zeros((len(tokens), n_features), bool)
    dense[row, feature] = True
    return dense[tokens == token]


@pytest.mark.parametrize("m", [1, 2, 5])
def test_rarefied_degree_is_the_mean_over_every_sample(m):
    firings = random_firings(1, n=40)
    counts = counted(*firings, n_tokens=4, n_features=7)
    brute = []
    for token in range(4):
        fired = fired_at(firings, token)
        samples = itertools.combinations(range(len(fired)), m)
        brute.append(np.mean([fired[list(s)].any(0).sum() for s in samples]))
    assert richness.rarefied_degree(counts, range(4), m) == pytest.approx(brute)


def test_document_rarefied_degree_is_the_mean_over_every_set_of_documents():
    firings = random_firings(2, n=50, n_documents=6)
    tokens, document, row, feature, _ = firings
    counts = counted(*firings, n_tokens=4, n_features=7)
    for token in range(4):
        mine = sorted(set(document[tokens == token].tolist()))
        at = tokens[row] == token
        sets = [set(feature[at & (document[row] == d)].tolist()) for d in mine]
        brute = np.mean([len(a | b | c) for a, b, c in itertools.combinations(sets, 3)])
        assert richness.document_rarefied_degree(counts, [token], 3)[0] == pytest.approx(brute)


def test_blind_coverage_is_that_of_permuted_labels():
    firings = random_firings(3, n=300, n_features=40, rate=0.01)
    counts = counted(*firings, n_tokens=4, n_features=40)
    _, _, row, feature, _ = firings
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        chosen = rng.permutation(300)[:50]
        draws.append(len(np.unique(feature[np.isin(row, chosen)])))
    alive = len(np.unique(feature))
    error = np.std(draws) / np.sqrt(len(draws)) / alive
    assert abs(np.mean(draws) / alive - richness.blind_coverage(counts, 50)) < 4 * error
    assert richness.blind_coverage(counts, 300) == pytest.approx(1)
    assert richness.random_positions(counts, 0) == 0


def test_cumulative_coverage_by_sets():
    counts = random_counts(4, rate=0.05, n_features=30)
    order = [2, 0, 3, 1]
    found = richness.cumulative_coverage(counts, order)
    sets = [set(counts.feature[counts.row(t)].tolist()) for t in order]
    brute = [len(set().union(*sets[: k + 1])) for k in range(4)]
    assert found.reached.tolist() == brute and found.of_alive[-1] == 1
    assert found.of_dictionary == pytest.approx(np.array(brute) / 30)


def test_completeness_and_chao2_by_hand():
    tokens = np.zeros(10, int)
    row, feature = np.array([0, 1, 2, 3, 4, 5, 6]), np.array([0, 0, 1, 1, 2, 3, 4])
    counts = counted(tokens, np.arange(10), row, feature, np.ones(7), n_tokens=2, n_features=6)
    assert richness.completeness(counts, [0])[0] == pytest.approx(1 - 3 / 7)
    assert richness.chao2(counts, [0])[0] == pytest.approx(5 + 0.9 * 9 / 4)
    assert np.isnan(richness.completeness(counts, [1])[0]) and richness.chao2(counts, [1])[0] == 0


def test_chao2_stays_below_the_truth_and_above_what_was_seen():
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-5, 1.5, 400)
    fired = rng.random((200, 400)) < rates
    row, feature = np.nonzero(fired)
    tokens = np.zeros(200, int)
    counts = counted(
        tokens, np.arange(200), row, feature, np.ones(len(row)), n_tokens=1, n_features=400
    )
    estimate = richness.chao2(counts, [0])[0]
    assert fired.any(0).sum() < estimate < 400


def test_equally_complete_degree_finds_the_size_at_which_completeness_is_the_target():
    firings = random_firings(5, n=48, rate=0.15)
    counts = counted(*firings, n_tokens=4, n_features=7)
    m = 3
    fired = fired_at(firings, 0).astype(float)
    n, hits = len(fired), fired.sum(0)
    # brute force: leave one occurrence out, draw m of the rest, is what it fires among them?
    found = [
        fired[i] @ fired[list(rest)].any(0)
        for i in range(n)
        for rest in itertools.combinations([j for j in range(n) if j != i], m)
    ]
    target = np.mean(found) * n / hits.sum()
    degree = richness.equally_complete_degree(counts, [0], float(target))[0]
    assert degree == pytest.approx(richness.rarefied_degree(counts, [0], m)[0])
    assert np.isnan(richness.equally_complete_degree(random_counts(5, n=6), [0], 0.999)[0])


def test_long_lists_are_worked_through_in_stretches(monkeypatch):
    counts = random_counts(6)
    whole = richness.rarefaction_curves(counts, [3, 0, 2], [2, 4])
    monkeypatch.setattr(richness, "CHUNK", 3)
    assert np.array_equal(richness.rarefaction_curves(counts, [3, 0, 2], [2, 4]), whole)


def test_refusals():
    counts = random_counts(7)
    assert np.isnan(richness.rarefied_degree(counts, [0], 1000)[0])
    with pytest.raises(ResultError, match="one occurrence or more"):
        richness.rarefied_degree(counts, [0], 0)
    with pytest.raises(ResultError, match="another tokenizer"):
        richness.completeness(counts, [4])
    with pytest.raises(ResultError, match="named twice"):
        richness.cumulative_coverage(counts, [1, 1])
    with pytest.raises(ResultError, match="61 positions"):
        richness.random_positions(counts, 61)
    with pytest.raises(ResultError, match="between 0 and 1"):
        richness.equally_complete_degree(counts, [0], 1.0)
    with pytest.raises(ResultError, match="no feature fired"):
        richness.blind_coverage(counts.select(np.zeros(counts.n_entries, bool)), 1)


def test_shuffled_labels_keep_every_document_and_lose_their_place():
    rng = np.random.default_rng(0)
    tokens, document = rng.integers(20, size=500), rng.integers(7, size=500)
    mixed = shuffled_within(tokens, document, seed=0)
    for d in range(7):
        assert sorted(mixed[document == d]) == sorted(tokens[document == d])
    assert np.mean(mixed == tokens) < 0.2
    assert np.array_equal(mixed, shuffled_within(tokens, document, seed=0))
